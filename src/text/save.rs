//! Writing of a tokenizer's files.

use std::path::Path;

use serde_json::{Value, json};

use super::folder::FOLDER_FILES;
use super::tokenizer::{MAX_TOKENIZER_BYTES, Source, Surroundings, Tokenizer};
use crate::error::{Error, Result};
use crate::files::{atomic, open};

impl Tokenizer {
    /// Writes the tokenizer's files into `folder`, such that transformers reads the same tokenizer: the
    /// original files of a Hugging Face folder, or files written from the GGUF metadata.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        match self.source() {
            Source::Folder(from) => {
                for name in FOLDER_FILES {
                    let path = from.join(name);
                    if path.exists() {
                        write(&folder.join(name), &open::read(&path, MAX_TOKENIZER_BYTES)?)?;
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

/// Writes a file, and the folder that it lies in where there is none.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
    }
    atomic::write_bytes(path, bytes)
}

/// The files that make transformers load this tokenizer.
pub(super) fn written_files(tokenizer: &Value, surroundings: &Surroundings) -> Vec<(&'static str, String)> {
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
    vec![
        ("tokenizer.json", pretty(tokenizer)),
        ("tokenizer_config.json", pretty(&config)),
        ("special_tokens_map.json", pretty(&map)),
    ]
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
