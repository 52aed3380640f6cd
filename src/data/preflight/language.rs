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
/// The share of frequent words of the usual language above which a text is in that language.
const COMMON_SHARE: f64 = 0.12;
/// The share of letters in the usual script below which a text is in another one.
const USUAL_LETTERS: f64 = 0.02;
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
            // Code and quoted words come in Latin letters everywhere.
            if answer.contains("```") || has_letters_of(usual, answer) {
                continue;
            }
            found.push((Code::OtherScript, format!("{} instead of {}", script.full_name(), usual.full_name())));
        } else if let Some(usual) = survey.usual_language
            && !has_common_words(answer, survey)
            && let Some(language) = language(answer)
            && language != usual
        {
            found.push((Code::OtherLanguage, format!("{} instead of {}", language.eng_name(), usual.eng_name())));
        }
    }
    if view.texts().any(has_mixed_word) {
        found.push((Code::MixedWord, String::new()));
    }
}

/// Whether more than a few letters of a text are in a script.
fn has_letters_of(script: Script, text: &str) -> bool {
    let letters = || text.chars().filter(|symbol| symbol.is_alphabetic());
    letters().filter(|letter| script_of(*letter) == script).count() as f64 > USUAL_LETTERS * letters().count() as f64
}

/// The words of the beginning of a text, in lower case.
pub(super) fn words(text: &str) -> impl Iterator<Item = String> {
    let end = text.char_indices().nth(LANGUAGE_CHARACTERS).map_or(text.len(), |(at, _)| at);
    text[..end].split(|symbol: char| !symbol.is_alphabetic()).filter(|word| !word.is_empty()).map(str::to_lowercase)
}

/// Whether so many words are frequent ones of the usual language that there is no need to tell the language: that takes a
/// hundred times as long.
fn has_common_words(text: &str, survey: &Survey) -> bool {
    let (mut common, mut all) = (0usize, 0usize);
    for word in words(text) {
        all += 1;
        common += usize::from(survey.common_words.contains(&word));
    }
    common as f64 >= COMMON_SHARE * all as f64
}

/// Whether a word has Latin and Cyrillic letters.
fn has_mixed_word(text: &str) -> bool {
    let is_cyrillic = |letter: char| ('\u{400}'..='\u{52f}').contains(&letter);
    text.chars().any(is_cyrillic)
        && text
            .split(|symbol: char| !symbol.is_alphabetic())
            .any(|word| word.chars().any(is_cyrillic) && word.chars().any(|letter| letter.is_ascii_alphabetic()))
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
        assert_eq!(
            language("let x = [1, 2, 3]; for (a, b) in x.iter() { println!(\"{}\", a + b); } // ".repeat(5).as_str()),
            None
        );
        assert!(has_mixed_word("P\u{430}ris") && !has_mixed_word("Paris и Лион"));
    }
}
