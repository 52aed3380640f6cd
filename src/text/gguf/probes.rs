//! Texts by which two tokenizers are told apart.

use crate::error::Result;
use crate::text::Tokenizer;

/// Runs of digits and spaces, line ends, contractions in both cases, punctuation and several scripts: what the splits of
/// text differ in. In Unicode's composed form.
const TEXTS: [&str; 22] = [
    "The river ran past the old mill.",
    " leading space",
    "two  spaces,   three,    four",
    "trailing spaces   ",
    "line\nbreaks\n\nand\r\nmore\n\n\n",
    "\ttabs\t\tand \t mixtures",
    "digits 1 12 123 1234 12345678 3.14159 1,000,000",
    "before digits:  7\n\n8\n 9",
    "They don't, I'm, we've, you'll, she'd, it's; THEY DON'T, I'M, WE'VE",
    "sch\u{f6}n, K\u{e4}se, O\u{f9}, \u{bf}Qu\u{e9}?",
    "河水流过古老的磨坊,孩子们数着小船。2024年",
    "នេះ\u{200B}ជា\u{200B}អក្សរ العربية हिन्दी нещо на Български",
    "emoji 😀🎉 and 👩‍👩‍👧 🚀 (normal) 😶‍🌫️ (joined) ✅",
    "snake_case camelCase HTTPServer kebab-case a/b\\c {x: [1]} ()!?...",
    "http://example.org/a?b=c&d=e#f/\n/path//\n\n------======= ''''''```````\"\"\"\"......!!!!!!?????? ",
    "fn main() {\n    let x = \"y\"; // note\n\n\n}\n",
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3",
    "\u{bd} \u{b2} \u{2163} \u{a0}nbsp\u{3000}wide \u{200b}zero",
    "x",
    " ",
    "\n",
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
];

/// The outcome of a comparison.
pub(super) enum Probed {
    /// Every text gives the same ids.
    Same,
    /// Plain texts do; this text with control tokens does not.
    DifferentAfterControlTokens(String),
    /// This plain text gives other ids, or a token has another id.
    Different(String),
}

/// Compares two tokenizers.
///
/// # Errors
/// The tokenizers crate fails on a text.
pub(super) fn compare(own: &Tokenizer, other: &Tokenizer) -> Result<Probed> {
    let mut specials: Vec<(&str, u32)> = own.special_tokens().collect();
    specials.sort_unstable_by_key(|(_, id)| *id);
    for text in TEXTS {
        if own.encode(text)? != other.encode(text)? {
            return Ok(Probed::Different(text.to_owned()));
        }
    }
    for (text, id) in &specials {
        if other.token_to_id(text) != Some(*id) {
            return Ok(Probed::Different((*text).to_owned()));
        }
    }
    // Each control token followed by a word.
    for (text, _) in specials.iter().take(64) {
        let text = format!("{text}word {text}\n");
        if own.encode_with_special(&text)? != other.encode_with_special(&text)? {
            return Ok(Probed::DifferentAfterControlTokens(text));
        }
    }
    Ok(Probed::Same)
}
