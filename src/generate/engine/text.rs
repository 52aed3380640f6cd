//! The text of an answer as it grows, up to the first stop string.

use crate::error::Result;
use crate::text::{TextStream, Tokenizer};

/// Turns the tokens of an answer into text and looks for stop strings, across the borders of tokens.
pub(super) struct AnswerText {
    stream: TextStream,
    stop: Vec<String>,
    /// Text that may be the beginning of a stop string.
    held: String,
}

impl AnswerText {
    /// No text so far. Empty stop strings stop nothing.
    pub(super) fn new(tokenizer: &Tokenizer, mut stop: Vec<String>, keeps_special: bool) -> Self {
        stop.retain(|stop| !stop.is_empty());
        Self { stream: TextStream::new(tokenizer, !keeps_special), stop, held: String::new() }
    }

    /// Takes a token; the text that is certain now, and whether a stop string ends it.
    pub(super) fn push(&mut self, token: u32) -> Result<(String, bool)> {
        let text = self.stream.push(token)?;
        Ok(self.take(&text))
    }

    /// The rest of the text, and whether a stop string ends it.
    pub(super) fn finish(&mut self) -> Result<(String, bool)> {
        let text = self.stream.finish()?;
        let (certain, is_stopped) = self.take(&text);
        let held = std::mem::take(&mut self.held);
        Ok(if is_stopped { (certain, true) } else { (certain + &held, false) })
    }

    fn take(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(end) = found {
            let mut certain = std::mem::take(&mut self.held);
            certain.truncate(end);
            return (certain, true);
        }
        let begins_a_stop = |rest: &str| self.stop.iter().any(|stop| stop.starts_with(rest));
        let mut starts = self.held.char_indices().map(|(start, _)| start);
        let end = starts.find(|&start| begins_a_stop(&self.held[start..])).unwrap_or(self.held.len());
        let rest = self.held.split_off(end);
        (std::mem::replace(&mut self.held, rest), false)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::BaseFiles;

    fn answer(stop: &[&str]) -> AnswerText {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/smollm.gguf");
        let tokenizer = Tokenizer::of_base(&BaseFiles::open(&path).expect("a base")).expect("a tokenizer");
        AnswerText::new(&tokenizer, stop.iter().map(|&stop| stop.to_owned()).collect(), false)
    }

    fn pieces(stop: &[&str], texts: &[&str]) -> (Vec<String>, bool) {
        let mut answer = answer(stop);
        let mut given = Vec::new();
        for text in texts {
            let (certain, is_stopped) = answer.take(text);
            given.push(certain);
            if is_stopped {
                return (given, true);
            }
        }
        let (rest, is_stopped) = answer.finish().expect("text");
        given.push(rest);
        (given, is_stopped)
    }

    #[test]
    fn a_stop_string_across_tokens_is_never_given_out() {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(pieces(&["END"], &["a E", "N", "D b"]), (owned(&["a ", "", ""]), true));
        assert_eq!(pieces(&["END"], &["a E", "Nx"]), (owned(&["a ", "ENx", ""]), false));
        assert_eq!(pieces(&["END"], &["a EN"]), (owned(&["a ", "EN"]), false));
        assert_eq!(pieces(&["aab"], &["aa", "a", "b"]), (owned(&["", "a", ""]), true));
        assert_eq!(pieces(&["long stop", "st"], &["a long st"]), (owned(&["a long "]), true));
        assert_eq!(pieces(&["é!"], &["é", "?"]), (owned(&["", "é?", ""]), false));
        assert_eq!(pieces(&[""], &["a"]), (owned(&["a", ""]), false));
    }
}
