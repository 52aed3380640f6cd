//! A Hugging Face folder around its weights, made from a base: configurations and licences.

use std::path::Path;

use serde_json::{Value, json};

use super::BaseFiles;
use super::families::{TEXT_CONFIG, keep_decoder};
use crate::error::{Error, Result};
use crate::files::{Dtype, atomic, json as strict_json, open};

const TIED: &str = "tie_word_embeddings";
const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
/// Beginnings of the names of files that have to stay with the weights.
const LICENCES: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
const MAX_LICENCE_BYTES: u64 = 1 << 20;
const MAX_GENERATION_CONFIG_BYTES: u64 = 1 << 20;

/// Settings of the image processor, which stay with a model that sees pictures.
const PROCESSORS: [&str; 3] = ["preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"];
const MAX_PROCESSOR_BYTES: u64 = 1 << 20;

/// Endings of the names of model files, which a folder is not given by intent.
const FILE_ENDINGS: [&str; 4] = ["gguf", "safetensors", "bin", "pt"];

/// The part of a larger model that a folder holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The decoder alone.
    Decoder,
    /// All of it, where the model sees pictures; else the decoder.
    Whole,
}

impl Extent {
    /// Whether a folder made from `base` holds more than the decoder.
    pub fn is_whole(self, base: &BaseFiles) -> bool {
        self == Self::Whole && base.config().vision.is_some()
    }
}

/// Gives a configuration a head of its own, in the decoder's fields too.
pub fn untie(config: &mut serde_json::Map<String, Value>) {
    config.insert(TIED.to_owned(), Value::Bool(false));
    if let Some(Value::Object(text)) = config.get_mut(TEXT_CONFIG) {
        text.insert(TIED.to_owned(), Value::Bool(false));
    }
}

/// Whether a model folder may be written under the name `out`.
///
/// # Errors
/// Input: the name ends as a model file's does (`m.gguf`); a folder of that name is not what was asked for.
pub fn check_folder_name(out: &Path) -> Result<()> {
    let ending = out.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    if !FILE_ENDINGS.iter().any(|name| name.eq_ignore_ascii_case(ending)) {
        return Ok(());
    }
    let message = format!("is the name of a .{ending} file; what is written is a Hugging Face folder");
    Err(Error::input(out.display(), message).hint(format!("name a folder, as `{}`", out.with_extension("").display())))
}

/// Writes `config.json`, `generation_config.json` and the licences of a model made from `base` into `folder`.
///
/// `extent` is what it holds, `matrix_dtype` the type of its unpacked matrices; `edit` makes the other changes to the configuration.
///
/// Returns the names of the licences that were left out, because they are larger than any licence.
///
/// # Errors
/// The base's files cannot be read, or the folder not be written.
pub fn write_configs(
    base: &BaseFiles,
    extent: Extent,
    matrix_dtype: Dtype,
    folder: &Path,
    edit: impl FnOnce(&mut serde_json::Map<String, Value>),
) -> Result<Vec<String>> {
    let mut config = if base.is_gguf() {
        base.config().to_hf_json(matrix_dtype)
    } else {
        strict_json::read(&base.path().join(CONFIG))?
    };
    let object = config.as_object_mut().ok_or_else(|| Error::input(base.path().display(), "has no configuration"))?;
    let is_whole = extent.is_whole(base);
    if base.config().is_part() && !is_whole {
        keep_decoder(base.config().family, object);
    }
    object.shift_remove("quantization_config");
    // The family that the weights are of, where the base's own file names another class.
    let larger = base.config().larger.filter(|_| is_whole).map(|larger| larger.class_name);
    object.insert("architectures".to_owned(), json!([larger.unwrap_or(base.config().family.class_name)]));
    if !base.config().tied_head && object.get(TIED) == Some(&Value::Bool(true)) {
        untie(object);
    }
    // transformers 5 writes `dtype`, older ones `torch_dtype`; both are read.
    let key = if object.contains_key("dtype") { "dtype" } else { "torch_dtype" };
    let says = object.get(key).and_then(Value::as_str);
    if says.is_none_or(|says| says != matrix_dtype.torch_name()) {
        object.insert(key.to_owned(), Value::from(matrix_dtype.torch_name()));
    }
    let sized = if is_whole { object.get_mut(TEXT_CONFIG).and_then(Value::as_object_mut) } else { Some(&mut *object) };
    if let Some(sized) = sized
        && sized.get("vocab_size").and_then(Value::as_u64).is_some_and(|size| size < base.config().vocab_size as u64)
    {
        sized.insert("vocab_size".to_owned(), json!(base.config().vocab_size));
    }
    edit(object);
    write_json(&folder.join(CONFIG), &config)?;
    if base.is_gguf() {
        write_json(&folder.join(GENERATION_CONFIG), &generation_config(base))?;
        return Ok(Vec::new());
    }
    let generation_config = base.path().join(GENERATION_CONFIG);
    if generation_config.exists() {
        copy(&generation_config, &folder.join(GENERATION_CONFIG), MAX_GENERATION_CONFIG_BYTES)?;
    }
    for name in PROCESSORS.iter().filter(|name| is_whole && base.path().join(name).exists()) {
        copy(&base.path().join(name), &folder.join(name), MAX_PROCESSOR_BYTES)?;
    }
    copy_licences(base.path(), folder)
}

/// The tokens at which a generation starts and ends, for a base that has no such file.
fn generation_config(base: &BaseFiles) -> Value {
    let config = base.config();
    let mut generation = json!({ "_from_model_config": true });
    if !config.eos_tokens.is_empty() {
        generation["eos_token_id"] = json!(config.eos_tokens);
    }
    if let Some(bos) = config.bos_token {
        generation["bos_token_id"] = Value::from(bos);
    }
    generation
}

/// Copies the licences; returns the names of those that are too large to be one.
fn copy_licences(from: &Path, to: &Path) -> Result<Vec<String>> {
    let mut left_out = Vec::new();
    let entries = std::fs::read_dir(from).map_err(|error| Error::read(from, &error))?;
    for entry in entries {
        let name = entry.map_err(|error| Error::read(from, &error))?.file_name();
        let is_licence = name.to_str().is_some_and(|name| LICENCES.iter().any(|start| name.starts_with(start)));
        let path = from.join(&name);
        match path.metadata() {
            Ok(metadata) if is_licence && metadata.is_file() && metadata.len() > MAX_LICENCE_BYTES => {
                left_out.push(name.to_string_lossy().into_owned());
            }
            Ok(metadata) if is_licence && metadata.is_file() => copy(&path, &to.join(&name), MAX_LICENCE_BYTES)?,
            _ => {}
        }
    }
    left_out.sort();
    Ok(left_out)
}

fn copy(from: &Path, to: &Path, max_bytes: u64) -> Result<()> {
    atomic::write_bytes(to, &open::read(from, max_bytes)?)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    atomic::write_bytes(path, format!("{value:#}\n").as_bytes())
}
