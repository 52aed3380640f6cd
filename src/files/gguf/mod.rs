//! GGUF: a memory-mapped reader for versions 2 and 3, little-endian, and a writer.
//!
//! Layout (ggml `docs/gguf.md`): magic, version, tensor count, metadata count, then the metadata
//! (key, type, value), the tensor table (name, dimensions innermost first, type, offset) and, from the next
//! multiple of `general.alignment`, the data. A large model may be split into several files ([`split`]).

mod read;
pub mod split;
mod tensor_type;
mod value;
mod vocabulary;
pub mod write;

use std::collections::BTreeMap;
use std::path::Path;

pub use value::{Array, Value};
pub use vocabulary::byte_of_token;
pub use write::TensorInfo;

use super::{Bytes, Dtype, RawTensor, open};
use crate::error::{Error, Place, Result};
use crate::quant::float;

/// An open GGUF file, or the files that a model is split into.
#[derive(Debug, Clone)]
pub struct Gguf {
    parts: Vec<Part>,
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

/// One file.
#[derive(Debug, Clone)]
struct Part {
    place: String,
    bytes: Bytes,
    /// The offset of the data in the file.
    data_start: usize,
}

/// Everything before the tensors' data of one file.
#[derive(Debug, Clone)]
struct Header {
    version: u32,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
    /// The offset of the data in the file.
    data_start: usize,
}

#[derive(Debug, Clone)]
struct Entry {
    dtype: Dtype,
    /// The shape, outermost dimension first.
    shape: Vec<usize>,
    /// The offset from the start of the data.
    offset: u64,
    bytes: u64,
    /// Index of the file among the parts.
    part: usize,
}

impl Gguf {
    /// Maps and checks the file at `path`, and the files that follow the first of a split model.
    ///
    /// # Errors
    /// Input: a broken file, a missing part, a part other than the first.
    pub fn open(path: &Path) -> Result<Self> {
        let first = Self::one_file(path.display().to_string(), open::map(path)?)?;
        match split::count(first.place(), &first.metadata)? {
            1 => Ok(first),
            count => split::join(path, first, count),
        }
    }

    /// Returns the memory of the files' pages to the system ([`Bytes::release`]).
    pub fn release(&self) {
        self.parts.iter().for_each(|part| part.bytes.release());
    }

    /// Checks the bytes of a whole file; `place` names them in errors.
    ///
    /// # Errors
    /// Input: a broken file, a part of a split model.
    pub fn from_bytes(place: impl Into<String>, bytes: Bytes) -> Result<Self> {
        let file = Self::one_file(place.into(), bytes)?;
        match split::count(file.place(), &file.metadata)? {
            1 => Ok(file),
            count => Err(Error::input(file.place(), format!("is one of {count} files; expected a whole model"))),
        }
    }

    fn one_file(place: String, bytes: Bytes) -> Result<Self> {
        let Header { version, metadata, tensors, data_start } = read::header(&place, &bytes)?;
        vocabulary::check(&place, &metadata)?;
        Ok(Self { parts: vec![Part { place, bytes, data_start }], version, metadata, tensors })
    }

    /// A file that is not written yet, for the checks that an open one goes through: its metadata, its tensors without
    /// their data, and those of `values` with it.
    ///
    /// # Errors
    /// Input: a vocabulary that contradicts itself. Failed: a tensor that GGUF cannot hold.
    pub fn planned(
        place: &str,
        metadata: &[(String, Value)],
        tensors: &[TensorInfo],
        values: &[(String, Vec<f32>)],
    ) -> Result<Self> {
        let metadata: BTreeMap<String, Value> = metadata.iter().cloned().collect();
        vocabulary::check(place, &metadata)?;
        let all: Vec<f32> = values.iter().flat_map(|(_, values)| values.iter().copied()).collect();
        let bytes = Bytes::from(float::encode_f32(&all));
        let mut entries = BTreeMap::new();
        for tensor in tensors {
            // Beyond the end: asking for the data is an error.
            let entry = Entry {
                dtype: tensor.dtype,
                shape: tensor.shape.clone(),
                offset: bytes.len() as u64,
                bytes: tensor.bytes()?.max(1),
                part: 0,
            };
            entries.insert(tensor.name.clone(), entry);
        }
        let mut offset = 0;
        for (name, values) in values {
            let bytes = 4 * values.len() as u64;
            let shape = vec![values.len()];
            entries.insert(name.clone(), Entry { dtype: Dtype::F32, shape, offset, bytes, part: 0 });
            offset += bytes;
        }
        let part = Part { place: place.to_owned(), bytes, data_start: 0 };
        Ok(Self { parts: vec![part], version: 3, metadata, tensors: entries })
    }

    /// The path of the (first) file, for messages.
    pub fn place(&self) -> &str {
        self.parts.first().map_or("", |part| &part.place)
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Every metadata entry, sorted by key; without those that number the files of a split model.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// One metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(key)
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.get("general.architecture").and_then(Value::as_str)
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The number format of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// Of each file, everything before the tensors' data, its size in bytes, and the names of its tensors, sorted.
    pub fn files(&self) -> impl Iterator<Item = (&[u8], usize, Vec<&str>)> {
        self.parts.iter().enumerate().map(|(index, part)| {
            let header = part.bytes.get(..part.data_start).unwrap_or(&part.bytes);
            let own = self.tensors.iter().filter(|(_, entry)| entry.part == index);
            (header, part.bytes.len(), own.map(|(name, _)| name.as_str()).collect())
        })
    }

    /// The size of all files in bytes.
    pub fn file_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.bytes.len()).sum()
    }

    /// A tensor, its bytes still in the map. Its values are not looked at; [`RawTensor::check_finite`] does that.
    ///
    /// # Errors
    /// Input: there is no such tensor.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let place = || Place::tensor(self.place(), name);
        let entry = self.tensors.get(name).ok_or_else(|| Error::input(place(), "is not in the file"))?;
        let beyond = || Error::input(place(), "reaches beyond the end of the file");
        let part = self.parts.get(entry.part).ok_or_else(beyond)?;
        // Ranges were checked against the file when it was opened.
        let begin = part.data_start + entry.offset as usize;
        let bytes = part.bytes.slice(begin..begin + entry.bytes as usize).ok_or_else(beyond)?;
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }
}
