//! The vocabulary in a GGUF file's metadata, rewritten as a `tokenizer.json`.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::{CONTROL, NORMAL, PRE_TOKENIZERS, UNKNOWN, USER_DEFINED, byte_level};
use crate::error::{Error, Result};
use crate::files::gguf::{Gguf, Value as Metadata};
use crate::text::Tokenizer;
use crate::text::templates::Templates;
use crate::text::tokenizer::{NamedTokens, Surroundings};

impl Tokenizer {
    /// Builds the tokenizer of a GGUF file from its metadata.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Vocabulary::of(gguf)?.tokenizer(gguf.place())
    }
}

/// The metadata of a GGUF vocabulary. The reader has checked that the arrays belong together.
#[derive(Debug, Default)]
struct Vocabulary<'a> {
    model: &'a str,
    pre: Option<&'a str>,
    tokens: &'a [String],
    token_types: Vec<i64>,
    scores: Option<&'a [f32]>,
    merges: Option<&'a [String]>,
    bos: Option<u64>,
    eos: Option<u64>,
    /// End-of-turn and end-of-message tokens.
    more_eos: Vec<u64>,
    unk: Option<u64>,
    pad: Option<u64>,
    adds_bos: Option<bool>,
    adds_space: Option<bool>,
    chat_template: Option<&'a str>,
    tool_use_template: Option<&'a str>,
}

/// `tokenizer.KEY` as the type that `read` takes it for; an error where it has another type.
fn field<'a, T>(
    gguf: &'a Gguf,
    key: &str,
    expected: &str,
    read: impl Fn(&'a Metadata) -> Option<T>,
) -> Result<Option<T>> {
    let key = format!("tokenizer.{key}");
    let Some(value) = gguf.get(&key) else { return Ok(None) };
    match read(value) {
        Some(value) => Ok(Some(value)),
        None => {
            Err(Error::input(gguf.place(), format!("`{key}` is of type {}; expected {expected}", value.type_name())))
        }
    }
}

impl<'a> Vocabulary<'a> {
    fn of(gguf: &'a Gguf) -> Result<Self> {
        let id = |key: &str| field(gguf, &format!("ggml.{key}_token_id"), "an integer", Metadata::as_u64);
        let text = |key: &str| field(gguf, key, "a string", Metadata::as_str);
        let flag = |key: &str| field(gguf, key, "a boolean", Metadata::as_bool);
        let strings = |key: &str| field(gguf, key, "an array of strings", Metadata::as_strings);
        let Some(model) = text("ggml.model")? else {
            return Err(Error::input(gguf.place(), "`tokenizer.ggml.model` is missing: this file has no tokenizer"));
        };
        Ok(Self {
            model,
            pre: text("ggml.pre")?,
            tokens: strings("ggml.tokens")?.unwrap_or_default(),
            token_types: field(gguf, "ggml.token_type", "an array of integers", Metadata::as_integers)?
                .unwrap_or_default(),
            scores: field(gguf, "ggml.scores", "an array of f32", Metadata::as_f32s)?,
            merges: strings("ggml.merges")?,
            bos: id("bos")?,
            eos: id("eos")?,
            more_eos: [id("eot")?, id("eom")?].into_iter().flatten().collect(),
            unk: id("unknown")?,
            pad: id("padding")?,
            adds_bos: flag("ggml.add_bos_token")?,
            adds_space: flag("ggml.add_space_prefix")?,
            chat_template: text("chat_template")?,
            tool_use_template: text("chat_template.tool_use")?,
        })
    }

    /// Builds the tokenizer. `place` is the GGUF file.
    fn tokenizer(self, place: &str) -> Result<Tokenizer> {
        self.check(place)?;
        let parts = match self.model {
            "gpt2" => self.byte_level(place)?,
            "llama" => self.sentencepiece(place)?,
            other => {
                let message = format!("`tokenizer.ggml.model` {other:?} is not supported; supported: gpt2, llama");
                return Err(Error::input(place, message));
            }
        };
        let adds_bos = self.adds_bos.unwrap_or(parts.adds_bos);
        let named = NamedTokens {
            bos: self.token(self.bos),
            eos: self.token(self.eos),
            unk: self.token(self.unk),
            pad: self.token(self.pad),
        };
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": parts.normalizer,
            "pre_tokenizer": parts.pre_tokenizer,
            "post_processor": post_processor(named.bos.as_deref().filter(|_| adds_bos), self.bos),
            "decoder": parts.decoder,
            "model": parts.model,
        });
        let more_eos_ids = self.more_eos.iter().filter_map(|id| u32::try_from(*id).ok()).collect();
        let owned = |text: Option<&str>| text.map(str::to_owned);
        let templates = Templates::new(owned(self.chat_template), owned(self.tool_use_template));
        Tokenizer::from_parts(
            place.into(),
            json,
            Surroundings { named, more_eos_ids, adds_bos, templates, template_is_chosen: false },
        )
    }

    fn token(&self, id: Option<u64>) -> Option<String> {
        self.tokens.get(usize::try_from(id?).ok()?).cloned()
    }

    fn check(&self, place: &str) -> Result<()> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(Error::input(place, "`tokenizer.ggml.tokens` is missing or empty"));
        }
        let ids = [("bos", self.bos), ("eos", self.eos), ("unknown", self.unk), ("padding", self.pad)];
        for (key, id) in ids {
            if let Some(id) = id.filter(|id| *id >= count as u64) {
                let message = format!("`tokenizer.ggml.{key}_token_id` {id} is outside the {count} tokens");
                return Err(Error::input(place, message));
            }
        }
        let mut seen = HashMap::with_capacity(count);
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = seen.insert(token.as_str(), id) {
                return Err(Error::input(place, format!("token {id} {token:?} is also token {first}")));
            }
        }
        match self.scores.unwrap_or_default().iter().position(|score| !score.is_finite()) {
            Some(id) => Err(Error::input(place, format!("`tokenizer.ggml.scores[{id}]` is not finite"))),
            None => Ok(()),
        }
    }

    fn token_type(&self, id: usize) -> i64 {
        self.token_types.get(id).copied().unwrap_or(NORMAL)
    }

    /// Control tokens and the tokens with a name are special; user-defined ones are matched whole in any text.
    fn added_tokens(&self) -> Value {
        let named: HashSet<usize> = [self.bos, self.eos, self.unk, self.pad]
            .into_iter()
            .flatten()
            .filter_map(|id| id.try_into().ok())
            .collect();
        let added = self.tokens.iter().enumerate().filter_map(|(id, token)| {
            let token_type = self.token_type(id);
            let special = matches!(token_type, CONTROL | UNKNOWN) || named.contains(&id);
            (special || token_type == USER_DEFINED || self.is_mistyped(token)).then(|| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": special,
                })
            })
        });
        added.collect()
    }

    /// Whether a token is matched whole whatever its type says: it looks like a control token, and the chat template
    /// writes it. llama.cpp overrides the types of such tokens, too, by a list of their texts.
    fn is_mistyped(&self, token: &str) -> bool {
        let looks = |open: &str, close: &str| {
            token.len() > open.len() + close.len() && token.starts_with(open) && token.ends_with(close)
        };
        let is_turn = matches!(token, "<start_of_turn>" | "<end_of_turn>");
        (is_turn || looks("<|", "|>") || looks("<｜", "｜>"))
            && self.chat_template.is_some_and(|template| template.contains(token))
    }

    fn vocab(&self) -> Value {
        Value::Object(self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect())
    }

    /// Byte-level BPE.
    fn byte_level(&self, place: &str) -> Result<Parts> {
        let Some(name) = self.pre.filter(|name| !name.is_empty()) else {
            let message = "`tokenizer.ggml.pre` is missing: nothing says how texts were split before the merges, and other \
                           splits give other tokens";
            return Err(Error::input(place, message)
                .hint("convert the model again with a current llama.cpp, or name its pre-tokenizer with `gguf-new-metadata --pre-tokenizer`"));
        };
        let Some(pre) = PRE_TOKENIZERS.iter().find(|pre| pre.name == name) else {
            let known: Vec<&str> = PRE_TOKENIZERS.iter().map(|pre| pre.name).collect();
            let message = format!("pre-tokenizer {name:?} is not supported; supported: {}", known.join(", "));
            return Err(Error::input(place, message));
        };
        let Some(merges) = self.merges else {
            return Err(Error::input(place, "`tokenizer.ggml.merges` is missing"));
        };
        let pairs: Vec<Value> = merges
            .iter()
            .enumerate()
            .map(|(index, merge)| match merge.split_once(' ') {
                Some((left, right)) => Ok(json!([left, right])),
                None => Err(Error::input(place, format!("`tokenizer.ggml.merges[{index}]` {merge:?} is not a pair"))),
            })
            .collect::<Result<_>>()?;
        let model = bpe(self.vocab(), pairs, Map::from_iter([("ignore_merges".into(), json!(pre.whole_words))]));
        let pre_tokenizer = pre.split.pre_tokenizer();
        let decoder = byte_level(true);
        Ok(Parts { model, normalizer: Value::Null, pre_tokenizer, decoder, adds_bos: pre.adds_bos })
    }

    /// SentencePiece BPE. A space comes before the text and after every control token, as in SentencePiece and
    /// llama.cpp; transformers 5.23 leaves it out where the text begins with one.
    fn sentencepiece(&self, place: &str) -> Result<Parts> {
        let merges = match (self.merges, self.scores) {
            (Some(merges), _) => merges.iter().filter_map(|merge| merge.split_once(' ')).collect(),
            (None, Some(scores)) => merges_from_scores(self.tokens, scores),
            (None, None) => return Err(Error::input(place, "`tokenizer.ggml.scores` is missing")),
        };
        let pairs = merges.into_iter().map(|(left, right)| json!([left, right])).collect();
        let mut options = Map::from_iter([("fuse_unk".into(), json!(true)), ("byte_fallback".into(), json!(true))]);
        if let Some(unknown) = self.token(self.unk) {
            options.insert("unk_token".into(), json!(unknown));
        }
        let adds_space = self.adds_space.unwrap_or(true);
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if adds_space {
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        if adds_space {
            normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        }
        Ok(Parts {
            model: bpe(self.vocab(), pairs, options),
            normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
            pre_tokenizer: Value::Null,
            decoder: json!({"type": "Sequence", "decoders": decoders}),
            adds_bos: true,
        })
    }
}

/// The parts of a `tokenizer.json` that a vocabulary becomes.
struct Parts {
    model: Value,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    /// Whether the beginning-of-text token is added where the file does not say.
    adds_bos: bool,
}

/// A BPE model with options beside the defaults.
fn bpe(vocab: Value, merges: Vec<Value>, options: Map<String, Value>) -> Value {
    let mut model = Map::from_iter([
        ("type".into(), json!("BPE")),
        ("dropout".into(), Value::Null),
        ("unk_token".into(), Value::Null),
        ("continuing_subword_prefix".into(), Value::Null),
        ("end_of_word_suffix".into(), Value::Null),
        ("fuse_unk".into(), json!(false)),
        ("byte_fallback".into(), json!(false)),
        ("ignore_merges".into(), json!(false)),
    ]);
    model.extend(options);
    model.insert("vocab".into(), vocab);
    model.insert("merges".into(), Value::Array(merges));
    Value::Object(model)
}

/// The merges that a scored vocabulary implies: every way to cut a piece into two pieces, best score first,
/// longer left parts first among equals, then longer right parts (transformers' `generate_merges`).
fn merges_from_scores<'a>(tokens: &'a [String], scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let mut cuts: Vec<_> = token
            .char_indices()
            .enumerate()
            .skip(1)
            .filter_map(|(left_chars, (at, _))| {
                let (left, right) = token.split_at(at);
                Some((ids.get(left)?, ids.get(right)?, left_chars, left, right))
            })
            .collect();
        cuts.sort_by_key(|(left, right, ..)| (**left, **right));
        let chars = token.chars().count();
        merges.extend(
            cuts.into_iter()
                .map(|(_, _, left_chars, left, right)| (*score, left_chars, chars - left_chars, left, right)),
        );
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    merges.into_iter().map(|(_, _, _, left, right)| (left, right)).collect()
}

/// Puts `bos` before a text, or nothing.
fn post_processor(bos: Option<&str>, id: Option<u64>) -> Value {
    let sequence = |name: &str, type_id: u32| json!({"Sequence": {"id": name, "type_id": type_id}});
    let mut single = vec![sequence("A", 0)];
    let mut pair = vec![sequence("A", 0), sequence("B", 1)];
    let mut special_tokens = json!({});
    if let (Some(bos), Some(id)) = (bos, id) {
        let token = |type_id: u32| json!({"SpecialToken": {"id": bos, "type_id": type_id}});
        single.insert(0, token(0));
        pair.insert(0, token(0));
        pair.insert(2, token(1));
        special_tokens[bos] = json!({"id": bos, "ids": [id], "tokens": [bos]});
    }
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special_tokens})
}
