//! The measure that chooses the best adapter and stops a run early.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::parallel::Ranks;
use crate::error::Result;
use crate::files::json::exact;
use crate::nn::Adapter;
use crate::settings::choice;

choice! {
    /// The measure of validation examples that chooses the best adapter and stops a run early.
    EvalOn {
        /// The mean loss of the trained tokens.
        Loss = "loss",
        /// The share of prompts that the adapter answers exactly; among equal shares, the loss.
        ExactMatch = "exact_match",
        /// Under `classify`, the share of texts whose likeliest label is the right one; among equal shares, the loss.
        Accuracy = "accuracy",
    }
}

/// Answers validation prompts.
pub trait ExactMatch: fmt::Debug {
    /// The number of the prompts.
    fn prompts(&self) -> usize;

    /// The number of those prompts of this rank's share that `adapter` answers exactly.
    ///
    /// # Errors
    /// Failed: logits that are not numbers.
    fn exact(&self, ranks: &dyn Ranks, adapter: &Adapter) -> Result<usize>;
}

/// The measures of an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The share of prompts answered exactly, or of texts with the right label, where that chooses.
    #[serde(with = "exact::option")]
    pub share: Option<f64>,
    /// The mean validation loss.
    #[serde(with = "exact")]
    pub loss: f64,
}

impl Score {
    /// Whether this is the better of two.
    pub fn is_better_than(self, other: Self) -> bool {
        let (share, best) = (self.share.unwrap_or(0.0), other.share.unwrap_or(0.0));
        share > best || (share == best && self.loss < other.loss)
    }

    /// Whether the measure that chooses is better by more than `min_delta`.
    pub fn improves_by(self, other: Self, min_delta: f64) -> bool {
        match (self.share, other.share) {
            (Some(share), Some(best)) => share > best + min_delta,
            _ => self.loss < other.loss - min_delta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_decides_before_the_loss() {
        let score = |share: f64, loss: f64| Score { share: Some(share), loss };
        assert!(score(0.5, 2.0).is_better_than(score(0.4, 1.0)) && !score(0.4, 1.0).is_better_than(score(0.5, 2.0)));
        assert!(score(0.5, 1.0).is_better_than(score(0.5, 2.0)) && !score(0.5, 2.0).is_better_than(score(0.5, 2.0)));
        assert!(
            score(0.5, 2.0).improves_by(score(0.4, 1.0), 0.05) && !score(0.5, 2.0).improves_by(score(0.4, 1.0), 0.2)
        );
        assert!(!score(0.5, 1.0).improves_by(score(0.5, 2.0), 0.0), "early stopping does not wait for the loss");
        let loss = |loss: f64| Score { share: None, loss };
        assert!(loss(1.0).is_better_than(loss(2.0)) && loss(1.0).improves_by(loss(1.5), 0.4));
        assert!(!loss(1.0).improves_by(loss(1.5), 0.5) && !loss(f64::NAN).is_better_than(loss(1.0)));
    }
}
