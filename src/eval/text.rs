//! Scores of a generated text against a reference: exact match and ROUGE-L.

use rougers::{RougeScorer, RougeType, Tokenizer};

/// Whether both texts are the same, white space at either end aside.
pub fn exact_match(reference: &str, prediction: &str) -> bool {
    reference.trim() == prediction.trim()
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
    fn empty_texts_score_nothing() {
        for (reference, prediction) in [("", ""), ("", "a"), ("a", ""), ("。", "。")] {
            assert_eq!(rouge_l(reference, prediction), 0.0);
        }
        assert_eq!(rouge_l("中文", "中文"), 1.0);
    }
}
