//! The limits of a continuation: the check of its prompt, and the reason of its end.

use serde::Serialize;

use crate::error::{Error, Result};

/// The reason why a continuation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model gave an end token.
    EndToken,
    /// The text contains a stop string, before which it ends.
    Stop,
    /// It is complete by the format that it is held to: nothing can follow.
    Complete,
    /// It has as many tokens as were asked for, or as the model has positions for.
    Length,
    /// The time was up.
    Time,
    /// The one who asked does not want it any more.
    Cancelled,
}

/// Checks that a model of so many positions can continue a prompt.
///
/// # Errors
/// The prompt is empty or too long.
pub fn check_prompt(prompt: &[u32], positions: usize) -> Result<()> {
    if prompt.is_empty() {
        return Err(Error::input("", "has no tokens"));
    }
    if prompt.len() >= positions {
        let message = format!("has {} tokens; the model has {positions} positions", prompt.len());
        return Err(Error::input("", message));
    }
    Ok(())
}
