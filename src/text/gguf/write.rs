//! A tokenizer as the keys of a GGUF file's metadata.
//!
//! Which keys there are, and what they hold, is what llama.cpp's converter writes (`conversion/base.py`,
//! `_set_vocab_gpt2` and `_set_vocab_sentencepiece`). The keys are read again before anything is written: a tokenizer that
//! comes out as another one is refused.

use std::collections::HashMap;

use serde_json::Value;

use super::probes::{self, Probed};
use super::{BYTE, CONTROL, NORMAL, PRE_TOKENIZERS, PreTokenizer, UNKNOWN, UNUSED, USER_DEFINED};
use crate::error::{Error, Result};
use crate::files::gguf::{Array, Gguf, Value as Metadata, byte_of_token};
use crate::files::json as strict_json;
use crate::text::Tokenizer;

/// The pre-tokenizers to choose from, one for each way to split.
const WRITTEN: [&str; 6] = ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken"];
/// The score of an added token (`conversion/base.py`).
const ADDED_SCORE: f32 = -1000.0;

/// A tokenizer as a GGUF file holds it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// The keys under `tokenizer.`.
    pub metadata: Vec<(String, Metadata)>,
    /// Remarks on what llama.cpp does otherwise, a sentence each.
    pub notices: Vec<String>,
}

impl Tokenizer {
    /// The keys of a GGUF file whose embedding has `rows` rows. Tokens that the tokenizer lacks are filled up.
    ///
    /// # Errors
    /// Input: a tokenizer that is no BPE, that splits texts in a way that llama.cpp has no name for, that has more tokens
    /// than there are rows, or more end tokens than GGUF has keys for.
    pub fn to_gguf(&self, rows: usize) -> Result<GgufVocabulary> {
        let json = self.json()?;
        let words = Words::of(self, &json, rows)?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            let kind = model["type"].as_str().unwrap_or("(none named)");
            return Err(self.refused(format!("is of type {kind}, which GGUF has no place for; supported is BPE")));
        }
        let steps = flat(&[&json["normalizer"], &json["pre_tokenizer"]]);
        let is_byte_level = steps.iter().any(|step| step["type"] == "ByteLevel");
        let mut vocabulary = match is_byte_level {
            true => self.byte_level(&json, &words)?,
            false => self.sentencepiece(&json, &words, &steps)?,
        };
        vocabulary.notices.extend(self.flag_notices(&json, &steps));
        Ok(vocabulary)
    }

    fn refused(&self, message: impl Into<String>) -> Error {
        Error::input(self.place(), message)
            .hint("`merge` without `--format gguf` writes a Hugging Face folder with the tokenizer as it is")
    }

    fn byte_level(&self, json: &Value, words: &Words) -> Result<GgufVocabulary> {
        let whole_words = json["model"]["ignore_merges"] == true;
        let is_wanted = |pre: &&PreTokenizer| WRITTEN.contains(&pre.name) && pre.whole_words == whole_words;
        let candidates: Vec<&PreTokenizer> = PRE_TOKENIZERS.iter().filter(is_wanted).collect();
        let own = flat(&[&json["pre_tokenizer"]]);
        let stated = candidates.iter().filter(|pre| same_steps(&own, &flat(&[&pre.split.pre_tokenizer()])));
        let stated: Vec<&PreTokenizer> = stated.copied().collect();
        let candidates = if stated.is_empty() { candidates } else { stated };
        let merges = merges(json).map(|pair| pair.map(|(left, right)| format!("{left} {right}")));
        let merges: Option<Vec<String>> = merges.collect();
        let merges =
            merges.ok_or_else(|| self.refused("has a merge of a text with a space, which GGUF cannot hold"))?;
        let mut last = self.refused("splits texts in a way that llama.cpp has no name for");
        for pre in candidates {
            let mut metadata = words.metadata("gpt2", pre.name, None);
            metadata.push(("tokenizer.ggml.merges".to_owned(), strings(merges.clone())));
            metadata.extend(self.special_keys(json)?);
            match self.checked(metadata) {
                Ok(vocabulary) => return Ok(vocabulary),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn sentencepiece(&self, json: &Value, words: &Words, steps: &[&Value]) -> Result<GgufVocabulary> {
        if !steps.iter().any(|step| step.to_string().contains('▁')) {
            return Err(self.refused("is neither a byte-level BPE nor SentencePiece's; GGUF has no place for another"));
        }
        let scores = words.scores(json);
        let mut metadata = words.metadata("llama", "default", Some(scores));
        metadata.extend(self.special_keys(json)?);
        let adds_space = steps.iter().any(|step| match step["type"].as_str() {
            Some("Prepend") => true,
            Some("Metaspace") => step["prepend_scheme"] != "never" && step["add_prefix_space"] != false,
            _ => false,
        });
        metadata.push(("tokenizer.ggml.add_space_prefix".to_owned(), Metadata::Bool(adds_space)));
        self.checked(metadata)
    }

    /// The tokens with a key of their own, and the chat templates.
    fn special_keys(&self, json: &Value) -> Result<Vec<(String, Metadata)>> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let mut metadata = Vec::new();
        let named = self.named_tokens();
        let id_of = |name: &str| {
            let text = named.iter().find(|(other, _)| *other == name).map(|(_, text)| *text)?;
            self.token_to_id(text)
        };
        let own_eos = id_of("eos_token");
        let ends = self.eos_tokens();
        // llama.cpp finds the usual ones by their texts, if they are control tokens.
        let is_found = |id: u32| {
            self.is_special(id) && self.id_to_token(id).is_some_and(|text| crate::model::config::is_end_token(&text))
        };
        let mut further = ends.iter().copied().filter(|id| Some(*id) != own_eos && !is_found(*id));
        let eos = own_eos.or_else(|| ends.first().copied());
        let unknown = id_of("unk_token").or_else(|| self.token_to_id(json["model"]["unk_token"].as_str()?));
        let ids = [("bos", id_of("bos_token")), ("eos", eos), ("unknown", unknown)];
        let mut ids: Vec<(&str, Option<u32>)> = ids.into_iter().chain([("padding", id_of("pad_token"))]).collect();
        ids.extend(["eot", "eom"].map(|name| (name, further.find(|id| Some(*id) != eos))));
        if further.next().is_some() {
            let message = format!("has {} end tokens; GGUF has keys for three that are not the usual ones", ends.len());
            return Err(self.refused(message));
        }
        for (name, id) in ids {
            metadata.extend(id.map(|id| (key(&format!("{name}_token_id")), Metadata::U32(id))));
        }
        metadata.push((key("add_bos_token"), Metadata::Bool(self.adds_bos())));
        let templates = [
            ("tokenizer.chat_template", self.chat_template()),
            ("tokenizer.chat_template.tool_use", self.tool_use_template()),
        ];
        let texts =
            templates.into_iter().filter_map(|(key, text)| Some((key.to_owned(), Metadata::String(text?.to_owned()))));
        metadata.extend(texts);
        if self.tool_use_template().is_some() {
            metadata.push(("tokenizer.chat_templates".to_owned(), strings(vec!["tool_use".to_owned()])));
        }
        Ok(metadata)
    }

    /// Reads the keys again: plain texts must give the same ids. A difference around control tokens is a remark.
    fn checked(&self, metadata: Vec<(String, Metadata)>) -> Result<GgufVocabulary> {
        let again = Self::from_gguf(&Gguf::planned(self.place(), &metadata, &[], &[])?)?;
        let notices = match probes::compare(self, &again)? {
            Probed::Same => Vec::new(),
            Probed::DifferentAfterControlTokens(text) => vec![format!(
                "tokenizer: llama.cpp puts a space after a control token, where this tokenizer puts none; texts such as \
                 {text:?} get other ids there"
            )],
            Probed::Different(text) => {
                let message = format!("gives other ids than its GGUF form would, for {text:?}: GGUF cannot hold it");
                return Err(self.refused(message));
            }
        };
        Ok(GgufVocabulary { metadata, notices })
    }

    /// Remarks on steps and flags that GGUF has no place for.
    fn flag_notices(&self, json: &Value, steps: &[&Value]) -> Vec<String> {
        let mut notices = Vec::new();
        const NORMALIZERS: [&str; 4] = ["NFC", "NFKC", "NFD", "NFKD"];
        let normalizer = steps.iter().filter_map(|step| step["type"].as_str()).find(|kind| NORMALIZERS.contains(kind));
        if let Some(normalizer) = normalizer {
            notices.push(format!("tokenizer: llama.cpp does not apply its {normalizer} normalisation of Unicode"));
        }
        let strips = |token: &&Value| ["lstrip", "rstrip", "single_word"].iter().any(|flag| token[*flag] == true);
        let tokens = json["added_tokens"].as_array();
        if let Some(token) = tokens.into_iter().flatten().find(strips) {
            let text = token["content"].as_str().unwrap_or_default();
            notices.push(format!(
                "tokenizer: llama.cpp does not strip the spaces beside control tokens, as {text:?} does"
            ));
        }
        notices
    }

    /// The JSON form that the tokenizers crate writes.
    fn json(&self) -> Result<Value> {
        let text = self.parsing().to_string(false).map_err(|error| Error::input(self.place(), error.to_string()))?;
        strict_json::parse(self.place(), text.as_bytes())
    }
}

fn strings(items: Vec<String>) -> Metadata {
    Metadata::Array(Array::String(items))
}

/// The steps inside sequences, one after another.
fn flat<'a>(roots: &[&'a Value]) -> Vec<&'a Value> {
    let mut pending: Vec<&Value> = roots.iter().rev().copied().collect();
    let mut steps = Vec::new();
    while let Some(step) = pending.pop() {
        let inner = ["normalizers", "pretokenizers"].iter().find_map(|list| step[*list].as_array());
        match inner {
            Some(inner) => pending.extend(inner.iter().rev()),
            None if step.is_null() => {}
            None => steps.push(step),
        }
    }
    steps
}

/// Whether two lists of steps split texts in the same way by what they say.
fn same_steps(own: &[&Value], other: &[&Value]) -> bool {
    const DECIDING: [&str; 7] =
        ["type", "pattern", "behavior", "invert", "individual_digits", "use_regex", "add_prefix_space"];
    let same = |(own, other): (&&Value, &&Value)| DECIDING.iter().all(|key| own[*key] == other[*key]);
    own.len() == other.len() && own.iter().zip(other).all(same)
}

/// The merges as pairs; `None` for one with a space.
fn merges(json: &Value) -> impl Iterator<Item = Option<(&str, &str)>> {
    let merges = json["model"]["merges"].as_array().into_iter().flatten();
    merges.map(|pair| {
        let (left, right) = (pair[0].as_str()?, pair[1].as_str()?);
        (!left.contains(' ') && !right.contains(' ')).then_some((left, right))
    })
}

/// The tokens by id, with their types.
struct Words {
    tokens: Vec<String>,
    types: Vec<i64>,
    added: Vec<bool>,
}

impl Words {
    fn of(tokenizer: &Tokenizer, json: &Value, rows: usize) -> Result<Self> {
        if tokenizer.vocab_size() > rows {
            let message = format!("has {} tokens, and the embedding {rows} rows", tokenizer.vocab_size());
            return Err(tokenizer.refused(message));
        }
        let mut words = Self {
            tokens: (0..rows).map(|id| format!("[PAD{id}]")).collect(),
            types: vec![UNUSED; rows],
            added: vec![false; rows],
        };
        let unknown = json["model"]["unk_token"].as_str();
        let has_byte_tokens = json["model"]["byte_fallback"] == true;
        for (token, id) in json["model"]["vocab"].as_object().into_iter().flatten() {
            let kind = match token.as_str() {
                token if unknown == Some(token) => UNKNOWN,
                token if has_byte_tokens && byte_of_token(token).is_some() => BYTE,
                _ => NORMAL,
            };
            words.put(id, token.clone(), kind, false);
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let text = token["content"].as_str().unwrap_or_default();
            match token["special"] == true {
                true if unknown == Some(text) && has_byte_tokens => {
                    words.put(&token["id"], text.to_owned(), UNKNOWN, true)
                }
                true => words.put(&token["id"], text.to_owned(), CONTROL, true),
                // llama.cpp looks for these before it turns spaces into SentencePiece's sign.
                false => words.put(&token["id"], text.replace('▁', " "), USER_DEFINED, true),
            }
        }
        Ok(words)
    }

    fn put(&mut self, id: &Value, token: String, kind: i64, is_added: bool) {
        let Some(id) = id.as_u64().map(|id| id as usize).filter(|id| *id < self.tokens.len()) else { return };
        (self.tokens[id], self.types[id], self.added[id]) = (token, kind, is_added);
    }

    fn metadata(&self, model: &str, pre: &str, scores: Option<Vec<f32>>) -> Vec<(String, Metadata)> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let types = self.types.iter().map(|kind| *kind as i32).collect();
        let mut metadata = vec![
            (key("model"), Metadata::String(model.to_owned())),
            (key("pre"), Metadata::String(pre.to_owned())),
            (key("tokens"), strings(self.tokens.clone())),
        ];
        metadata.extend(scores.map(|scores| (key("scores"), Metadata::Array(Array::F32(scores)))));
        metadata.push((key("token_type"), Metadata::Array(Array::I32(types))));
        metadata
    }

    /// SentencePiece's scores, which say which pieces are joined first: 0 for the product of the first merge, -1 for the
    /// next one, and so on, as its own trainer numbers them. Pieces of one character come after these.
    fn scores(&self, json: &Value) -> Vec<f32> {
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (left, right) in merges(json).flatten() {
            let next = ranks.len();
            ranks.entry(format!("{left}{right}")).or_insert(next);
        }
        let mut next = ranks.len();
        let score = |((token, kind), is_added): ((&String, &i64), &bool)| match (*kind, is_added) {
            (UNKNOWN | BYTE, _) => 0.0,
            (CONTROL, _) if !ranks.contains_key(token) => 0.0,
            (_, true) => ADDED_SCORE,
            _ => {
                let rank = ranks.get(token).copied().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                });
                -(rank as f32)
            }
        };
        self.tokens.iter().zip(&self.types).zip(&self.added).map(score).collect()
    }
}
