//! Answers that are held to a JSON schema: before each token, those that cannot continue a valid text are excluded.
//!
//! `llguidance` keeps the state of the grammar and computes the excluded tokens from a trie of the vocabulary (`vocabulary`). A schema
//! may come from anyone, so its size is checked before (`schema`), the library's work on it is limited, and its recursion gets a
//! stack of its own. White space between the parts of a text is limited, too: a model that is unsure may write it for ever.

mod merged;
mod schema;
mod vocabulary;

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

pub use vocabulary::Vocabulary;

use crate::error::{Error, Result};

/// The stack for the recursion over a schema, of which pages are used as they are needed.
const STACK_BYTES: usize = 256 << 20;
/// The white space that a text may have at one place: a space, or a line end with an indentation.
const WHITE_SPACE: &str = r"\x20|\x0D?\x0A[\x20\x09]{0,40}";
/// The key under which `llguidance` reads its options.
const OPTIONS: &str = "x-guidance";
/// The longest reason that the library gives, in characters.
const MAX_REASON: usize = 300;

/// A format and the state of the text that is being held to it. A clone goes on by itself.
pub struct Constraint(Matcher);

impl Clone for Constraint {
    fn clone(&self) -> Self {
        // Plain clones share the states of the lexer: what one answer meets would count towards the limits of another.
        Self(self.0.deep_clone())
    }
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
        let (vocabulary, schema) = (vocabulary.clone(), schema.clone());
        let prepare = move || Self::prepare(&vocabulary, schema);
        let thread = std::thread::Builder::new().name("schema".to_owned()).stack_size(STACK_BYTES).spawn(prepare);
        let thread = thread.map_err(|error| Error::failed("", format!("a thread cannot be started: {error}")))?;
        thread.join().map_err(|_| Error::input("", "the schema cannot be prepared"))?
    }

    fn prepare(vocabulary: &Vocabulary, mut schema: Value) -> Result<Self> {
        schema::check(&schema)?;
        merged::check(&schema)?;
        schema[OPTIONS] = json!({ "whitespace_flexible": false, "whitespace_pattern": WHITE_SPACE });
        let parser = vocabulary.factory().create_parser(TopLevelGrammar::from_json_schema(schema));
        let mut matcher = Matcher::new(parser);
        // What is too complex for the first choice is refused before an answer begins.
        match matcher.compute_mask() {
            Ok(_) => Ok(Self(matcher)),
            Err(error) => {
                let message = format!("the schema cannot be held to: {}", reason(&error.to_string()));
                Err(Error::input("", message))
            }
        }
    }

    /// The logits with those of the tokens that cannot follow at negative infinity. An end token can follow where the text may end.
    ///
    /// # Errors
    /// Input: the format has become too complex, or no token can follow.
    pub(super) fn admitted(&mut self, logits: &[f32]) -> Result<Vec<f32>> {
        let mask = self.0.compute_mask().map_err(|error| failed(&error.to_string()))?;
        let mut admitted = vec![f32::NEG_INFINITY; logits.len()];
        for ((admitted, logits), bits) in admitted.chunks_mut(32).zip(logits.chunks(32)).zip(mask.as_slice()) {
            if *bits == 0 {
                continue;
            }
            for (index, (admitted, logit)) in admitted.iter_mut().zip(logits).enumerate() {
                *admitted = if bits >> index & 1 == 1 { *logit } else { *admitted };
            }
        }
        Ok(admitted)
    }

    /// The number of `tokens`, from the first on, that can follow one after another.
    pub(super) fn count_admitted(&mut self, tokens: &[u32]) -> usize {
        self.0.validate_tokens(tokens).unwrap_or(0)
    }

    /// Goes on behind a token, which is not an end token.
    ///
    /// # Errors
    /// Input: the token cannot follow, or the format has become too complex.
    pub(super) fn advance(&mut self, token: u32) -> Result<()> {
        self.0.consume_token(token).map_err(|error| failed(&error.to_string()))
    }

    /// Whether the text is complete and nothing can follow.
    pub(super) fn is_complete(&self) -> bool {
        self.0.is_stopped() && !self.0.is_error()
    }
}

fn failed(message: &str) -> Error {
    Error::input("", format!("the answer cannot be held to its format any further: {}", reason(message)))
}

/// The library's reason, without what it says of its own state: the first line, and the last one where the first announces it.
fn reason(message: &str) -> String {
    let (first, rest) = message.split_once('\n').unwrap_or((message, ""));
    // An option of the library that is not offered.
    let first = first.split(" Enable 'coerce_one_of'").next().unwrap_or_default();
    let first = match first.strip_prefix("panic: ").unwrap_or(first) {
        "NoExtensionBias" => "no token can come next",
        first => first,
    };
    let announced = rest.lines().last().filter(|_| first.ends_with(':')).unwrap_or_default();
    let announced = announced.strip_prefix("error: ").unwrap_or(announced);
    format!("{first} {announced}").trim_end().chars().take(MAX_REASON).collect()
}
