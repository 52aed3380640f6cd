//! The tokenizer: text to ids, ids to text, and what a model needs to know around them.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::check;
use crate::error::{Error, Result};
use crate::files::{atomic, json as strict_json, open};
use crate::model::BaseFiles;

/// The largest `tokenizer.json` read; the largest known ones are about 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 128 << 20;
/// The most values in it; the largest known ones have two million. Each takes 32 bytes or more in memory.
const MAX_JSON_ITEMS: usize = 5_000_000;
/// The largest of the small files beside it.
const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Files that make up a tokenizer in a Hugging Face folder, and go along when it is saved.
pub(crate) const FOLDER_FILES: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// Text to token ids and back. Cloning is cheap.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>);

struct Inner {
    /// Special-token text in the input becomes control tokens.
    parsing: tokenizers::Tokenizer,
    /// The same with special-token text left as ordinary text.
    ordinary: tokenizers::Tokenizer,
    place: String,
    special_ids: HashMap<String, u32>,
    /// Whether a token is special, by id; the unknown token is not counted, since ordinary text can give it.
    is_control: Vec<bool>,
    named: NamedTokens,
    eos_tokens: Vec<u32>,
    adds_bos: bool,
    puts_space_first: bool,
    vocab_size: usize,
    chat_template: Option<String>,
    source: Source,
}

/// Where the files for [`Tokenizer::save`] come from.
enum Source {
    Folder(PathBuf),
    Written(Vec<(&'static str, String)>),
}

/// The tokens with a name of their own, as text.
#[derive(Debug, Clone, Default)]
pub(super) struct NamedTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

/// What surrounds the JSON form of a tokenizer.
#[derive(Default)]
pub(super) struct Surroundings {
    pub named: NamedTokens,
    /// Further ids that end a text or a turn.
    pub more_eos_ids: Vec<u32>,
    pub adds_bos: bool,
    pub chat_template: Option<String>,
}

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder: `tokenizer.json`, and beside it `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja`, `generation_config.json` and `config.json` where they exist.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::input(path.display(), "not found")
                .hint("a base model's folder needs tokenizer.json; transformers' save_pretrained writes it"));
        }
        let place = path.display().to_string();
        let value = Self::parse(&place, &open::read(&path, MAX_TOKENIZER_BYTES)?)?;
        let surroundings = read_surroundings(folder, &value)?;
        Self::build(place, value, surroundings, Source::Folder(folder.to_owned()))
    }

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
        Self::build(name.into(), value, Surroundings::default(), Source::Written(vec![("tokenizer.json", text)]))
    }

    /// Builds a tokenizer from its JSON form and writes the files that [`Tokenizer::save`] will need.
    pub(super) fn from_parts(place: String, value: Value, surroundings: Surroundings) -> Result<Self> {
        let files = written_files(&value, &surroundings);
        Self::build(place, value, surroundings, Source::Written(files))
    }

    /// Parses the JSON of a tokenizer, unless it would take many times the memory of the file.
    fn parse(place: &str, bytes: &[u8]) -> Result<Value> {
        let items = bytes.iter().filter(|byte| b",[{".contains(byte)).count();
        if items > MAX_JSON_ITEMS {
            return Err(Error::input(
                place,
                format!("has about {items} items; at most {MAX_JSON_ITEMS} are supported"),
            ));
        }
        strict_json::parse(place, bytes)
    }

    fn build(place: String, mut value: Value, surroundings: Surroundings, source: Source) -> Result<Self> {
        check::checked(&place, &mut value)?;
        let puts_space_first = puts_space_first(&value);
        let unknown = unknown_id(&value);
        let bytes = serde_json::to_vec(&value).map_err(|error| Error::input(&place, error.to_string()))?;
        drop(value);
        // The checks before should leave nothing that panics; if something does, it is still only an error.
        let parsing = catch_unwind(|| tokenizers::Tokenizer::from_bytes(&bytes))
            .map_err(|_| Error::input(&place, "the tokenizers crate cannot read this file"))?
            .map_err(|error| Error::input(&place, format!("not a tokenizer: {error}")))?;
        let mut ordinary = parsing.clone();
        ordinary.set_encode_special_tokens(true);

        let special_ids: HashMap<String, u32> = parsing
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, token)| (token.content, id))
            .collect();
        let vocab_size = parsing.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1);
        let mut is_control = vec![false; vocab_size];
        for id in special_ids.values().filter(|id| Some(**id) != unknown) {
            if let Some(flag) = is_control.get_mut(*id as usize) {
                *flag = true;
            }
        }
        let mut eos_tokens: Vec<u32> = Vec::new();
        let eos = surroundings.named.eos.as_deref().and_then(|eos| parsing.token_to_id(eos));
        for id in eos.into_iter().chain(surroundings.more_eos_ids) {
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
            named: surroundings.named,
            eos_tokens,
            adds_bos: surroundings.adds_bos,
            puts_space_first,
            vocab_size,
            chat_template: surroundings.chat_template,
            source,
        })))
    }

    /// Ids of ordinary text. Adds no special tokens, and text that spells a control token stays text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.ids(&self.0.ordinary, text)?;
        if ids.iter().any(|id| self.is_special(*id)) {
            // Only models that look whole words up in the vocabulary can get here.
            return Err(Error::input(
                &self.0.place,
                "text spells a control token, and this tokenizer cannot tell them apart",
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

    /// Text of ids; with `skip_special`, control tokens give no text. Broken UTF-8 is replaced; unknown ids
    /// give no text.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        catch_unwind(AssertUnwindSafe(|| self.0.parsing.decode(ids, skip_special)))
            .map_err(|_| Error::input(&self.0.place, "the tokenizers crate failed to decode with this tokenizer"))?
            .map_err(|error| Error::input(&self.0.place, format!("cannot decode: {error}")))
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
        self.0.named.bos.as_deref().and_then(|bos| self.token_to_id(bos))
    }

    /// The tokens that end a text or a turn: the tokenizer's own first, then those of `generation_config.json`,
    /// `config.json` or the GGUF file. May be empty.
    pub fn eos_tokens(&self) -> Vec<u32> {
        self.0.eos_tokens.clone()
    }

    /// Whether the model expects the beginning-of-text token before every text.
    pub fn adds_bos(&self) -> bool {
        self.0.adds_bos && self.bos().is_some()
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
        let named = &self.0.named;
        [("bos_token", &named.bos), ("eos_token", &named.eos), ("unk_token", &named.unk), ("pad_token", &named.pad)]
            .into_iter()
            .filter_map(|(name, text)| Some((name, text.as_deref()?)))
            .collect()
    }

    /// The source of the chat template, where the tokenizer brings one.
    pub fn chat_template(&self) -> Option<&str> {
        self.0.chat_template.as_deref()
    }

    /// Writes the tokenizer's files into `folder`, such that transformers reads the same tokenizer: the
    /// original files of a Hugging Face folder, or files written from the GGUF metadata.
    pub fn save(&self, folder: &Path) -> Result<()> {
        match &self.0.source {
            Source::Folder(from) => {
                for name in FOLDER_FILES {
                    let path = from.join(name);
                    if path.exists() {
                        atomic::write_bytes(&folder.join(name), &open::read(&path, MAX_TOKENIZER_BYTES)?)?;
                    }
                }
            }
            Source::Written(files) => {
                for (name, text) in files {
                    atomic::write_bytes(&folder.join(name), text.as_bytes())?;
                }
            }
        }
        Ok(())
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

/// The id of the token for what the vocabulary lacks.
fn unknown_id(tokenizer: &Value) -> Option<u32> {
    let model = &tokenizer["model"];
    let id = match model["unk_token"].as_str() {
        Some(unknown) => model["vocab"][unknown].as_u64(),
        None => model["unk_id"].as_u64(),
    };
    id.and_then(|id| u32::try_from(id).ok())
}

/// Reads what stands beside `tokenizer.json`.
fn read_surroundings(folder: &Path, tokenizer: &Value) -> Result<Surroundings> {
    let config = read_optional(folder, "tokenizer_config.json")?;
    let map = read_optional(folder, "special_tokens_map.json")?;
    let generation = read_optional(folder, "generation_config.json")?;
    let named = |name: &str| token_text(&config[name]).or_else(|| token_text(&map[name]));
    let mut named = NamedTokens {
        bos: named("bos_token"),
        eos: named("eos_token"),
        unk: named("unk_token"),
        pad: named("pad_token"),
    };
    let model = read_optional(folder, "config.json")?;
    // One id, or a list of them.
    let more_eos_ids = [&generation["eos_token_id"], &model["eos_token_id"]]
        .into_iter()
        .flat_map(|ids| ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice))
        .filter_map(|id| u32::try_from(id.as_u64()?).ok())
        .collect();
    // transformers 5 goes by the post-processor, whatever the flag says.
    let adds_bos = match &tokenizer["post_processor"] {
        Value::Null => config["add_bos_token"] == json!(true),
        processor => match (first_special(processor), &named.bos) {
            (Some(first), None) => {
                named.bos = Some(first.to_owned());
                true
            }
            (first, bos) => first.is_some() && first == bos.as_deref(),
        },
    };
    Ok(Surroundings { named, more_eos_ids, adds_bos, chat_template: read_template(folder, &config)? })
}

/// A JSON object, or null where the file does not exist.
fn read_optional(folder: &Path, name: &str) -> Result<Value> {
    let path = folder.join(name);
    if !path.exists() {
        return Ok(Value::Null);
    }
    let value = strict_json::parse(path.display(), &open::read(&path, MAX_CONFIG_BYTES)?)?;
    match value.is_object() {
        true => Ok(value),
        false => Err(Error::input(path.display(), "expected a JSON object")),
    }
}

/// `"<s>"` or `{"content": "<s>", …}`.
fn token_text(token: &Value) -> Option<String> {
    token.as_str().or_else(|| token["content"].as_str()).map(str::to_owned)
}

/// The token that a post-processor puts before a single text.
fn first_special(processor: &Value) -> Option<&str> {
    match processor["type"].as_str()? {
        "TemplateProcessing" => processor["single"][0]["SpecialToken"]["id"].as_str(),
        "Sequence" => processor["processors"].as_array()?.iter().find_map(first_special),
        "BertProcessing" | "RobertaProcessing" => processor["cls"][0].as_str(),
        _ => None,
    }
}

/// The chat template: `chat_template.jinja` first, then `chat_template` of `tokenizer_config.json`: a text, or
/// a list of named templates of which `default` is taken. An empty template counts as none.
fn read_template(folder: &Path, config: &Value) -> Result<Option<String>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let text = String::from_utf8(open::read(&path, MAX_CONFIG_BYTES)?)
            .map_err(|_| Error::input(path.display(), "the chat template is not UTF-8"))?;
        return Ok(Some(text).filter(|text| !text.trim().is_empty()));
    }
    let place = folder.join("tokenizer_config.json").display().to_string();
    let text = match &config["chat_template"] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == json!("default"));
            let text = default.and_then(|template| template["template"].as_str());
            let names: Vec<String> = named.iter().map(|template| template["name"].to_string()).collect();
            let error = || {
                let message =
                    format!("`chat_template` is a list with {}; one named \"default\" is needed", names.join(", "));
                Error::input(&place, message)
            };
            Some(text.ok_or_else(error)?.to_owned())
        }
        other => {
            let message = format!(
                "`chat_template` is {}; expected a text or a list of named templates",
                strict_json::kind(other)
            );
            return Err(Error::input(place, message));
        }
    };
    Ok(text.filter(|text| !text.trim().is_empty()))
}

/// The files that make transformers load this tokenizer.
fn written_files(tokenizer: &Value, surroundings: &Surroundings) -> Vec<(&'static str, String)> {
    let named = &surroundings.named;
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": surroundings.adds_bos,
        "clean_up_tokenization_spaces": false,
        "model_max_length": 1_000_000_000u64,
    });
    let mut map = json!({});
    let texts =
        [("bos_token", &named.bos), ("eos_token", &named.eos), ("unk_token", &named.unk), ("pad_token", &named.pad)];
    for (name, text) in texts {
        if let Some(text) = text {
            config[name] = json!(text);
            map[name] = json!(text);
        }
    }
    if let Some(template) = &surroundings.chat_template {
        config["chat_template"] = json!(template);
    }
    vec![
        ("tokenizer.json", pretty(tokenizer)),
        ("tokenizer_config.json", pretty(&config)),
        ("special_tokens_map.json", pretty(&map)),
    ]
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
