//! The examples that a model is advised for: their tokens, by the model's own tokenizer or by their characters, and their language.

use std::path::Path;

use unicode_script::{Script, UnicodeScript};

use super::catalogue::Candidate;
use crate::data::{Encoded, EncodedSet, Example, Format, Judged, LongPolicy, Row, read};
use crate::error::{Error, Result};
use crate::pull::{Presence, look_up};
use crate::run::OpenBase;

/// The examples where no file is given: their number, their tokens, and those of them that are trained.
const USUAL: (usize, usize, usize) = (1000, 256, 128);
/// Characters from which the language is told.
const LANGUAGE_CHARACTERS: usize = 4000;
/// Tokens that a chat template adds to a turn.
const TURN_TOKENS: usize = 5;

/// The examples.
pub(super) struct Examples {
    rows: Vec<Row>,
    /// The language of most of them (ISO 639-1), where it is told with certainty and known here.
    pub(super) language: Option<&'static str>,
}

/// The examples as one model sees them.
pub(super) struct Measured {
    /// Tokens of each sequence, and those of them that are trained.
    pub(super) lengths: Vec<(usize, usize)>,
    /// Their shape.
    pub(super) format: Format,
    /// Whether the model's own tokenizer counted.
    pub(super) is_exact: bool,
}

impl Examples {
    /// Those of a file, or usual ones.
    ///
    /// # Errors
    /// Those of the file; Input: it holds no example.
    pub(super) fn read(path: Option<&Path>) -> Result<Self> {
        let rows = path.map_or(Ok(Vec::new()), |path| read(path, None))?;
        if let (Some(path), true) = (path, rows.is_empty()) {
            return Err(Error::input(path, "holds no example").hint("docs/data.md lists the shapes of examples"));
        }
        let mut text = String::new();
        for row in &rows {
            let (prompt, answer) = texts(row.example.plain());
            text.extend(
                [prompt.as_str(), " ", answer.as_str(), " "].map(|part| part.chars().take(400).collect::<String>()),
            );
            if text.len() > LANGUAGE_CHARACTERS {
                break;
            }
        }
        let language = whatlang::detect(&text).filter(whatlang::Info::is_reliable).and_then(|info| code(info.lang()));
        Ok(Self { rows, language })
    }

    /// The examples as a model sees them; `own` is the model where it is open already.
    ///
    /// # Errors
    /// Those of the model's files, where they are on this machine.
    pub(super) fn measure(&self, candidate: &Candidate, own: Option<&OpenBase>) -> Result<Measured> {
        if self.rows.is_empty() {
            let (rows, tokens, trained) = USUAL;
            return Ok(Measured { lengths: vec![(tokens, trained); rows], format: Format::Chat, is_exact: false });
        }
        let opened = match (own, look_up(&candidate.base)) {
            (None, Ok(Presence::Here(_))) => Some(OpenBase::open(&candidate.base, &mut |_| {})?),
            _ => None,
        };
        let format = self.rows[0].example.plain().format();
        match own.or(opened.as_ref()) {
            Some(base) => {
                let set = base.encoder.encode_all(&self.rows, usize::MAX, LongPolicy::Drop)?;
                let lengths = set.sequences.iter().map(|one| (one.longest_tokens(), one.trained_tokens()));
                Ok(Measured { lengths: lengths.collect(), format, is_exact: true })
            }
            None => {
                let vocabulary = candidate.config.vocab_size;
                let lengths = self.rows.iter().map(|row| estimated(row.example.plain(), vocabulary));
                Ok(Measured { lengths: lengths.collect(), format, is_exact: false })
            }
        }
    }
}

/// A set of sequences of these lengths, which hold nothing.
pub(super) fn set_of(lengths: &[(usize, usize)]) -> EncodedSet {
    let sequence = |&(tokens, trained): &(usize, usize)| Encoded {
        ids: vec![0; tokens],
        trained: (0..tokens).map(|place| place + trained >= tokens).collect(),
        untrained_turns: 0,
        weight: 1.0,
        judged: Judged::Not,
    };
    let sequences: Vec<Encoded> = lengths.iter().map(sequence).collect();
    let tokens = lengths.iter().map(|(tokens, _)| tokens).sum();
    EncodedSet { sequences, tokens, ..EncodedSet::default() }
}

/// The text before the answers of an example, and the answers.
fn texts(example: &Example) -> (String, String) {
    match example {
        Example::PromptCompletion { prompt, completion } => (prompt.clone(), completion.clone()),
        Example::Alpaca { instruction, input, output, system } => {
            (format!("{} {instruction} {input}", system.as_deref().unwrap_or_default()), output.clone())
        }
        Example::Chat { messages, .. } => {
            let of = |is_answer: bool| {
                let turns = messages.iter().filter(|message| message.is_answer() == is_answer);
                turns.map(|message| message.content.as_str()).collect::<Vec<_>>().join(" ")
            };
            (of(false), of(true))
        }
        Example::Text { text } => (String::new(), text.clone()),
        Example::Class { text, .. } => (text.clone(), String::new()),
        Example::Preference { chosen: plain, .. } | Example::Labelled { answered: plain, .. } => texts(plain),
    }
}

/// The tokens of an example by its characters, and those of its answers.
fn estimated(example: &Example, vocabulary: usize) -> (usize, usize) {
    let (prompt, answer) = texts(example);
    let turns = match example {
        Example::Chat { messages, .. } => messages.len(),
        Example::Alpaca { .. } => 2,
        _ => 0,
    };
    let trained = tokens_of(&answer, vocabulary) + 1;
    (tokens_of(&prompt, vocabulary) + trained + turns * TURN_TOKENS, trained)
}

/// The tokens of a text by its characters. English has about 4.3 characters a token in vocabularies of 100,000 and more, 4 in those of
/// 50,000, 3.6 in those of 32,000; other alphabets half of that; Chinese characters are about 0.7 tokens in the large
/// vocabularies and 1.7 in the others.
fn tokens_of(text: &str, vocabulary: usize) -> usize {
    let (a_letter, a_character) = match vocabulary {
        100_000.. => (1.0 / 4.3, 0.7),
        45_000.. => (1.0 / 4.0, 1.7),
        _ => (1.0 / 3.6, 1.7),
    };
    let of = |symbol: char| match symbol.script() {
        Script::Han | Script::Hiragana | Script::Katakana | Script::Hangul => a_character,
        Script::Latin | Script::Common | Script::Inherited => a_letter,
        _ => 2.0 * a_letter,
    };
    text.chars().map(of).sum::<f64>().ceil() as usize
}

/// The code of a language in ISO 639-1, for those that models of the catalogue know.
fn code(language: whatlang::Lang) -> Option<&'static str> {
    use whatlang::Lang;
    Some(match language {
        Lang::Eng => "en",
        Lang::Cmn => "zh",
        Lang::Deu => "de",
        Lang::Fra => "fr",
        Lang::Spa => "es",
        Lang::Ita => "it",
        Lang::Por => "pt",
        Lang::Rus => "ru",
        Lang::Jpn => "ja",
        Lang::Kor => "ko",
        Lang::Ara => "ar",
        Lang::Hin => "hi",
        Lang::Nld => "nl",
        Lang::Ces => "cs",
        Lang::Pol => "pl",
        Lang::Tur => "tr",
        Lang::Tha => "th",
        Lang::Vie => "vi",
        Lang::Ind => "id",
        Lang::Ukr => "uk",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_of_each_script_count_as_their_tokens_do() {
        let english = "The parcel arrived two weeks late, and nobody answered my letters about it.";
        // SmolLM2's tokenizer makes 15 of plain words, fewer characters a token where there are names and numbers: 3.96 in
        // datasets/support_en.train.jsonl.
        let counts = [128_256, 49_152, 32_000].map(|vocabulary| tokens_of(english, vocabulary));
        assert_eq!(counts, [18, 19, 21]);
        // It makes 21 of these.
        let chinese = "包裹晚到了两周没有人回信";
        assert_eq!([151_936, 49_152].map(|vocabulary| tokens_of(chinese, vocabulary)), [9, 21]);
    }
}
