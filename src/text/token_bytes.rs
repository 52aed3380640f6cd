//! The bytes that each token stands for: decoding that is constrained works on bytes, not on characters.

use std::collections::HashMap;

use serde_json::Value;

use super::Tokenizer;
use crate::error::{Error, Result};

impl Tokenizer {
    /// The bytes of each token within a text, by id; none for control tokens, the unknown token and ids without a token.
    ///
    /// # Errors
    /// Input: a decoder whose tokens do not stand for bytes one by one.
    pub fn token_bytes(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let decoder = serde_json::to_value(self.parsing().get_decoder());
        let decoder = decoder.map_err(|error| Error::failed(self.place(), error.to_string()))?;
        let Some(spelling) = Spelling::of(&decoder) else {
            let message = "the tokens of this tokenizer do not stand for bytes one by one";
            let hint = "answers can be constrained with byte-level and SentencePiece tokenizers";
            return Err(Error::input(self.place(), message).hint(hint));
        };
        let bytes = (0..self.vocab_size() as u32).map(|id| {
            let is_text = !self.is_special(id) && self.unknown() != Some(id);
            let token = if is_text { self.id_to_token(id) } else { None };
            token.map(|token| spelling.bytes(&token))
        });
        Ok(bytes.collect())
    }
}

/// The way in which the vocabulary spells bytes.
enum Spelling {
    /// A letter for each byte, as GPT-2 has it.
    Letters(HashMap<char, u8>),
    /// Characters, with replacements in order, and tokens such as `<0x0A>` where `has_byte_tokens`.
    Characters { replacements: Vec<(String, String)>, has_byte_tokens: bool },
}

impl Spelling {
    /// The spelling that a decoder undoes.
    fn of(decoder: &Value) -> Option<Self> {
        let mut steps = Vec::new();
        flatten(decoder, &mut steps);
        let (mut replacements, mut has_byte_tokens) = (Vec::new(), false);
        for step in steps {
            match step["type"].as_str()? {
                "ByteLevel" => return Some(Self::Letters(letters())),
                "ByteFallback" => has_byte_tokens = true,
                "Replace" => {
                    let (found, written) = (step["pattern"]["String"].as_str()?, step["content"].as_str()?);
                    replacements.push((found.to_owned(), written.to_owned()));
                }
                "Metaspace" => replacements.push((step["replacement"].as_str()?.to_owned(), " ".to_owned())),
                // They change the text as a whole, at its start.
                "Fuse" | "Strip" => {}
                _ => return None,
            }
        }
        (!replacements.is_empty() || has_byte_tokens).then_some(Self::Characters { replacements, has_byte_tokens })
    }

    fn bytes(&self, token: &str) -> Vec<u8> {
        match self {
            // As the `tokenizers` crate does: a token with any other letter stands for itself.
            Self::Letters(letters) => {
                let bytes: Option<Vec<u8>> = token.chars().map(|letter| letters.get(&letter).copied()).collect();
                bytes.unwrap_or_else(|| token.as_bytes().to_vec())
            }
            Self::Characters { replacements, has_byte_tokens } => {
                let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                let byte = digits.filter(|digits| digits.len() == 2 && *has_byte_tokens);
                if let Some(byte) = byte.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                    return vec![byte];
                }
                let replaced = replacements.iter().fold(token.to_owned(), |token, (found, written)| {
                    if found.is_empty() { token } else { token.replace(found.as_str(), written) }
                });
                replaced.into_bytes()
            }
        }
    }
}

/// The steps of a decoder, sequences within sequences undone.
fn flatten<'a>(decoder: &'a Value, steps: &mut Vec<&'a Value>) {
    match decoder["decoders"].as_array() {
        Some(inner) => inner.iter().for_each(|step| flatten(step, steps)),
        None => steps.push(decoder),
    }
}

/// GPT-2's letters: printable bytes of Latin-1 stand for themselves, the others for the code points from 256 on (`bytes_to_unicode`).
fn letters() -> HashMap<char, u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = (256u32..).filter_map(char::from_u32);
    let letter = |byte: u8| if is_printable(byte) { Some(char::from(byte)) } else { others.next() };
    (0..=u8::MAX).map(letter).zip(0..=u8::MAX).filter_map(|(letter, byte)| Some((letter?, byte))).collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::model::BaseFiles;

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
    }

    #[test]
    fn the_bytes_of_the_tokens_of_a_text_are_those_of_the_text() {
        for (file, is_sentence_piece) in [
            ("gguf/smollm.gguf", false),
            ("gguf/qwen2.gguf", false),
            ("gguf/llama_bpe.gguf", false),
            ("gguf/spm.gguf", true),
        ] {
            let tokenizer = Tokenizer::of_base(&BaseFiles::open(&fixture(file)).expect("a base")).expect("a tokenizer");
            let bytes = tokenizer.token_bytes().expect("bytes");
            assert_eq!(bytes.len(), tokenizer.vocab_size());
            for text in ["{\"a\": [1, 2.5e3],\n\t\"é\": null}", "naïve 東京 🦀\u{1}", "  two  spaces "] {
                let ids = tokenizer.encode(text).expect("ids");
                let whole: Vec<u8> = ids.iter().flat_map(|id| bytes[*id as usize].clone().expect("text")).collect();
                // SentencePiece puts a space before a text, which its decoder takes away again.
                let start = usize::from(is_sentence_piece);
                assert_eq!(String::from_utf8_lossy(&whole[start..]), text, "{file}");
            }
            for (_, id) in tokenizer.special_tokens() {
                assert_eq!(bytes[id as usize], None, "{file}");
            }
        }
    }

    #[test]
    fn the_bytes_of_every_token_are_those_that_it_decodes_to() {
        for file in ["gguf/smollm.gguf", "gguf/spm.gguf", "gguf/qwen2.gguf", "gguf/llama_bpe.gguf"] {
            let tokenizer = Tokenizer::of_base(&BaseFiles::open(&fixture(file)).expect("a base")).expect("a tokenizer");
            let lead = tokenizer.encode("a").expect("ids");
            let before = tokenizer.decode(&lead, false).expect("a text");
            let mut compared = 0;
            for (id, bytes) in (0..).zip(tokenizer.token_bytes().expect("bytes")) {
                let Some(Ok(text)) = bytes.map(String::from_utf8) else { continue };
                let ids: Vec<u32> = lead.iter().copied().chain([id]).collect();
                assert_eq!(tokenizer.decode(&ids, false).expect("a text"), format!("{before}{text}"), "{file}: {id}");
                compared += 1;
            }
            assert!(compared > 100, "{file}: {compared}");
        }
    }

    #[test]
    fn decoders_that_join_words_are_refused() {
        for decoder in ["{\"type\": \"WordPiece\", \"prefix\": \"##\", \"cleanup\": true}", "null"] {
            let decoder: Value = serde_json::from_str(decoder).expect("JSON");
            assert!(Spelling::of(&decoder).is_none(), "{decoder}");
        }
    }
}
