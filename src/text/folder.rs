//! The tokenizer of a Hugging Face folder: `tokenizer.json` and what stands beside it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use serde_json::{Value, json};

use super::templates::Templates;
use super::tokenizer::{MAX_TOKENIZER_BYTES, NamedTokens, Source, Surroundings, Tokenizer};
use crate::error::{Error, Result};
use crate::files::{json as strict_json, open};

/// The largest of the small files beside `tokenizer.json`.
pub(super) const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Files that make up a tokenizer in a Hugging Face folder, and go along when it is saved.
pub(crate) const FOLDER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face folder: `tokenizer.json`, and beside it `tokenizer_config.json`,
    /// `special_tokens_map.json`, `added_tokens.json`, `chat_template.jinja`, `additional_chat_templates`,
    /// `generation_config.json` and `config.json` where they exist.
    ///
    /// # Errors
    /// Input: a missing or broken file; an added token that cannot have the id that the files give it.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            return Err(Error::input(path.display(), "not found")
                .hint("a base model's folder needs tokenizer.json; transformers' save_pretrained writes it"));
        }
        let place = path.display().to_string();
        let mut value = Self::parse(&place, &open::read(&path, MAX_TOKENIZER_BYTES)?)?;
        let beside = Beside::read(folder)?;
        let added = beside.add_tokens(&mut value)?;
        let surroundings = beside.surroundings(folder, &value)?;
        let tokenizer = Self::build(place, value, surroundings, Source::Folder(folder.to_owned()))?;
        for token in added {
            let found = tokenizer.token_to_id(&token.content);
            if found != Some(token.id) {
                return Err(token.wrong_id(found));
            }
        }
        Ok(tokenizer)
    }
}

/// The small files beside `tokenizer.json`; null where one does not exist.
struct Beside {
    config_place: String,
    added_place: String,
    config: Value,
    map: Value,
    added: Value,
    generation: Value,
    model: Value,
}

/// A token that stands beside `tokenizer.json` and not in it.
struct Added {
    /// File and key.
    place: String,
    content: String,
    id: u32,
}

impl Added {
    fn wrong_id(&self, found: Option<u32>) -> Error {
        let (token, id) = (&self.content, self.id);
        let found = found.map_or("has no such token".to_owned(), |found| format!("gives it id {found}"));
        Error::input(&self.place, format!("token {token:?} has id {id}, and tokenizer.json {found}"))
            .hint("save the tokenizer again with transformers' save_pretrained")
    }
}

impl Beside {
    fn read(folder: &Path) -> Result<Self> {
        Ok(Self {
            config_place: folder.join("tokenizer_config.json").display().to_string(),
            added_place: folder.join("added_tokens.json").display().to_string(),
            config: read_optional(folder, "tokenizer_config.json")?,
            map: read_optional(folder, "special_tokens_map.json")?,
            added: read_optional(folder, "added_tokens.json")?,
            generation: read_optional(folder, "generation_config.json")?,
            model: read_optional(folder, "config.json")?,
        })
    }

    fn named(&self, name: &str) -> Option<String> {
        token_text(&self.config[name]).or_else(|| token_text(&self.map[name]))
    }

    /// The texts of the tokens that the files call special by a name.
    fn special_texts(&self) -> HashSet<String> {
        self.special_texts_in_order().into_iter().collect()
    }

    /// [`Self::special_texts`] in the order in which transformers adds those that are new.
    fn special_texts_in_order(&self) -> Vec<String> {
        const NAMES: [&str; 7] =
            ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
        let single = NAMES.iter().filter_map(|name| self.named(name));
        let lists = [&self.config, &self.map].into_iter().flat_map(|file| {
            ["additional_special_tokens", "extra_special_tokens"].into_iter().flat_map(|key| match &file[key] {
                Value::Array(tokens) => tokens.iter().filter_map(token_text).collect(),
                Value::Object(tokens) => tokens.values().filter_map(token_text).collect(),
                _ => Vec::new(),
            })
        });
        single.chain(lists).collect()
    }

    /// Puts the tokens of `added_tokens_decoder`, or else of `added_tokens.json`, into the tokenizer's own list of added
    /// tokens, and marks the named ones as special; returns those that were put in.
    fn add_tokens(&self, tokenizer: &mut Value) -> Result<Vec<Added>> {
        let specials = self.special_texts();
        let wanted = self.wanted_tokens(&specials)?;
        let Some(fields) = tokenizer.as_object_mut() else { return Ok(Vec::new()) };
        let vocabulary = ids_by_text(fields.get("model").and_then(|model| model.get("vocab")).unwrap_or(&Value::Null));
        let list = fields.entry("added_tokens").or_insert(Value::Null);
        if list.is_null() {
            *list = json!([]);
        }
        // What is wrong with the list itself is found later.
        let Some(list) = list.as_array_mut() else { return Ok(Vec::new()) };
        for token in
            list.iter_mut().filter(|token| token["content"].as_str().is_some_and(|text| specials.contains(text)))
        {
            token["special"] = json!(true);
        }
        let mut added = Vec::new();
        for (id, (place, mut token)) in wanted {
            let content = token["content"].as_str().unwrap_or_default().to_owned();
            if let Some(known) = list.iter_mut().find(|known| known["content"] == json!(content)) {
                if known["id"] != json!(id) {
                    let found = known["id"].as_u64().and_then(|id| u32::try_from(id).ok());
                    return Err(Added { place, content, id }.wrong_id(found));
                }
                if token["special"] == json!(true) {
                    known["special"] = json!(true);
                }
                continue;
            }
            let in_vocabulary = vocabulary.get(&content).copied();
            if in_vocabulary.is_some_and(|found| found != id) {
                return Err(Added { place, content, id }.wrong_id(in_vocabulary));
            }
            token["id"] = json!(id);
            list.push(token);
            added.push(Added { place, content, id });
        }
        // A named token that stands nowhere gets the next id, as in transformers.
        let known = |list: &[Value], text: &str| list.iter().any(|token| token["content"].as_str() == Some(text));
        for content in self.special_texts_in_order() {
            if vocabulary.contains_key(&content) || known(list, &content) {
                continue;
            }
            let listed = list.iter().filter_map(|token| token["id"].as_u64().and_then(|id| u32::try_from(id).ok()));
            let Some(id) = listed.chain(vocabulary.values().copied()).max().map_or(Some(0), |id| id.checked_add(1))
            else {
                break;
            };
            list.push(json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            }));
            added.push(Added { place: self.config_place.clone(), content, id });
        }
        list.sort_by_key(|token| token["id"].as_u64());
        Ok(added)
    }

    /// The added tokens by their ids, with file and key.
    fn wanted_tokens(&self, specials: &HashSet<String>) -> Result<BTreeMap<u32, (String, Value)>> {
        let mut wanted = BTreeMap::new();
        let decoder = &self.config["added_tokens_decoder"];
        if let Some(tokens) = decoder.as_object() {
            for (key, token) in tokens {
                let place = format!("{}: added_tokens_decoder", self.config_place);
                let wrong = |message: &str| Error::input(&place, format!("`{key}`: {message}"));
                let id: u32 = key.parse().map_err(|_| wrong("is no token id; expected a whole number"))?;
                let is_token = token["content"].as_str().is_some_and(|text| !text.is_empty());
                if !is_token {
                    return Err(wrong("has no `content`; expected an object with the token's text"));
                }
                let mut token = token.clone();
                if specials.contains(token["content"].as_str().unwrap_or_default()) {
                    token["special"] = json!(true);
                }
                wanted.insert(id, (place, token));
            }
            return Ok(wanted);
        }
        for (content, id) in self.added.as_object().into_iter().flatten() {
            let place = self.added_place.clone();
            let Some(id) = id.as_u64().and_then(|id| u32::try_from(id).ok()) else {
                return Err(Error::input(place, format!("token {content:?} has id {id}; expected a whole number")));
            };
            let special = specials.contains(content);
            let token = json!({
                "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": !special, "special": special,
            });
            wanted.insert(id, (place, token));
        }
        Ok(wanted)
    }

    fn surroundings(&self, folder: &Path, tokenizer: &Value) -> Result<Surroundings> {
        let mut named = NamedTokens {
            bos: self.named("bos_token"),
            eos: self.named("eos_token"),
            unk: self.named("unk_token"),
            pad: self.named("pad_token"),
        };
        // One id, or a list of them.
        let more_eos_ids = [&self.generation["eos_token_id"], &self.model["eos_token_id"]]
            .into_iter()
            .flat_map(|ids| ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice))
            .filter_map(|id| u32::try_from(id.as_u64()?).ok())
            .collect();
        // transformers 5 goes by the post-processor, whatever the flag says.
        let adds_bos = match &tokenizer["post_processor"] {
            Value::Null => self.config["add_bos_token"] == json!(true),
            processor => match (first_special(processor), &named.bos) {
                (Some(first), None) => {
                    named.bos = Some(first.to_owned());
                    true
                }
                (first, bos) => first.is_some() && first == bos.as_deref(),
            },
        };
        Ok(Surroundings {
            named,
            more_eos_ids,
            adds_bos,
            templates: Templates::of_folder(folder, &self.config)?,
            template_is_chosen: false,
        })
    }
}

/// The ids of a model's vocabulary: an object of ids, or a list of `[piece, score]`.
fn ids_by_text(vocabulary: &Value) -> HashMap<String, u32> {
    let id = |id: u64| u32::try_from(id).ok();
    match vocabulary {
        Value::Object(ids) => {
            ids.iter().filter_map(|(text, value)| Some((text.clone(), id(value.as_u64()?)?))).collect()
        }
        Value::Array(pieces) => {
            let pieces = pieces.iter().enumerate();
            pieces.filter_map(|(index, piece)| Some((piece[0].as_str()?.to_owned(), id(index as u64)?))).collect()
        }
        _ => HashMap::new(),
    }
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
