//! Writing of a tokenizer's files.

use std::path::Path;

use serde_json::{Value, json};

use super::tokenizer::{Surroundings, Tokenizer};
use crate::error::{Error, Result};
use crate::files::{atomic, json as strict_json};

/// The file that names the special tokens and holds the chat template.
const CONFIG: &str = "tokenizer_config.json";

impl Tokenizer {
    /// Writes the tokenizer's files into `folder`, such that transformers reads the same tokenizer: the
    /// original files of a Hugging Face folder, or files written from the GGUF metadata.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let chosen = self.chosen_template();
        let mut files = self.files()?;
        if let Some(template) = chosen {
            files.retain(|(name, _)| !name.ends_with(".jinja"));
            let config = files.iter().position(|(name, _)| *name == CONFIG).map(|at| files.swap_remove(at).1);
            let mut config = match config {
                Some(bytes) => strict_json::parse(CONFIG, &bytes)?,
                None => json!({}),
            };
            config["chat_template"] = json!(template);
            files.push((CONFIG, pretty(&config).into_bytes()));
        }
        files.iter().try_for_each(|(name, bytes)| write(&folder.join(name), bytes))
    }
}

/// Writes a file, and the folder that it lies in where there is none.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
    }
    atomic::write_bytes(path, bytes)
}

/// The files that make transformers load this tokenizer.
pub(super) fn written_files(tokenizer: &Value, surroundings: &Surroundings) -> Vec<(&'static str, Vec<u8>)> {
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
    if let Some(templates) = surroundings.templates.to_config() {
        config["chat_template"] = templates;
    }
    let files = [("tokenizer.json", tokenizer), (CONFIG, &config), ("special_tokens_map.json", &map)];
    files.map(|(name, value)| (name, pretty(value).into_bytes())).into()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
