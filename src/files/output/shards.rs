//! The weights of a model as safetensors files of a limited size, with their index, under the names that Hugging Face uses.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::atomic;
use crate::error::{Error, Result};
use crate::files::Bytes;
use crate::files::safetensors::{self, TensorHeader};

const INDEX: &str = "model.safetensors.index.json";

/// One tensor to write, with the source of its values.
#[derive(Debug, Clone)]
pub struct Entry<T> {
    /// Name, type and shape in the file.
    pub header: TensorHeader,
    /// The source of its values.
    pub origin: T,
}

/// One file of weights.
#[derive(Debug, Clone)]
pub struct Shard<T> {
    /// The name of the file.
    pub file: String,
    /// Its tensors in order.
    pub entries: Vec<Entry<T>>,
}

/// All files of a model.
#[derive(Debug, Clone)]
pub struct Shards<T>(Vec<Shard<T>>);

impl<T> Shards<T> {
    /// Fills files in order, each up to `max_bytes`. The parts of one packed weight stay together;
    /// a weight above that size gets a file of its own.
    ///
    /// # Errors
    /// A tensor that safetensors cannot hold.
    pub fn plan(weights: impl IntoIterator<Item = Vec<Entry<T>>>, max_bytes: u64) -> Result<Self> {
        let mut files: Vec<Vec<Entry<T>>> = Vec::new();
        let mut filled = 0u64;
        for weight in weights {
            let bytes =
                weight.iter().map(|entry| entry.header.bytes().map(|bytes| bytes as u64)).sum::<Result<u64>>()?;
            match files.last_mut() {
                Some(file) if filled.saturating_add(bytes) <= max_bytes => {
                    filled += bytes;
                    file.extend(weight);
                }
                _ => {
                    filled = bytes;
                    files.push(weight);
                }
            }
        }
        let count = files.len();
        let named = files.into_iter().enumerate().map(|(index, entries)| {
            let file = match count {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            Shard { file, entries }
        });
        Ok(Self(named.collect()))
    }

    /// Every tensor, file by file.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<T>> {
        self.0.iter().flat_map(|shard| &shard.entries)
    }

    /// The files' names, in order.
    pub fn files(&self) -> Vec<String> {
        self.0.iter().map(|shard| shard.file.clone()).collect()
    }

    /// Bytes of all tensors.
    ///
    /// # Errors
    /// Those of [`Shards::plan`].
    pub fn bytes(&self) -> Result<u64> {
        self.entries().map(|entry| entry.header.bytes().map(|bytes| bytes as u64)).sum()
    }

    /// Writes the files into `folder`, and the index where there are several. `produce` is asked for one tensor at a
    /// time.
    ///
    /// # Errors
    /// Those of `produce`; a full disk.
    pub fn write(&self, folder: &Path, mut produce: impl FnMut(&Entry<T>) -> Result<Bytes>) -> Result<()> {
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        for shard in &self.0 {
            let headers: Vec<TensorHeader> = shard.entries.iter().map(|entry| entry.header.clone()).collect();
            let by_name: BTreeMap<&str, &Entry<T>> =
                shard.entries.iter().map(|entry| (entry.header.name.as_str(), entry)).collect();
            safetensors::write(&folder.join(&shard.file), &metadata, &headers, |header| {
                let entry = by_name.get(header.name.as_str());
                produce(entry.ok_or_else(|| Error::failed(&header.name, "was not planned"))?)
            })?;
        }
        self.write_index(folder)
    }

    fn write_index(&self, folder: &Path) -> Result<()> {
        if self.0.len() < 2 {
            return Ok(());
        }
        let map = self.0.iter().flat_map(|shard| {
            shard.entries.iter().map(|entry| (entry.header.name.clone(), Value::from(shard.file.as_str())))
        });
        let index = json!({
            "metadata": { "total_size": self.bytes()? },
            "weight_map": map.collect::<Map<String, Value>>(),
        });
        atomic::write_bytes(&folder.join(INDEX), format!("{index:#}\n").as_bytes())
    }
}
