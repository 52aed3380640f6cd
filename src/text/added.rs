//! A tokenizer with further tokens, as it is used and as it is saved.

use serde_json::{Value, json};

use super::folder::FOLDER_FILES;
use super::tokenizer::{MAX_TOKENIZER_BYTES, Source, Tokenizer};
use crate::error::{Error, Result};
use crate::files::{json as strict_json, open};

/// The names of the files that list added tokens.
const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const ADDED: &str = "added_tokens.json";

impl Tokenizer {
    /// The same tokenizer with those of `texts` as added tokens that it does not have yet. They are matched in every text, as
    /// transformers' `add_tokens` has it; their ids follow the largest one.
    ///
    /// # Errors
    /// Input: files that cannot be read; a token that cannot have the next id.
    pub fn with_tokens(&self, texts: &[String]) -> Result<Self> {
        let new: Vec<(u32, &String)> = texts
            .iter()
            .filter(|text| self.token_to_id(text).is_none())
            .zip(self.vocab_size() as u32..)
            .map(|(text, id)| (id, text))
            .collect();
        if new.is_empty() {
            return Ok(self.clone());
        }
        let mut files = self.files()?;
        for (name, bytes) in &mut files {
            let change: fn(&mut Value, u32, &str) = match *name {
                TOKENIZER => add_to_tokenizer,
                CONFIG => add_to_config,
                ADDED => add_to_list,
                _ => continue,
            };
            let mut value = strict_json::parse(*name, bytes)?;
            new.iter().for_each(|(id, text)| change(&mut value, *id, text));
            *bytes = format!("{value:#}\n").into_bytes();
        }
        let tokenizer = files.iter().find(|(name, _)| *name == TOKENIZER).map(|(_, bytes)| bytes.as_slice());
        let value = Self::parse(self.place(), tokenizer.unwrap_or_default())?;
        let grown = Self::build(self.place().to_owned(), value, self.surroundings().clone(), Source::Written(files))?;
        for (id, text) in new {
            let found = grown.token_to_id(text);
            if found != Some(id) {
                let message = format!("the new token {text:?} cannot have the id {id}; it has {found:?}");
                return Err(Error::input(self.place(), message));
            }
        }
        Ok(grown)
    }

    /// The files of the tokenizer that are there, with their content.
    pub(super) fn files(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        match self.source() {
            Source::Folder(from) => {
                let present = FOLDER_FILES.into_iter().filter(|name| from.join(name).exists());
                present.map(|name| Ok((name, open::read(&from.join(name), MAX_TOKENIZER_BYTES)?))).collect()
            }
            Source::Written(files) => Ok(files.clone()),
        }
    }
}

fn add_to_tokenizer(value: &mut Value, id: u32, text: &str) {
    let mut token = added_token(text);
    token["id"] = json!(id);
    match value["added_tokens"].as_array_mut() {
        Some(tokens) => tokens.push(token),
        None => value["added_tokens"] = json!([token]),
    }
}

fn add_to_config(value: &mut Value, id: u32, text: &str) {
    if let Some(tokens) = value["added_tokens_decoder"].as_object_mut() {
        tokens.insert(id.to_string(), added_token(text));
    }
}

fn add_to_list(value: &mut Value, id: u32, text: &str) {
    if let Some(tokens) = value.as_object_mut() {
        tokens.insert(text.to_owned(), json!(id));
    }
}

fn added_token(text: &str) -> Value {
    json!({
        "content": text, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": false,
    })
}
