//! Answers that are held to a JSON schema: before each token, those that cannot continue a valid text are excluded.
//!
//! An answer is such a text as a whole (`held`), or it is free text in which calls of tools begin behind the opening that the model's
//! chat template gives them (`calls`).
//!
//! `llguidance` keeps the state of the grammar and computes the excluded tokens from a trie of the vocabulary (`vocabulary`). A schema
//! may come from anyone, so its size is checked before (`schema`, `merged`), the library's work on it is limited, and its recursion
//! gets a stack of its own.

mod calls;
mod held;
mod merged;
mod schema;
mod vocabulary;

use serde_json::Value;

pub use vocabulary::Vocabulary;

use self::calls::Calls;
use self::held::Held;
use crate::error::{Error, Result};

/// The stack for the recursion over a schema, of which pages are used as they are needed.
const STACK_BYTES: usize = 256 << 20;

/// A format and the state of the text that is being held to it. A clone goes on by itself.
#[derive(Clone)]
pub struct Constraint(Form);

#[derive(Clone)]
enum Form {
    Whole(Box<Held>),
    Calls(Box<Calls>),
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Constraint").field("is_complete", &self.is_complete()).finish()
    }
}

impl Constraint {
    /// JSON texts that a schema describes (draft 2020-12 and before), their properties in the schema's order.
    ///
    /// Takes milliseconds as a rule, and memory and time within limits for every schema.
    ///
    /// # Errors
    /// Input: a schema that is too large, is no schema, has keywords that cannot be held to, or describes nothing.
    pub fn json_schema(vocabulary: &Vocabulary, schema: &Value) -> Result<Self> {
        Ok(Self(Form::Whole(Box::new(with_a_stack(vocabulary, schema)?))))
    }

    /// Free text with calls: each stands behind the text `opening` and white space, and is a JSON text that the schema describes. Without
    /// an opening, an answer that begins as a call is one call and nothing else; control tokens may stand before it.
    ///
    /// # Errors
    /// Those of [`Self::json_schema`].
    pub fn calls(vocabulary: &Vocabulary, opening: &str, schema: &Value) -> Result<Self> {
        let call = with_a_stack(vocabulary, schema)?;
        Ok(Self(Form::Calls(Box::new(Calls::new(vocabulary.clone(), opening, call)))))
    }

    /// The logits with those of the tokens that cannot follow at negative infinity. An end token can follow where the text may end.
    ///
    /// # Errors
    /// Input: the format has become too complex, or no token can follow.
    pub(super) fn admitted(&mut self, logits: &[f32]) -> Result<Vec<f32>> {
        match &mut self.0 {
            Form::Whole(held) => held.admitted(logits),
            Form::Calls(calls) => calls.admitted(logits),
        }
    }

    /// The number of `tokens`, from the first on, that may be guessed to follow one after another. A guess is checked again.
    pub(super) fn count_admitted(&mut self, tokens: &[u32]) -> usize {
        match &mut self.0 {
            Form::Whole(held) => held.count_admitted(tokens),
            Form::Calls(calls) => calls.count_admitted(tokens),
        }
    }

    /// Goes on behind a token, which is not an end token.
    ///
    /// # Errors
    /// Input: the token cannot follow, or the format has become too complex.
    pub(super) fn advance(&mut self, token: u32) -> Result<()> {
        match &mut self.0 {
            Form::Whole(held) => held.advance(&[token]),
            Form::Calls(calls) => calls.advance(token),
        }
    }

    /// Whether the text is complete and nothing can follow.
    pub(super) fn is_complete(&self) -> bool {
        match &self.0 {
            Form::Whole(held) => held.is_complete(),
            Form::Calls(calls) => calls.is_complete(),
        }
    }
}

/// Prepares a schema on a thread with a large stack.
fn with_a_stack(vocabulary: &Vocabulary, schema: &Value) -> Result<Held> {
    let (vocabulary, schema) = (vocabulary.clone(), schema.clone());
    let prepare = move || Held::new(&vocabulary, schema);
    let thread = std::thread::Builder::new().name("schema".to_owned()).stack_size(STACK_BYTES).spawn(prepare);
    let thread = thread.map_err(|error| Error::failed("", format!("a thread cannot be started: {error}")))?;
    thread.join().map_err(|_| Error::input("", "the schema cannot be prepared"))?
}
