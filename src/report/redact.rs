//! Reports without secrets and personal data: placeholders take their places, by the detectors of `burnish check`. What these do not find, names
//! for instance, stays. No detector looks at pictures: none stays.

use serde_json::Value;

use super::folder::{Document, Lines, RunFiles};
use crate::data::preflight::clean::without_secrets;
use crate::data::preflight::secrets::{placeholder, secrets};

/// The key of lists that hold the texts of tokens one after another.
const TOKENS: &str = "tokens";
/// The key of the pictures of a report.
const PICTURES: &str = "pictures";

impl RunFiles {
    /// Replaces secrets and personal data in everything that a report shows by placeholders such as `[EMAIL]`, and removes its pictures; the
    /// number of secrets. The files stay as they are.
    pub fn redact(&mut self) -> usize {
        if self.details.value.as_object_mut().and_then(|details| details.shift_remove(PICTURES)).is_some() {
            self.details.text = self.details.value.to_string();
        }
        let documents = [&mut self.record, &mut self.details, &mut self.memorisation];
        let lines = [&mut self.metrics, &mut self.timings, &mut self.samples];
        let texts = [&mut self.recipe, &mut self.usage].into_iter().flatten();
        documents.into_iter().map(document).sum::<usize>()
            + lines.into_iter().map(of_lines).sum::<usize>()
            + texts.map(plain).sum::<usize>()
    }
}

/// A secret of a token list goes over several texts, so these come first.
fn document(document: &mut Document) -> usize {
    let of_tokens = token_lists(&mut document.value);
    if of_tokens > 0 {
        document.text = document.value.to_string();
    }
    of_tokens + json(&mut document.text, &mut document.value)
}

fn of_lines(lines: &mut Lines) -> usize {
    lines.lines.iter_mut().map(|(text, value)| json(text, value)).sum()
}

/// Replaces the secrets in the strings of a JSON text, which stays digit for digit otherwise.
fn json(text: &mut String, value: &mut Value) -> usize {
    let Some((redacted, counts)) = without_secrets(text.as_bytes()) else { return 0 };
    *text = String::from_utf8_lossy(&redacted).into_owned();
    *value = serde_json::from_str(text).unwrap_or_default();
    counts.values().sum()
}

fn plain(text: &mut String) -> usize {
    let mut pieces = [std::mem::take(text)];
    let count = redact_pieces(&mut pieces);
    [*text] = pieces;
    count
}

/// Redacts every list of tokens in `value`.
fn token_lists(value: &mut Value) -> usize {
    match value {
        Value::Object(fields) => {
            let of_field = |(key, value): (&String, &mut Value)| match value {
                Value::Array(tokens) if key == TOKENS && tokens.iter().all(Value::is_string) => {
                    let mut pieces: Vec<String> =
                        tokens.iter().map(|token| token.as_str().unwrap_or_default().to_owned()).collect();
                    let count = redact_pieces(&mut pieces);
                    *tokens = pieces.into_iter().map(Value::String).collect();
                    count
                }
                value => token_lists(value),
            };
            fields.iter_mut().map(of_field).sum()
        }
        Value::Array(values) => values.iter_mut().map(token_lists).sum(),
        _ => 0,
    }
}

/// Replaces the secrets in a text that lies in pieces: the placeholder stands in the first piece of each, the others lose their part of it.
fn redact_pieces(pieces: &mut [String]) -> usize {
    let found = secrets(&pieces.concat());
    let mut begin = 0;
    for piece in pieces {
        let end = begin + piece.len();
        let mut kept = String::new();
        let mut at = begin;
        for secret in found.iter().filter(|secret| secret.place.start < end && secret.place.end > begin) {
            kept += &piece[at.saturating_sub(begin)..secret.place.start.saturating_sub(begin).max(at - begin)];
            if secret.place.start >= begin {
                kept += placeholder(secret.code);
            }
            at = secret.place.end.min(end);
        }
        kept += &piece[at - begin..];
        *piece = kept;
        begin = end;
    }
    found.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_over_several_tokens_leaves_its_placeholder() {
        let mut pieces = ["Write", " to ann", ".b@", "mail.de", " or", " +49 30 ", "901820 x", ""].map(str::to_owned);
        assert_eq!(redact_pieces(&mut pieces), 2);
        assert_eq!(pieces, ["Write", " to [EMAIL]", "", "", " or", " [PHONE]", " x", ""]);
        let mut within = ["a.b@mail.de and c.d@mail.de!".to_owned()];
        assert_eq!(redact_pieces(&mut within), 2);
        assert_eq!(within, ["[EMAIL] and [EMAIL]!"]);
        let mut none = ["plain".to_owned(), String::new()];
        assert_eq!(redact_pieces(&mut none), 0);
        assert_eq!(none, ["plain", ""]);
    }

    #[test]
    fn numbers_of_a_document_stay_digit_for_digit() {
        let text =
            r#"{"loss": 0.10000000000000001, "answer": "a.b@mail.de", "examples": [{"tokens": ["a.b", "@mail.de"]}]}"#;
        let mut redacted = Document { text: text.to_owned(), value: serde_json::from_str(text).expect("JSON") };
        assert_eq!(document(&mut redacted), 2);
        assert_eq!(redacted.value["answer"], "[EMAIL]");
        assert_eq!(redacted.value["examples"][0]["tokens"], serde_json::json!(["[EMAIL]", ""]));
        let mut lines = Lines::parse("{\"loss\": 0.10000000000000001, \"prompt\": \"a.b@mail.de\", \"tokens\": 3}");
        assert_eq!(of_lines(&mut lines), 1);
        assert_eq!(lines.lines[0].0, "{\"loss\": 0.10000000000000001, \"prompt\": \"[EMAIL]\", \"tokens\": 3}");
    }
}
