//! Scores of a generated text against a reference: exact match, of the whole text or of what a pattern extracts, and ROUGE-L.

use fancy_regex::Regex;
use rougers::{RougeScorer, RougeType, Tokenizer};

use crate::error::{Error, Place, Result};

/// Whether both texts are the same, white space at either end aside.
pub fn exact_match(reference: &str, prediction: &str) -> bool {
    reference.trim() == prediction.trim()
}

/// A pattern that finds the answer within a text, as `#### (.+)` the number at the end of a calculation.
#[derive(Debug, Clone)]
pub struct Extractor(Regex);

impl Extractor {
    /// Compiles a pattern (fancy-regex: Rust's syntax with look-around and back-references).
    ///
    /// # Errors
    /// Input: the pattern is broken.
    pub fn new(pattern: &str) -> Result<Self> {
        Regex::new(pattern).map(Self).map_err(|error| {
            Error::input(Place::argument("--extract"), format!("{pattern:?} is no regular expression: {error}"))
        })
    }

    /// The first group of the first match, the whole match where the pattern has no group; `None` where nothing matches.
    ///
    /// # Errors
    /// Input: the pattern takes too many steps on this text.
    pub fn extract<'t>(&self, text: &'t str) -> Result<Option<&'t str>> {
        let found = self.0.captures(text).map_err(|error| {
            Error::input(Place::argument("--extract"), format!("the pattern fails on an answer: {error}"))
                .hint("a simpler pattern takes fewer steps")
        })?;
        Ok(found.and_then(|found| found.get(1).or_else(|| found.get(0))).map(|part| part.as_str()))
    }

    /// Whether the pattern extracts the same from both texts, white space at either end aside. A reference without a match
    /// is the answer itself; a prediction without a match is wrong.
    ///
    /// # Errors
    /// Those of [`Self::extract`].
    pub fn exact_match(&self, reference: &str, prediction: &str) -> Result<bool> {
        let wanted = self.extract(reference)?.unwrap_or(reference);
        Ok(self.extract(prediction)?.is_some_and(|found| exact_match(wanted, found)))
    }
}

/// ROUGE-L F1, from 0 to 1.
///
/// For a reference in ASCII letters the result equals that of Google's `rouge-score` without stemming. `rouge-score` drops
/// all other letters, which would score every Chinese answer 0; so a reference in a script without
/// spaces (Chinese, Japanese, Thai, …) is compared character by character, and any other by Unicode's word
/// boundaries, both after NFKC and case folding. The reference alone decides, so that every system is measured alike.
pub fn rouge_l(reference: &str, prediction: &str) -> f64 {
    // No error is possible for this type; a score of 0 would be wrong only where there is no score.
    let scorer = RougeScorer::with_tokenizer(vec![RougeType::L], tokenizer_for(reference));
    let score = scorer.ok().and_then(|scorer| scorer.score(reference, prediction).get(RougeType::L));
    score.map_or(0.0, |score| score.fmeasure)
}

fn tokenizer_for(reference: &str) -> Tokenizer {
    if reference.chars().any(is_written_without_spaces) {
        Tokenizer::character()
    } else if reference.chars().any(|letter| !letter.is_ascii() && letter.is_alphabetic()) {
        Tokenizer::unicode()
    } else {
        Tokenizer::new(false)
    }
}

/// Letters of scripts that put no spaces between words (Unicode blocks).
fn is_written_without_spaces(letter: char) -> bool {
    matches!(letter,
        '\u{0E00}'..='\u{0EFF}' // Thai, Lao
        | '\u{1000}'..='\u{109F}' // Myanmar
        | '\u{1780}'..='\u{17FF}' // Khmer
        | '\u{3040}'..='\u{30FF}' // Hiragana, Katakana
        | '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}') // Han
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_at_the_ends_is_no_difference() {
        assert!(exact_match("SELECT a\n", "  SELECT a"));
        assert!(!exact_match("SELECT a", "SELECT  a"));
    }

    #[test]
    fn a_pattern_finds_the_answer() {
        let number = Extractor::new(r"#### (-?[0-9.,]+)").unwrap();
        assert_eq!(number.extract("3 + 4 = 7\n#### 7").unwrap(), Some("7"));
        assert!(number.exact_match("a\n#### 18", "another way: #### 18").unwrap());
        assert!(number.exact_match("18", "#### 18").unwrap(), "a reference that is the answer already");
        assert!(!number.exact_match("#### 18", "18").unwrap(), "an answer in another form");
        assert_eq!(Extractor::new("[0-9]+").unwrap().extract("a 12 b 3").unwrap(), Some("12"));
        let error = Extractor::new("(").unwrap_err();
        assert!(error.to_string().contains("--extract") && error.exit_code() == 2, "{error}");
        let text = "a".repeat(60);
        let endless = Extractor::new(r"(a*)*\1b").unwrap();
        assert!(endless.extract(&text).is_err_and(|error| error.exit_code() == 2));
    }

    #[test]
    fn empty_texts_score_nothing() {
        for (reference, prediction) in [("", ""), ("", "a"), ("a", ""), ("。", "。")] {
            assert_eq!(rouge_l(reference, prediction), 0.0);
        }
        assert_eq!(rouge_l("中文", "中文"), 1.0);
    }
}
