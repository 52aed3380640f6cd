//! Text that was damaged on its way: lost characters, wrong encodings, leftovers of other formats.

use std::sync::LazyLock;

use regex::Regex;

use super::answers::regex;
use super::catalogue::Code;
use super::view::View;

/// The findings about the texts of a row.
pub(super) fn findings(view: &View<'_>, found: &mut Vec<(Code, String)>) {
    for text in view.texts() {
        let mut add = |code: Code| found.push((code, String::new()));
        if MARKUP.is_match(text) {
            add(Code::ForeignMarkup);
        }
        if !text.contains('<') && ENTITY.is_match(text) {
            add(Code::HtmlEntities);
        }
        if is_escaped(text) {
            add(Code::EscapedText);
        }
        if text.chars().any(|symbol| matches!(symbol, '\0'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}' if symbol != '\r'))
        {
            add(Code::ControlCharacter);
        }
        if text.is_ascii() {
            continue;
        }
        if text.contains('\u{fffd}') {
            add(Code::ReplacementCharacter);
        }
        if is_mojibake(text) {
            add(Code::Mojibake);
        } else if text.chars().any(|symbol| ('\u{80}'..='\u{9f}').contains(&symbol)) {
            add(Code::ControlCharacter);
        }
        if text.chars().any(is_invisible) {
            add(Code::InvisibleCharacter);
        }
        if has_decomposed_letter(text) {
            add(Code::DecomposedLetters);
        }
    }
}

/// Whether a character takes no room and is not needed to write a language: joiners are, in Persian and in emoji.
fn is_invisible(symbol: char) -> bool {
    matches!(symbol, '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}' | '\u{2066}'..='\u{2069}'
        | '\u{feff}' | '\u{ad}' | '\u{e0000}'..='\u{e007f}')
}

/// Whether a Latin letter is followed by a mark that has a composed form with it.
fn has_decomposed_letter(text: &str) -> bool {
    let mut before = ' ';
    text.chars().any(|symbol| {
        let is_one = before.is_ascii_alphabetic()
            && matches!(
                symbol,
                '\u{300}'..='\u{304}' | '\u{306}' | '\u{308}' | '\u{30a}' | '\u{30c}' | '\u{327}' | '\u{328}'
            );
        before = symbol;
        is_one
    })
}

/// The byte that Windows-1252 has for a character, or Latin-1 where that has none.
fn byte_of(symbol: char) -> Option<u8> {
    /// The characters of the bytes 0x80 to 0x9f; a space where there is none.
    const WINDOWS: &str = "€ ‚ƒ„…†‡ˆ‰Š‹Œ Ž  ‘’“”•–—˜™š›œ žŸ";
    match u32::from(symbol) {
        code @ 0x80..=0xff => u8::try_from(code).ok(),
        _ => WINDOWS
            .chars()
            .position(|other| other == symbol && other != ' ')
            .and_then(|at| u8::try_from(0x80 + at).ok()),
    }
}

/// Whether some characters are the bytes of UTF-8, read as Windows-1252 or Latin-1.
fn is_mojibake(text: &str) -> bool {
    let symbols: Vec<char> = text.chars().collect();
    symbols.iter().enumerate().any(|(at, symbol)| {
        // Lead bytes of two to four; `Â` and `Ã` begin nearly all of the short ones.
        let more = match byte_of(*symbol) {
            Some(0xc2 | 0xc3) => 1,
            Some(0xe1..=0xef) => 2,
            Some(0xf0..=0xf4) => 3,
            _ => return false,
        };
        let rest = symbols.get(at + 1..=at + more).unwrap_or_default();
        rest.len() == more
            && rest.iter().all(|symbol| byte_of(*symbol).is_some_and(|byte| (0x80..0xc0).contains(&byte)))
    })
}

/// Whether a text spells line ends or characters, as JSON within JSON does. Code spells them too, between quotes.
fn is_escaped(text: &str) -> bool {
    let spells_lines =
        text.matches("\\n").count() >= 2 && !text.contains('\n') && !text.contains(['"', '\'', '`', '/']);
    spells_lines || (!text.contains(['"', '\'', '`']) && ESCAPE.is_match(text))
}

static ESCAPE: LazyLock<Regex> = LazyLock::new(|| regex(r"\\u[0-9a-fA-F]{4}"));
static ENTITY: LazyLock<Regex> = LazyLock::new(|| regex(r"&(?:amp|lt|gt|quot|nbsp|apos|#\d{2,5}|#x[0-9a-fA-F]{2,5});"));
/// Markup of chat templates other than this base's; what this base's tokenizer knows is found by the encoder.
static MARKUP: LazyLock<Regex> = LazyLock::new(|| {
    regex(
        r"<\|(?:im_start|im_end|eot_id|start_header_id|end_header_id|begin_of_text|endoftext|user|assistant|system|end|end_of_text|start_of_role)\|>|\[/?INST\]|<</?SYS>>|</?start_of_turn>|<end_of_turn>|<(?:bos|eos)>|</s>|<s>\[|###\s(?:Instruction|Response|Input|Human|Assistant):",
    )
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_encodings_are_told_from_right_ones() {
        for damaged in ["cafÃ©", "itâ€™s", "20Â°", "naÃ¯ve", "ä½ å¥½"] {
            assert!(is_mojibake(damaged), "{damaged}");
        }
        for fine in ["café", "it’s", "20°", "NÃO É", "你好", "«Ça»", "Ärger", "São Paulo"] {
            assert!(!is_mojibake(fine), "{fine}");
        }
        assert!(has_decomposed_letter("cafe\u{301}") && !has_decomposed_letter("café"));
        assert!(is_invisible('\u{200b}') && !is_invisible('\u{200d}'));
    }

    #[test]
    fn leftovers_of_other_formats_are_seen() {
        assert!(is_escaped("First\\nSecond\\nThird") && !is_escaped("print(\"a\\nb\\n\")") && is_escaped("caf\\u00e9"));
        assert!(ENTITY.is_match("Tom &amp; Mira") && !ENTITY.is_match("R&D; a&b"));
        assert!(
            MARKUP.is_match("[INST] hi [/INST]")
                && MARKUP.is_match("### Response: x")
                && !MARKUP.is_match("a < b | c > d")
        );
    }
}
