//! GGUF: a memory-mapped reader for versions 2 and 3, little-endian.
//!
//! Layout (ggml `docs/gguf.md`): magic, version, tensor count, metadata count, then the metadata
//! (key, type, value), the tensor table (name, dimensions innermost first, type, offset) and, from the next
//! multiple of `general.alignment`, the data.

mod read;
mod tensor_type;
mod value;
mod vocabulary;

use std::collections::BTreeMap;
use std::path::Path;

pub use value::{Array, Value};
pub use vocabulary::byte_of_token;

use super::{Bytes, Dtype, RawTensor, open};
use crate::error::{Error, Place, Result};

/// An open GGUF file.
#[derive(Debug, Clone)]
pub struct Gguf {
    place: String,
    bytes: Bytes,
    header: Header,
}

/// Everything before the tensors' data.
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
}

impl Gguf {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path.display().to_string(), open::map(path)?)
    }

    /// Checks the bytes of a whole file; `place` names them in errors.
    pub fn from_bytes(place: impl Into<String>, bytes: Bytes) -> Result<Self> {
        let place = place.into();
        let header = read::header(&place, &bytes)?;
        vocabulary::check(&place, &header.metadata)?;
        Ok(Self { header, place, bytes })
    }

    /// The file's path, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The version of the format, 2 or 3.
    pub fn version(&self) -> u32 {
        self.header.version
    }

    /// Every metadata entry, sorted by key.
    pub fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.header.metadata
    }

    /// One metadata value.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.header.metadata.get(key)
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> Option<&str> {
        self.get("general.architecture").and_then(Value::as_str)
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    /// The shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The number format of a tensor.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.header.tensors.get(name).map(|entry| entry.dtype)
    }

    /// Everything before the tensors' data.
    pub fn header_bytes(&self) -> &[u8] {
        self.bytes.get(..self.header.data_start).unwrap_or(&self.bytes)
    }

    /// The size of the whole file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// A tensor, its bytes still in the map. Its values are not looked at; [`RawTensor::check_finite`] does that.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let place = || Place::tensor(&self.place, name);
        let entry = self.header.tensors.get(name).ok_or_else(|| Error::input(place(), "is not in the file"))?;
        // Ranges were checked against the file when it was opened.
        let begin = self.header.data_start + entry.offset as usize;
        let bytes = self.bytes.slice(begin..begin + entry.bytes as usize);
        let bytes = bytes.ok_or_else(|| Error::input(place(), "reaches beyond the end of the file"))?;
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }
}
