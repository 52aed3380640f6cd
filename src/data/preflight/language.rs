//! Scripts and languages of texts.

use std::collections::HashMap;

use unicode_script::{Script, UnicodeScript};
pub(super) use whatlang::Lang;

use super::catalogue::Code;
use super::survey::Survey;
use super::view::View;

/// The fewest letters by which a script is told.
const MIN_SCRIPT_LETTERS: usize = 10;
/// The fewest letters by which a language is told.
const MIN_LANGUAGE_LETTERS: usize = 100;
/// The characters from which the language is told.
const LANGUAGE_CHARACTERS: usize = 600;
/// The share of letters and spaces in prose; code and tables have less.
const PROSE: f64 = 0.93;

/// The script of a letter; the scripts of Japanese count as that of Chinese, which it mixes them with.
fn script_of(letter: char) -> Script {
    match letter {
        'a'..='z' | 'A'..='Z' => Script::Latin,
        _ => match letter.script() {
            Script::Hiragana | Script::Katakana | Script::Bopomofo => Script::Han,
            script => script,
        },
    }
}

/// The script of most letters of a text; `None` where there are few letters, or no script has most of them.
pub(super) fn script(text: &str) -> Option<Script> {
    let mut counts: HashMap<Script, usize> = HashMap::new();
    let mut letters = 0;
    for letter in text.chars().filter(|symbol| symbol.is_alphabetic()).take(LANGUAGE_CHARACTERS) {
        *counts.entry(script_of(letter)).or_default() += 1;
        letters += 1;
    }
    let (script, count) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    (letters >= MIN_SCRIPT_LETTERS && 2 * count > letters).then_some(script)
}

/// The language of a text of some length, where it can be told.
pub(super) fn language(text: &str) -> Option<Lang> {
    let end = text.char_indices().nth(LANGUAGE_CHARACTERS).map_or(text.len(), |(at, _)| at);
    let beginning = &text[..end];
    let (mut letters, mut prose, mut all) = (0usize, 0usize, 0usize);
    for symbol in beginning.chars() {
        all += 1;
        letters += usize::from(symbol.is_alphabetic());
        prose += usize::from(symbol.is_alphabetic() || symbol.is_whitespace() || ".,;:!?'’".contains(symbol));
    }
    if letters < MIN_LANGUAGE_LETTERS || (prose as f64) < PROSE * all as f64 {
        return None;
    }
    whatlang::detect(beginning).filter(whatlang::Info::is_reliable).map(|info| info.lang())
}

/// The findings about scripts and languages of a row.
pub(super) fn findings(view: &View<'_>, survey: &Survey, found: &mut Vec<(Code, String)>) {
    for answer in view.answers() {
        let (of_answer, usual) = (script(answer), survey.usual_script);
        if let (Some(script), Some(usual)) = (of_answer, usual)
            && script != usual
        {
            found.push((Code::OtherScript, format!("{} instead of {}", script.full_name(), usual.full_name())));
        } else if let (Some(language), Some(usual)) = (language(answer), survey.usual_language)
            && language != usual
        {
            found.push((Code::OtherLanguage, format!("{} instead of {}", language.eng_name(), usual.eng_name())));
        }
    }
    if view.texts().any(has_mixed_word) {
        found.push((Code::MixedWord, String::new()));
    }
}

/// Whether a word has Latin and Cyrillic letters.
fn has_mixed_word(text: &str) -> bool {
    let is_cyrillic = |letter: char| ('\u{400}'..='\u{52f}').contains(&letter);
    text.chars().any(is_cyrillic)
        && text.split(|symbol: char| !symbol.is_alphabetic()).any(|word| {
            word.chars().any(is_cyrillic) && word.chars().any(|letter| letter.is_ascii_alphabetic())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_and_languages_are_told_where_there_is_enough_text() {
        assert_eq!(script("Hello there, all of you"), Some(Script::Latin));
        assert_eq!(script("これは日本語の文章です、漢字もある"), Some(Script::Han));
        assert_eq!(script("Всем привет, как дела"), Some(Script::Cyrillic));
        assert_eq!((script("Hi"), script("12 + 30 = 42, 1 + 2 = 3")), (None, None));
        let english = "The library opens at ten in the morning and closes at four in the afternoon, on every day of the \
                       week but Monday, when all of the doors stay shut.";
        let french = "La bibliothèque ouvre à dix heures du matin et ferme à quatre heures de l'après-midi, tous les jours \
                      de la semaine sauf le lundi, quand toutes les portes restent fermées.";
        assert_eq!((language(english), language(french)), (Some(Lang::Eng), Some(Lang::Fra)));
        assert_eq!(language("let x = [1, 2, 3]; for (a, b) in x.iter() { println!(\"{}\", a + b); } // ".repeat(5).as_str()), None);
        assert!(has_mixed_word("P\u{430}ris") && !has_mixed_word("Paris и Лион"));
    }
}
