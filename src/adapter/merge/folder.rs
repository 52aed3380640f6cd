//! The merged folder around its weights: staging, index, configurations, licences.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::MergeOptions;
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::files::{Dtype, atomic, json as strict_json, open};
use crate::model::BaseFiles;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const INDEX: &str = "model.safetensors.index.json";
/// Beginnings of the names of files that have to stay with the weights.
const LICENCES: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];
const MAX_LICENCE_BYTES: u64 = 1 << 20;
const MAX_GENERATION_CONFIG_BYTES: u64 = 1 << 20;

/// A folder that grows beside its place. Dropped before it is published, it is gone.
pub(super) struct Staging(tempfile::TempDir);

impl Staging {
    /// A new folder in the folder that `out` shall lie in.
    pub fn beside(out: &Path) -> Result<Self> {
        let parent = parent(out);
        std::fs::create_dir_all(&parent).map_err(|error| Error::write(&parent, &error))?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(".burnish-").suffix(".part");
        // tempfile's own default is 0700; the finished folder gets what the umask leaves.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        builder.tempdir_in(&parent).map(Self).map_err(|error| Error::write(&parent, &error))
    }

    /// Where the folder is for now.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Gives the folder its name.
    pub fn publish(self, out: &Path) -> Result<()> {
        // Renaming onto an empty folder would succeed.
        if out.symlink_metadata().is_ok() {
            return Err(Error::input(out.display(), "exists already: it was made while merging"));
        }
        std::fs::rename(self.path(), out).map_err(|error| Error::write(out, &error))?;
        // What it would remove is no longer there.
        drop(self.0);
        Ok(())
    }
}

fn parent(out: &Path) -> PathBuf {
    match out.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// `model.safetensors.index.json`, where there are several files.
pub(super) fn write_index(plan: &Plan<'_>, folder: &Path) -> Result<()> {
    if plan.shards.len() < 2 {
        return Ok(());
    }
    let entries = plan.shards.iter().flat_map(|shard| {
        shard.tensors.iter().map(|planned| (planned.header.name.clone(), Value::from(shard.file.as_str())))
    });
    let index = json!({
        "metadata": { "total_size": plan.bytes()? },
        "weight_map": entries.collect::<Map<String, Value>>(),
    });
    write_json(&folder.join(INDEX), &index)
}

/// `config.json`, `generation_config.json` and licences.
pub(super) fn write_configs(base: &BaseFiles, plan: &Plan<'_>, options: &MergeOptions, folder: &Path) -> Result<()> {
    write_json(&folder.join(CONFIG), &config(base, plan, options)?)?;
    if base.is_gguf() {
        return write_json(&folder.join(GENERATION_CONFIG), &generation_config(base));
    }
    let generation_config = base.path().join(GENERATION_CONFIG);
    if generation_config.exists() {
        copy(&generation_config, &folder.join(GENERATION_CONFIG), MAX_GENERATION_CONFIG_BYTES)?;
    }
    copy_licences(base.path(), folder)
}

/// The folder's own configuration with what changes, or one made from a GGUF file's metadata.
fn config(base: &BaseFiles, plan: &Plan<'_>, options: &MergeOptions) -> Result<Value> {
    let mut config = if base.is_gguf() {
        base.config().to_hf_json(plan.matrix_dtype)
    } else {
        strict_json::read(&base.path().join(CONFIG))?
    };
    // The merged weights are plain floats, whatever the base's were.
    let was_packed = config.as_object_mut().and_then(|object| object.shift_remove("quantization_config")).is_some();
    if was_packed || options.float_type.is_some() {
        // transformers 5 writes `dtype`, older ones `torch_dtype`; both are read.
        let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        config[key] = Value::from(torch_name(plan.matrix_dtype));
    }
    if plan.untied_head {
        config["tie_word_embeddings"] = Value::Bool(false);
    }
    Ok(config)
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F16 => "float16",
        Dtype::Bf16 => "bfloat16",
        _ => "float32",
    }
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

fn copy_licences(from: &Path, to: &Path) -> Result<()> {
    let entries = std::fs::read_dir(from).map_err(|error| Error::read(from, &error))?;
    for entry in entries {
        let name = entry.map_err(|error| Error::read(from, &error))?.file_name();
        let is_licence = name.to_str().is_some_and(|name| LICENCES.iter().any(|start| name.starts_with(start)));
        if is_licence && from.join(&name).is_file() {
            copy(&from.join(&name), &to.join(&name), MAX_LICENCE_BYTES)?;
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path, max_bytes: u64) -> Result<()> {
    atomic::write_bytes(to, &open::read(from, max_bytes)?)
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    atomic::write_bytes(path, format!("{value:#}\n").as_bytes())
}
