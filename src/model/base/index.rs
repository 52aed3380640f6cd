//! The safetensors files of a Hugging Face folder, and their index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::MAX_DIFFERENCES;
use crate::error::{Error, Result};
use crate::files::json;
use crate::files::safetensors::SafeTensorsFile;
use crate::model::config::ModelConfig;
use crate::model::spec::{GgufRows, TensorSpec};

/// The safetensors files of a folder.
#[derive(Debug, Clone)]
pub(super) struct ShardIndex {
    /// In the order of their names.
    pub files: Vec<SafeTensorsFile>,
    /// Index into `files` by tensor.
    pub file_of: BTreeMap<String, usize>,
}

impl ShardIndex {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names. Reads headers only.
    ///
    /// # Errors
    /// Input: files that are missing, broken, or lie outside the folder; a tensor in two files, or in none though the
    /// index lists it and `config` has a use for it.
    pub fn open(folder: &Path, config: &ModelConfig) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.exists() {
            Self::collect(vec![SafeTensorsFile::open(&single)?])
        } else if index.exists() {
            Self::open_index(folder, &index, config)
        } else {
            let error = Error::input(folder.display(), "holds neither model.safetensors nor its index");
            Err(error.hint("weights in another format (pytorch_model.bin) are never read; save them as safetensors"))
        }
    }

    fn open_index(folder: &Path, index: &Path, config: &ModelConfig) -> Result<Self> {
        let map = weight_map(index)?;
        let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let errors = names.iter().filter_map(|name| check_shard_name(folder, index, name).err()).collect();
        Error::none_of(errors, ())?;
        let mut files = Vec::new();
        let mut errors = Vec::new();
        for name in &names {
            match SafeTensorsFile::open(&folder.join(name)) {
                Ok(file) => files.push(file),
                Err(error) => errors.push(error),
            }
        }
        let shards = Self::collect(Error::none_of(errors, files)?)?;
        // Names may lack the prefix of the decoder, or have that of a larger model before it.
        let needed = config.tensors();
        let is_needed = |name: &str| needed.iter().any(|known| name.ends_with(&known.hf) || known.hf.ends_with(name));
        let absent =
            |tensor: &str| !shards.file_of.contains_key(tensor) && !config.ignores(tensor) && is_needed(tensor);
        let errors = map.iter().filter(|(tensor, _)| absent(tensor)).map(|(tensor, file)| {
            Error::input(format_args!("{}: tensor {tensor}", index.display()), format!("is not in {file}"))
        });
        Error::none_of(errors.take(MAX_DIFFERENCES).collect(), shards)
    }

    fn collect(files: Vec<SafeTensorsFile>) -> Result<Self> {
        let mut file_of = BTreeMap::new();
        let mut errors = Vec::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = file_of.insert(name.to_owned(), index) {
                    let first: &SafeTensorsFile = &files[first];
                    let place = format!("{}: tensor {name}", file.place());
                    errors.push(Error::input(place, format!("is in {} too", first.place())));
                }
            }
        }
        errors.truncate(MAX_DIFFERENCES);
        Error::none_of(errors, Self { files, file_of })
    }

    /// Undoes what transformers sees through when it loads a checkpoint: the prefixes of a larger model around the
    /// decoder; the decoder saved without its head, its names without `model.`; a tied matrix under the head's name.
    pub fn under_usual_names(self, config: &ModelConfig) -> Result<Self> {
        let (embedding, head) = (config.embedding_name(), config.head_name());
        let outer = config.names.embedding.split_inclusive('.').next().unwrap_or_default();
        let usual = |name: &str| {
            let prefix = config.stored_prefixes().find_map(|(stored, usual)| {
                let rest = name.strip_prefix(stored)?;
                Some(format!("{usual}{rest}"))
            });
            prefix.unwrap_or_else(|| name.to_owned())
        };
        let shards = match self.file_of.keys().any(|name| usual(name) != *name) {
            true => self.renamed(|name| usual(&name))?,
            false => self,
        };
        let has = |name: &str| shards.file_of.contains_key(name);
        let bare = has(embedding.strip_prefix(outer).unwrap_or(&embedding))
            && !shards.file_of.keys().any(|name| name.starts_with(outer));
        let only_head = config.tied_head && has(&head) && !has(&embedding) && !bare;
        if !bare && !only_head {
            return Ok(shards);
        }
        shards.renamed(|name| match name {
            name if only_head && name == head => embedding.clone(),
            name if bare && name != head => format!("{outer}{name}"),
            name => name,
        })
    }

    fn renamed(self, usual: impl Fn(String) -> String) -> Result<Self> {
        Self::collect(self.files.into_iter().map(|file| file.renamed(&usual)).collect())
    }

    /// Whether there is a head that differs from the embedding.
    pub fn has_a_head_of_its_own(&self, config: &ModelConfig) -> Result<bool> {
        let tensor = |name: &str| self.file_of(name).map(|file| file.tensor(name)).transpose();
        let (embedding, head) = (tensor(&config.embedding_name())?, tensor(&config.head_name())?);
        let (Some(embedding), Some(head)) = (embedding, head) else { return Ok(false) };
        let same = (embedding.dtype, &embedding.shape) == (head.dtype, &head.shape) && *embedding.bytes == *head.bytes;
        embedding.bytes.release();
        head.bytes.release();
        Ok(!same)
    }

    /// The tensors whose names are `wanted`, in the order of these.
    pub fn tensors_where(&self, wanted: impl Fn(&str) -> bool) -> Vec<TensorSpec> {
        let tensors = self.file_of.iter().filter(|(name, _)| wanted(name));
        let spec = |(name, file): (&String, &usize)| TensorSpec {
            hf: name.clone(),
            gguf: String::new(),
            shape: self.files[*file].shape(name).unwrap_or_default().to_vec(),
            is_projection: false,
            gguf_rows: GgufRows::Same,
            gguf_offset: 0.0,
        };
        tensors.map(spec).collect()
    }

    /// The file that holds a tensor.
    pub fn file_of(&self, tensor: &str) -> Option<&SafeTensorsFile> {
        self.file_of.get(tensor).map(|&index| &self.files[index])
    }
}

/// Tensor name to file name, from `model.safetensors.index.json`.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    const MAX_SHARDS: usize = 10_000;
    let place = index.display();
    let value = json::read(index)?;
    if let Some(total) = value.get("metadata").and_then(|metadata| metadata.get("total_size"))
        && total.as_u64().is_none()
        && total.as_f64().is_none_or(|size| size < 0.0 || size.fract() != 0.0 || size > u64::MAX as f64)
    {
        return Err(Error::input(
            format_args!("{place}: total_size"),
            format!("is {total}; expected a number of bytes"),
        ));
    }
    let map = value.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| Error::input(format_args!("{place}"), "has no object `weight_map`"))?;
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| {
            Error::input(format_args!("{place}: weight_map.{tensor}"), format!("is {file}; expected a file name"))
        })?;
        files.insert(tensor.clone(), file.to_owned());
    }
    let shards: BTreeSet<&String> = files.values().collect();
    match shards.len() {
        0 => Err(Error::input(place, "`weight_map` is empty")),
        count if count > MAX_SHARDS => {
            Err(Error::input(place, format!("{count} shards, above the limit of {MAX_SHARDS}")))
        }
        _ => Ok(files),
    }
}

/// A shard is a plain file name in the folder. A link is followed inside the folder and, for the hub's cache,
/// to the `blobs` folder beside `snapshots`; not elsewhere.
fn check_shard_name(folder: &Path, index: &Path, name: &str) -> Result<()> {
    let place = format!("{}: weight_map", index.display());
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0']);
    if !plain {
        return Err(Error::input(place, format!("names the file {name:?}; expected a plain file name")));
    }
    let shard = folder.join(name);
    let real = shard.canonicalize().map_err(|error| Error::read(&shard, &error))?;
    let inside = |root: PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
    if inside(folder.to_owned()) || inside(folder.join("../../blobs")) {
        return Ok(());
    }
    Err(Error::input(place, format!("names {name:?}, a link that leads out of the folder to {}", real.display()))
        .hint("give the folder that the files really lie in, or copy them"))
}
