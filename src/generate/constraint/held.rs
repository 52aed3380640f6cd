//! A JSON text that is held to a schema, by `llguidance`. White space between its parts is limited: a model that is unsure may write
//! it for ever.

use llguidance::Matcher;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};
use toktrie::SimpleVob;

use super::{Vocabulary, merged, schema};
use crate::error::{Error, Result};

/// The white space that a text may have at one place: a space, or a line end with an indentation.
const WHITE_SPACE: &str = r"\x20|\x0D?\x0A[\x20\x09]{0,40}";
/// The key under which `llguidance` reads its options.
const OPTIONS: &str = "x-guidance";
/// The longest reason that the library gives, in characters.
const MAX_REASON: usize = 300;

/// The state of a text. A clone goes on by itself.
pub(super) struct Held(Matcher);

impl Clone for Held {
    fn clone(&self) -> Self {
        // Plain clones share the states of the lexer: what one answer meets would count towards the limits of another.
        Self(self.0.deep_clone())
    }
}

impl Held {
    /// A text by `schema` that has not begun. The schema's depth is that of the recursion.
    pub(super) fn new(vocabulary: &Vocabulary, mut schema: Value) -> Result<Self> {
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

    /// The logits with those of the tokens that cannot follow at negative infinity.
    pub(super) fn admitted(&mut self, logits: &[f32]) -> Result<Vec<f32>> {
        let mask: SimpleVob = self.0.compute_mask().map_err(|error| failed(&error.to_string()))?;
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

    /// Goes on behind tokens.
    pub(super) fn advance(&mut self, tokens: &[u32]) -> Result<()> {
        self.0.consume_tokens(tokens).map_err(|error| failed(&error.to_string()))
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
