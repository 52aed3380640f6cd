//! safetensors: a memory-mapped reader that trusts nothing, and a writer that streams.
//!
//! Format: eight bytes of header length (little-endian), a JSON header `{"name": {"dtype", "shape",
//! "data_offsets": [begin, end]}, "__metadata__": {"key": "value"}}`, then the tensors without gaps.
//! The `safetensors` crate has the last word on a header; the scan before it refuses what the crate lets
//! pass (duplicate names, names that look like paths, a million tensors) and says how much is missing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::Dtype as FileDtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{Bytes, Dtype, RawTensor, atomic, open};
use crate::error::{Error, Result};

/// More tensors than any model has; the header of a million of them is an attack.
const MAX_TENSORS: usize = 100_000;
/// The limit of the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_NAME_BYTES: usize = 1024;
const MAX_DIMENSIONS: usize = 8;
const MAX_METADATA_STRINGS: usize = 10_000;
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

    /// Checks the bytes of a whole file; `place` names them in errors.
    pub fn from_bytes(place: impl Into<String>, bytes: Bytes) -> Result<Self> {
        let place = place.into();
        let header = header_range(&place, &bytes)?;
        scan_header(&place, &bytes, header.clone())?;
        let (_, checked) =
            SafeTensors::read_metadata(&bytes).map_err(|error| Error::input(&place, format!("bad header: {error}")))?;
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
        let place = || format!("{}: tensor {name}", self.place);
        let entry = self.tensors.get(name).ok_or_else(|| Error::input(place(), "is not in the file"))?;
        let dtype = supported_dtype(entry.dtype).ok_or_else(|| {
            Error::input(place(), format!("is stored as {}, which is not supported", entry.dtype))
                .hint("supported are F32, F16, BF16, I8, U8, I32 and I64")
        })?;
        let bytes = self.bytes.slice(entry.range.clone());
        let bytes = bytes.ok_or_else(|| Error::input(place(), "reaches beyond the end of the file"))?;
        Ok(RawTensor { dtype, shape: entry.shape.clone(), bytes })
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

/// Where the header lies: behind its length, inside the file.
fn header_range(place: &str, bytes: &[u8]) -> Result<Range<usize>> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        let message = match bytes.len() {
            0 => "is empty; expected a safetensors file".to_owned(),
            found => format!("has {found} bytes; a safetensors file starts with 8 bytes of header length"),
        };
        return Err(Error::input(place, message));
    };
    let length = u64::from_le_bytes(*length);
    if length == 0 {
        return Err(Error::input(place, "the header length is 0"));
    }
    if length > MAX_HEADER_BYTES {
        let message = format!("the header length is {length}, above the limit of {MAX_HEADER_BYTES} bytes");
        return Err(Error::input(place, message).hint("this may not be a safetensors file"));
    }
    if length > rest.len() as u64 {
        return Err(missing(place, length - rest.len() as u64, "the header ends"));
    }
    Ok(8..8 + length as usize)
}

fn missing(place: &str, bytes: u64, where_: &str) -> Error {
    let unit = if bytes == 1 { "byte is" } else { "bytes are" };
    Error::input(place, format!("the file is cut short: {bytes} {unit} missing before {where_}"))
        .hint("the download or copy did not finish; get the file again")
}

/// Refuses what the crate would accept, and says what is missing where the data is cut short.
fn scan_header(place: &str, bytes: &[u8], header: Range<usize>) -> Result<()> {
    let text = bytes.get(header.clone()).unwrap_or_default();
    let scan: Scan =
        serde_json::from_slice(text).map_err(|error| Error::input(place, format!("bad header: {error}")))?;
    if scan.tensors == 0 {
        return Err(Error::input(place, "holds no tensors"));
    }
    let data = (bytes.len() - header.end) as u64;
    if scan.end > data {
        return Err(missing(place, scan.end - data, "the last tensor ends"));
    }
    if scan.end < data {
        let message = format!("{} bytes follow the last tensor; expected none", data - scan.end);
        return Err(Error::input(place, message));
    }
    Ok(())
}

/// What the header says, as far as the checks need it.
struct Scan {
    tensors: usize,
    /// Where the last tensor ends, from the start of the data.
    end: u64,
}

impl<'de> Deserialize<'de> for Scan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ScanVisitor)
    }
}

struct ScanVisitor;

impl<'de> Visitor<'de> for ScanVisitor {
    type Value = Scan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Scan, A::Error> {
        let mut seen = std::collections::HashSet::new();
        let mut scan = Scan { tensors: 0, end: 0 };
        while let Some(name) = entries.next_key::<Cow<'de, str>>()? {
            if name == METADATA_KEY {
                entries.next_value::<MetadataScan>()?;
            } else {
                check_name(&name).map_err(A::Error::custom)?;
                let tensor: TensorScan = entries.next_value()?;
                tensor.check().map_err(|message| A::Error::custom(format!("tensor {name}: {message}")))?;
                scan.end = scan.end.max(tensor.data_offsets.1);
                scan.tensors += 1;
            }
            if scan.tensors > MAX_TENSORS {
                return Err(A::Error::custom(format!("more than {MAX_TENSORS} tensors")));
            }
            if seen.contains(&name) {
                return Err(A::Error::custom(format!("`{name}` stands twice")));
            }
            seen.insert(name);
        }
        Ok(scan)
    }
}

/// Names become file names and log lines in other tools: no control characters, nothing that climbs.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a tensor has an empty name".to_owned());
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(format!("a tensor's name has {} bytes, above the limit of {MAX_NAME_BYTES}", name.len()));
    }
    if name.contains(['/', '\\']) || name.starts_with("..") || name.chars().any(char::is_control) {
        return Err(format!("the tensor name {name:?} looks like a path or has control characters"));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TensorScan {
    #[serde(rename = "dtype")]
    _dtype: FileDtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

impl TensorScan {
    fn check(&self) -> Result<(), String> {
        let (begin, end) = self.data_offsets;
        if end < begin {
            return Err(format!("its data ends at {end}, before it begins at {begin}"));
        }
        if self.shape.0.contains(&0) {
            return Err(format!("shape {:?} holds no values", self.shape.0));
        }
        Ok(())
    }
}

/// At most [`MAX_DIMENSIONS`] sizes, so that a header of nothing but dimensions allocates nothing.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of sizes")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sizes: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(size) = sizes.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(A::Error::custom(format!("more than {MAX_DIMENSIONS} dimensions")));
            }
            shape.push(size);
        }
        Ok(Shape(shape))
    }
}

/// `__metadata__`: strings under names that differ.
struct MetadataScan;

impl<'de> Deserialize<'de> for MetadataScan {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = MetadataScan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<MetadataScan, A::Error> {
        let mut seen = std::collections::HashSet::new();
        while let Some((key, _)) = entries.next_entry::<Cow<'de, str>, Cow<'de, str>>()? {
            if seen.contains(&key) {
                return Err(A::Error::custom(format!("`{key}` stands twice in `{METADATA_KEY}`")));
            }
            seen.insert(key);
            if seen.len() > MAX_METADATA_STRINGS {
                return Err(A::Error::custom(format!("more than {MAX_METADATA_STRINGS} strings in `{METADATA_KEY}`")));
            }
        }
        Ok(MetadataScan)
    }
}

/// A tensor that is going to be written: everything but its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl TensorHeader {
    /// Bytes that the tensor takes in the file; an error for blocks and for sizes beyond the machine.
    pub fn bytes(&self) -> Result<usize> {
        let size = match self.dtype {
            Dtype::Block(_) => None,
            dtype => dtype.bytes_of(&self.shape),
        };
        size.ok_or_else(|| {
            let message = format!("{} of shape {:?} cannot be written as safetensors", self.dtype, self.shape);
            Error::failed(format_args!("tensor {}", self.name), message)
        })
    }
}

/// Writes `tensors` to `path`, atomically: the file appears whole or not at all.
///
/// `bytes_of` is asked for the bytes of one tensor at a time and is not asked again, so at most one is in
/// memory. Tensors lie in the order given, except that wider dtypes come first (which aligns them all).
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorHeader],
    mut bytes_of: impl FnMut(&TensorHeader) -> Result<Bytes>,
) -> Result<()> {
    let mut ordered: Vec<&TensorHeader> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bytes_of(&[1])));
    let header = header_json(metadata, &ordered)?;
    atomic::write(path, |writer| {
        let failed = |error: std::io::Error| Error::write(path, &error);
        writer.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        writer.write_all(header.as_bytes()).map_err(failed)?;
        for tensor in ordered {
            let bytes = bytes_of(tensor)?;
            let expected = tensor.bytes()?;
            if bytes.len() != expected {
                let place = format!("{}: tensor {}", path.display(), tensor.name);
                return Err(Error::failed(place, format!("{} bytes to write; expected {expected}", bytes.len())));
            }
            writer.write_all(&bytes).map_err(failed)?;
        }
        Ok(())
    })
}

/// The header, padded with spaces so that the data starts at a multiple of eight.
fn header_json(metadata: &BTreeMap<String, String>, tensors: &[&TensorHeader]) -> Result<String> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        let strings = metadata.iter().map(|(key, value)| (key.clone(), value.clone().into()));
        header.insert(METADATA_KEY.to_owned(), serde_json::Value::Object(strings.collect()));
    }
    let mut begin = 0usize;
    for tensor in tensors {
        let place = || format!("tensor {}", tensor.name);
        let end = begin.checked_add(tensor.bytes()?);
        let end = end.ok_or_else(|| Error::failed(place(), "the file would be too large to address"))?;
        let entry = serde_json::json!({
            "dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [begin, end],
        });
        if header.insert(tensor.name.clone(), entry).is_some() {
            return Err(Error::failed(place(), "is to be written twice"));
        }
        begin = end;
    }
    let mut text = serde_json::Value::Object(header).to_string();
    let padded = text.len().next_multiple_of(8);
    text.extend(std::iter::repeat_n(' ', padded - text.len()));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(name: &str, dtype: Dtype, shape: &[usize]) -> TensorHeader {
        TensorHeader { name: name.to_owned(), dtype, shape: shape.to_vec() }
    }

    #[test]
    fn what_is_written_reads_back_with_metadata_and_alignment() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let tensors =
            [header("codes", Dtype::U8, &[3]), header("b", Dtype::Bf16, &[2, 1]), header("a", Dtype::F32, &[2])];
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let bytes_of = |tensor: &TensorHeader| Ok(Bytes::from(vec![tensor.name.len() as u8; tensor.bytes()?]));
        write(&path, &metadata, &tensors, bytes_of).expect("written");

        let file = SafeTensorsFile::open(&path).expect("valid");
        assert_eq!(file.metadata(), &metadata);
        assert_eq!(file.names().collect::<Vec<_>>(), ["a", "b", "codes"]);
        for expected in &tensors {
            let found = file.tensor(&expected.name).expect("there");
            assert_eq!((found.dtype, &found.shape), (expected.dtype, &expected.shape));
            assert!(found.bytes.iter().all(|byte| usize::from(*byte) == expected.name.len()));
        }
        assert_eq!(file.header_bytes().len() % 8, 0);
    }

    #[test]
    fn a_failing_producer_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("model.safetensors");
        let tensors = [header("a", Dtype::F32, &[2]), header("b", Dtype::F32, &[2])];
        let wrong_length = write(&path, &BTreeMap::new(), &tensors, |tensor| {
            Ok(Bytes::from(vec![0; if tensor.name == "a" { 8 } else { 7 }]))
        });
        assert!(wrong_length.expect_err("7 bytes").to_string().contains("expected 8"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
    }
}
