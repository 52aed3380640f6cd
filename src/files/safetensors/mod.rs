//! safetensors: a memory-mapped reader that checks everything, and a writer that streams.
//!
//! Format: eight bytes of header length (little-endian), a JSON header `{"name": {"dtype", "shape",
//! "data_offsets": [begin, end]}, "__metadata__": {"key": "value"}}`, then the tensors without gaps.
//! The `safetensors` crate has the last word on a header; the scan before it refuses what the crate lets
//! pass (duplicate names, names that look like paths, a million tensors) and says how much is missing. Both read a copy of
//! the header: the bytes of a mapped file may change at any time.

mod scan;
mod write;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::{Dtype as FileDtype, Metadata};

pub use write::{TensorHeader, write, write_to};

use super::{Bytes, Dtype, RawTensor, open};
use crate::error::{Error, Place, Result};

const METADATA_KEY: &str = "__metadata__";

/// An open safetensors file.
#[derive(Debug, Clone)]
pub struct SafeTensorsFile {
    place: String,
    bytes: Bytes,
    header: Range<usize>,
    tensors: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Entry {
    dtype: FileDtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl SafeTensorsFile {
    /// Maps and checks the file at `path`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_bytes(path.display().to_string(), open::map(path)?)
    }

    /// Returns the memory of the file's pages to the system ([`Bytes::release`]).
    pub fn release(&self) {
        self.bytes.release();
    }

    /// Checks the bytes of a whole file; `place` names them in errors.
    pub fn from_bytes(place: impl Into<String>, bytes: Bytes) -> Result<Self> {
        let place = place.into();
        let header = scan::header_range(&place, &bytes)?;
        let text = bytes.get(header.clone()).unwrap_or_default().to_vec();
        scan::check(&place, &text, (bytes.len() - header.end) as u64)?;
        let checked: Metadata =
            serde_json::from_slice(&text).map_err(|error| Error::input(&place, format!("bad header: {error}")))?;
        let tensors = checked.tensors().into_iter().map(|(name, info)| {
            let (begin, end) = info.data_offsets;
            let range = header.end + begin..header.end + end;
            (name, Entry { dtype: info.dtype, shape: info.shape.clone(), range })
        });
        let tensors = tensors.collect();
        let metadata = checked.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { place, header, tensors, metadata, bytes })
    }

    /// The same file with its tensors under other names, no two of which may be the same.
    pub fn renamed(mut self, rename: impl Fn(String) -> String) -> Self {
        self.tensors = self.tensors.into_iter().map(|(name, entry)| (rename(name), entry)).collect();
        self
    }

    /// The file's path, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names that begin with `prefix`, sorted.
    pub fn names_from<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> {
        let names = self.tensors.range(prefix.to_owned()..).map(|(name, _)| name.as_str());
        names.take_while(move |name| name.starts_with(prefix))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The shape of a tensor, outermost dimension first.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The tensor's dtype, where it is a supported one.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).and_then(|entry| supported_dtype(entry.dtype))
    }

    /// The tensor's dtype as the file names it (`BF16`, `F8_E4M3`), supported or not.
    pub fn dtype_name(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|entry| entry.dtype.to_string())
    }

    /// The strings under `__metadata__`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The header's bytes, its length included.
    pub fn header_bytes(&self) -> &[u8] {
        self.bytes.get(..self.header.end).unwrap_or_default()
    }

    /// The size of the whole file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// A tensor, its bytes still in the map. An error for an unknown name or a dtype that is not supported.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let place = || Place::tensor(&self.place, name);
        let entry = self.tensors.get(name).ok_or_else(|| Error::input(place(), "is not in the file"))?;
        let dtype = supported_dtype(entry.dtype).ok_or_else(|| {
            Error::input(place(), format!("is stored as {}, which is not supported", entry.dtype))
                .hint("supported are F32, F16, BF16, I8, U8, I32 and I64")
        })?;
        Ok(RawTensor { dtype, shape: entry.shape.clone(), bytes: self.tensor_bytes(name)? })
    }

    /// The bytes of a tensor of any dtype, supported or not.
    ///
    /// # Errors
    /// Input: an unknown name.
    pub fn tensor_bytes(&self, name: &str) -> Result<Bytes> {
        let place = || Place::tensor(&self.place, name);
        let entry = self.tensors.get(name).ok_or_else(|| Error::input(place(), "is not in the file"))?;
        let bytes = self.bytes.slice(entry.range.clone());
        bytes.ok_or_else(|| Error::input(place(), "reaches beyond the end of the file"))
    }
}

fn supported_dtype(dtype: FileDtype) -> Option<Dtype> {
    match dtype {
        FileDtype::F32 => Some(Dtype::F32),
        FileDtype::F16 => Some(Dtype::F16),
        FileDtype::BF16 => Some(Dtype::Bf16),
        FileDtype::I8 => Some(Dtype::I8),
        FileDtype::U8 => Some(Dtype::U8),
        FileDtype::I32 => Some(Dtype::I32),
        FileDtype::I64 => Some(Dtype::I64),
        _ => None,
    }
}
