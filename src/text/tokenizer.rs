//! The tokenizer: text to ids, ids to text, and the special tokens of a model.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::check;
use super::save::written_files;
use super::templates::Templates;
use crate::error::{Error, Result};
use crate::files::{hex, json as strict_json};
use crate::model::BaseFiles;

/// The largest `tokenizer.json` read; the largest known ones are about 35 MB.
pub(super) const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// The most values in it; the largest known ones have two million. Each takes 32 bytes or more in memory.
const MAX_JSON_ITEMS: usize = 5_000_000;
/// Text to token ids and back. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    /// Special-token text in the input becomes control tokens.
    parsing: tokenizers::Tokenizer,
    /// The same with special-token text left as ordinary text.
    ordinary: tokenizers::Tokenizer,
    place: String,
    special_ids: HashMap<String, u32>,
    /// Whether a token is special, by id; the unknown token is not counted, since ordinary text can give it.
    is_control: Vec<bool>,
    unknown: Option<u32>,
    surroundings: Surroundings,
    eos_tokens: Vec<u32>,
    puts_space_first: bool,
    splits_at_control_tokens: bool,
    vocab_size: usize,
    source: Source,
}

/// The source of the files for [`Tokenizer::save`].
#[derive(Clone)]
pub(super) enum Source {
    Folder(PathBuf),
    Written(Vec<(&'static str, Vec<u8>)>),
}

/// The tokens with a name of their own, as text.
#[derive(Debug, Clone, Default)]
pub(super) struct NamedTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

/// The facts of a tokenizer beside its JSON form.
#[derive(Debug, Clone, Default)]
pub(super) struct Surroundings {
    pub named: NamedTokens,
    /// Further ids that end a text or a turn.
    pub more_eos_ids: Vec<u32>,
    pub adds_bos: bool,
    pub templates: Templates,
    /// The template came from elsewhere than the tokenizer's files.
    pub template_is_chosen: bool,
}

impl Tokenizer {
    /// The tokenizer that a base model brings: in its folder, or in its GGUF file.
    pub fn of_base(base: &BaseFiles) -> Result<Self> {
        match base.gguf() {
            Some(gguf) => Self::from_gguf(gguf),
            None => Self::from_folder(base.path()),
        }
    }

    /// Reads the tokenizer from the bytes of a `tokenizer.json` alone. `name` stands in messages.
    pub fn from_json(bytes: &[u8], name: &str) -> Result<Self> {
        let value = Self::parse(name, bytes)?;
        let text = value.to_string();
        Self::build(
            name.into(),
            value,
            Surroundings::default(),
            Source::Written(vec![("tokenizer.json", text.into_bytes())]),
        )
    }

    /// Builds a tokenizer from its JSON form and writes the files that [`Tokenizer::save`] will need.
    pub(super) fn from_parts(place: String, value: Value, surroundings: Surroundings) -> Result<Self> {
        let files = written_files(&value, &surroundings);
        Self::build(place, value, surroundings, Source::Written(files))
    }

    /// Parses the JSON of a tokenizer, unless it would take many times the memory of the file.
    pub(super) fn parse(place: &str, bytes: &[u8]) -> Result<Value> {
        let items = bytes.iter().filter(|byte| b",[{".contains(byte)).count();
        if items > MAX_JSON_ITEMS {
            return Err(Error::input(
                place,
                format!("has about {items} items; at most {MAX_JSON_ITEMS} are supported"),
            ));
        }
        strict_json::parse(place, bytes)
    }

    pub(super) fn build(place: String, mut value: Value, surroundings: Surroundings, source: Source) -> Result<Self> {
        check::checked(&place, &mut value)?;
        let puts_space_first = puts_space_first(&value);
        let unknown = unknown_id(&value);
        // The checks before should leave nothing that panics; if something does, it is still only an error.
        let parsing = catch_unwind(AssertUnwindSafe(|| serde_json::from_value::<tokenizers::Tokenizer>(value)))
            .map_err(|_| Error::input(&place, "the tokenizers crate cannot read this file"))?
            .map_err(|error| Error::input(&place, format!("not a tokenizer: {error}")))?;
        let mut ordinary = parsing.clone();
        ordinary.set_encode_special_tokens(true);

        let added = parsing.get_added_tokens_decoder();
        let takes_neighbours =
            added.values().any(|token| token.special && (token.lstrip || token.rstrip || token.single_word));
        let special_ids: HashMap<String, u32> =
            added.into_iter().filter(|(_, token)| token.special).map(|(id, token)| (token.content, id)).collect();
        let vocab_size = parsing.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let mut is_control = vec![false; vocab_size];
        for id in special_ids.values().filter(|id| Some(**id) != unknown) {
            if let Some(flag) = is_control.get_mut(*id as usize) {
                *flag = true;
            }
        }
        let mut eos_tokens: Vec<u32> = Vec::new();
        let eos = surroundings.named.eos.as_deref().and_then(|eos| parsing.token_to_id(eos));
        for id in eos.into_iter().chain(surroundings.more_eos_ids.iter().copied()) {
            if (id as usize) < vocab_size && !eos_tokens.contains(&id) {
                eos_tokens.push(id);
            }
        }
        Ok(Self(Arc::new(Inner {
            parsing,
            ordinary,
            place,
            special_ids,
            is_control,
            unknown,
            surroundings,
            eos_tokens,
            puts_space_first,
            splits_at_control_tokens: !puts_space_first && !takes_neighbours,
            vocab_size,
            source,
        })))
    }

    /// The same tokenizer with these added tokens as control tokens.
    ///
    /// # Errors
    /// Input: the tokenizers crate cannot read what it wrote.
    pub fn with_control_tokens(&self, texts: &HashSet<String>) -> Result<Self> {
        let Inner { parsing, place, surroundings, source, .. } = &*self.0;
        let text = parsing.to_string(false).map_err(|error| Error::input(place, error.to_string()))?;
        let mut value = strict_json::parse(place, text.as_bytes())?;
        for token in value["added_tokens"].as_array_mut().into_iter().flatten() {
            if token["content"].as_str().is_some_and(|content| texts.contains(content)) {
                token["special"] = json!(true);
            }
        }
        Self::build(place.clone(), value, surroundings.clone(), source.clone())
    }

    /// Ids of ordinary text. Adds no special tokens, and text that spells a control token stays text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.ids(&self.0.ordinary, text)?;
        if ids.iter().any(|id| self.is_special(*id)) {
            // Only models that look whole words up in the vocabulary can get here.
            return Err(Error::input(
                &self.0.place,
                "text spells a control token, and this tokenizer cannot distinguish the two",
            ));
        }
        Ok(ids)
    }

    /// Ids of text in which special-token text stands for control tokens (what a chat template renders).
    pub fn encode_with_special(&self, text: &str) -> Result<Vec<u32>> {
        self.ids(&self.0.parsing, text)
    }

    /// [`Self::encode_with_special`] for text that goes on after other text: without the space that some
    /// tokenizers put before the first word.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        self.continued(&self.0.parsing, text)
    }

    /// [`Self::encode`] for text that goes on after other text.
    pub fn encode_ordinary_continuation(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.continued(&self.0.ordinary, text)?;
        match ids.iter().any(|id| self.is_special(*id)) {
            true => self.encode(text),
            false => Ok(ids),
        }
    }

    /// Whether the ids of a text with control tokens are those of its pieces, if it is cut behind a control token: each
    /// piece is encoded on its own, and no control token takes white space beside it.
    pub fn splits_at_control_tokens(&self) -> bool {
        self.0.splits_at_control_tokens
    }

    /// A text that differs between two tokenizers that encode some text differently, or whose special tokens have other
    /// parts to play.
    ///
    /// # Errors
    /// Failed: the tokenizers crate cannot write this tokenizer.
    pub fn identity(&self) -> Result<String> {
        let Inner { parsing, place, surroundings, .. } = &*self.0;
        let text = parsing.to_string(false).map_err(|error| Error::failed(place, error.to_string()))?;
        Ok(format!("{text}{surroundings:?}"))
    }

    fn continued(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
        if !self.0.puts_space_first || text.is_empty() {
            return self.ids(tokenizer, text);
        }
        // A line feed takes the space, as in transformers; where the vocabulary joins it with what follows, a character
        // that no text has.
        for taker in ["\n", "\u{1}"] {
            let lead = self.ids(tokenizer, taker)?;
            let ids = self.ids(tokenizer, &format!("{taker}{text}"))?;
            if let Some(rest) = ids.strip_prefix(lead.as_slice()) {
                return Ok(rest.to_vec());
            }
        }
        self.ids(tokenizer, text)
    }

    fn ids(&self, tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
        catch_unwind(AssertUnwindSafe(|| tokenizer.encode_fast(text, false)))
            .map_err(|_| Error::input(&self.0.place, "the tokenizers crate failed on a text with this tokenizer"))?
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| Error::input(&self.0.place, format!("cannot encode a text: {error}")))
    }

    /// The places of the tokens of ordinary text, in bytes. Tokens that share a character overlap.
    pub fn offsets(&self, text: &str) -> Result<Vec<Range<usize>>> {
        catch_unwind(AssertUnwindSafe(|| self.0.ordinary.encode(text, false)))
            .map_err(|_| Error::input(&self.0.place, "the tokenizers crate failed on a text with this tokenizer"))?
            .map(|encoding| encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect())
            .map_err(|error| Error::input(&self.0.place, format!("cannot encode a text: {error}")))
    }

    /// Text of ids; with `skip_special`, control tokens give no text. Broken UTF-8 is replaced; unknown ids
    /// give no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        catch_unwind(AssertUnwindSafe(|| self.0.parsing.decode(ids, skip_special)))
            .map_err(|_| Error::input(&self.0.place, "the tokenizers crate failed to decode with this tokenizer"))?
            .map_err(|error| Error::input(&self.0.place, format!("cannot decode: {error}")))
    }

    /// The SHA-256 of all that decides what it does, chat templates excepted.
    pub fn sha256(&self) -> String {
        let Surroundings { named, more_eos_ids, adds_bos, .. } = &self.0.surroundings;
        let model = self.0.parsing.to_string(false).unwrap_or_default();
        let all = format!("{model}{named:?}{more_eos_ids:?}{adds_bos}");
        hex::encode(&Sha256::digest(all.as_bytes()))
    }

    /// The file it came from, for messages.
    pub fn place(&self) -> &str {
        &self.0.place
    }

    /// One more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// The beginning-of-text token.
    pub fn bos(&self) -> Option<u32> {
        self.0.surroundings.named.bos.as_deref().and_then(|bos| self.token_to_id(bos))
    }

    /// The tokens that end a text or a turn: the tokenizer's own first, then those of `generation_config.json`,
    /// `config.json` or the GGUF file. May be empty.
    pub fn eos_tokens(&self) -> Vec<u32> {
        self.0.eos_tokens.clone()
    }

    /// The token that stands for all that the vocabulary lacks.
    pub fn unknown(&self) -> Option<u32> {
        self.0.unknown
    }

    /// Whether the model expects the beginning-of-text token before every text.
    pub fn adds_bos(&self) -> bool {
        self.0.surroundings.adds_bos && self.bos().is_some()
    }

    /// The id of a token by its text.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.parsing.token_to_id(token)
    }

    /// The text of a token by its id, as it stands in the vocabulary.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.parsing.id_to_token(id)
    }

    /// Whether `id` is a control token.
    pub fn is_special(&self, id: u32) -> bool {
        self.0.is_control.get(id as usize).copied().unwrap_or(false)
    }

    /// The texts of all special tokens with their ids.
    pub fn special_tokens(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.special_ids.iter().map(|(text, id)| (text.as_str(), *id))
    }

    /// `("bos_token", "<s>")` and the like: what chat templates may refer to.
    pub fn named_tokens(&self) -> Vec<(&'static str, &str)> {
        let named = &self.0.surroundings.named;
        [("bos_token", &named.bos), ("eos_token", &named.eos), ("unk_token", &named.unk), ("pad_token", &named.pad)]
            .into_iter()
            .filter_map(|(name, text)| Some((name, text.as_deref()?)))
            .collect()
    }

    /// The source of the chat template, where the tokenizer brings one.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.surroundings.templates.default.as_deref()
    }

    /// The source of the chat template for conversations with tools, where the tokenizer brings another one for them.
    pub fn tool_use_template(&self) -> Option<&str> {
        self.0.surroundings.templates.tool_use.as_deref()
    }

    /// The same tokenizer with another chat template, which goes along when it is saved.
    pub fn with_chat_template(&self, template: &str) -> Self {
        let mut inner = (*self.0).clone();
        inner.surroundings.templates = Templates::new(Some(template.to_owned()), None);
        inner.surroundings.template_is_chosen = true;
        Self(Arc::new(inner))
    }

    /// The source of the chat template, where it is not the one that the tokenizer's files bring.
    pub(super) fn chosen_template(&self) -> Option<&str> {
        self.chat_template().filter(|_| self.0.surroundings.template_is_chosen)
    }

    /// The texts of the added tokens that are no control tokens.
    pub fn ordinary_added_tokens(&self) -> Vec<String> {
        let added = self.0.parsing.get_added_tokens_decoder().into_values();
        added.filter(|token| !token.special).map(|token| token.content).collect()
    }

    /// The tokenizer underneath.
    pub(super) fn parsing(&self) -> &tokenizers::Tokenizer {
        &self.0.parsing
    }

    pub(super) fn source(&self) -> &Source {
        &self.0.source
    }

    pub(super) fn surroundings(&self) -> &Surroundings {
        &self.0.surroundings
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({}, {} tokens)", self.0.place, self.0.vocab_size)
    }
}

/// Whether some step puts a space before the first word.
fn puts_space_first(tokenizer: &Value) -> bool {
    let mut pending = vec![&tokenizer["normalizer"], &tokenizer["pre_tokenizer"]];
    while let Some(step) = pending.pop() {
        for list in ["normalizers", "pretokenizers"] {
            pending.extend(step[list].as_array().into_iter().flatten());
        }
        let puts = match step["type"].as_str() {
            Some("Prepend") => true,
            Some("Metaspace") => step["prepend_scheme"] != json!("never") && step["add_prefix_space"] != json!(false),
            Some("ByteLevel") => step["add_prefix_space"] == json!(true),
            _ => false,
        };
        if puts {
            return true;
        }
    }
    false
}

/// The id of the unknown token.
fn unknown_id(tokenizer: &Value) -> Option<u32> {
    let model = &tokenizer["model"];
    let id = match model["unk_token"].as_str() {
        Some(unknown) => model["vocab"][unknown].as_u64(),
        None => model["unk_id"].as_u64(),
    };
    id.and_then(|id| u32::try_from(id).ok())
}
