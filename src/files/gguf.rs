//! GGUF: a memory-mapped reader for versions 2 and 3, little-endian.
//!
//! Layout (ggml `docs/gguf.md`): magic, version, tensor count, metadata count, then the metadata
//! (key, type, value), the tensor table (name, dimensions innermost first, type, offset) and, from the next
//! multiple of `general.alignment`, the data. Counts and lengths come from whoever wrote the file, so
//! nothing is allocated on their word: what a count promises must fit into the bytes that are left.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use super::{Bytes, Dtype, RawTensor, open};
use crate::error::{Error, Result};
use crate::quant::BlockType;

const MAX_METADATA: u64 = 65_536;
const MAX_TENSORS: u64 = 100_000;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_NAME_BYTES: u64 = 1024;
/// A chat template or licence, with room to spare.
const MAX_STRING_BYTES: u64 = 16 << 20;
/// One token or merge of a vocabulary.
const MAX_ITEM_BYTES: u64 = 65_535;
/// In all arrays together: eight times the largest vocabulary with its scores, types and merges.
const MAX_ARRAY_ITEMS: u64 = 8 << 20;
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_DIMENSIONS: u32 = 4;
const DEFAULT_ALIGNMENT: u64 = 32;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// A metadata array: items of one type.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// Any integer type that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// Either float type.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// A boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// A string.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    /// An array of strings (tokens, merges).
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(Array::String(values)) => Some(values),
            _ => None,
        }
    }

    /// An array of `F32` (scores).
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::Array(Array::F32(values)) => Some(values),
            _ => None,
        }
    }

    /// An array of integers that all fit `i64` (token types, per-layer counts).
    pub fn as_integers(&self) -> Option<Vec<i64>> {
        let Self::Array(array) = self else { return None };
        match array {
            Array::U8(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::I8(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::U16(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::I16(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::U32(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::I32(values) => Some(values.iter().map(|&value| value.into()).collect()),
            Array::U64(values) => values.iter().map(|&value| value.try_into().ok()).collect(),
            Array::I64(values) => Some(values.clone()),
            _ => None,
        }
    }

    /// The type's name, for messages.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F64(_) => "f64",
        }
    }
}

impl Array {
    /// Number of items.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Array(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F64(values) => values.len(),
        }
    }

    /// Whether there are no items.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An open GGUF file.
#[derive(Debug, Clone)]
pub struct Gguf {
    place: String,
    version: u32,
    bytes: Bytes,
    data_start: usize,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    dtype: Dtype,
    /// Outermost dimension first.
    shape: Vec<usize>,
    /// From the start of the data.
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
        let mut reader = Reader { place: &place, bytes: &bytes, position: 0, array_items: 0 };
        let version = reader.version()?;
        let tensor_count = reader.count("tensors", MAX_TENSORS)?;
        let metadata_count = reader.count("metadata entries", MAX_METADATA)?;
        let metadata = reader.metadata(metadata_count)?;
        let alignment = alignment(&place, &metadata)?;
        let tensors = reader.tensor_table(tensor_count, alignment)?;
        let data_start = (reader.position as u64).next_multiple_of(alignment);
        check_layout(&place, &tensors, data_start, bytes.len() as u64)?;
        check_vocabulary(&place, &metadata)?;
        Ok(Self { version, data_start: data_start as usize, metadata, tensors, place, bytes })
    }

    /// The file's path, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Every metadata entry, sorted by key.
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

    /// How a tensor is stored.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|entry| entry.dtype)
    }

    /// Everything before the tensors' data.
    pub fn header_bytes(&self) -> &[u8] {
        self.bytes.get(..self.data_start).unwrap_or(&self.bytes)
    }

    /// The size of the whole file in bytes.
    pub fn file_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// A tensor, its bytes still in the map. Whether its scales are finite is for
    /// [`RawTensor::check_finite`] to say, which reads all of it.
    pub fn tensor(&self, name: &str) -> Result<RawTensor> {
        let place = || format!("{}: tensor {name}", self.place);
        let entry = self.tensors.get(name).ok_or_else(|| Error::input(place(), "is not in the file"))?;
        // Ranges were checked against the file when it was opened.
        let begin = self.data_start + entry.offset as usize;
        let bytes = self.bytes.slice(begin..begin + entry.bytes as usize);
        let bytes = bytes.ok_or_else(|| Error::input(place(), "reaches beyond the end of the file"))?;
        Ok(RawTensor { dtype: entry.dtype, shape: entry.shape.clone(), bytes })
    }
}

/// Reads forward through the header.
struct Reader<'a> {
    place: &'a str,
    bytes: &'a [u8],
    position: usize,
    /// Items of all arrays so far.
    array_items: u64,
}

impl<'a> Reader<'a> {
    fn error(&self, message: impl Into<String>) -> Error {
        Error::input(self.place, message)
    }

    fn remaining(&self) -> u64 {
        (self.bytes.len() - self.position) as u64
    }

    fn take(&mut self, length: u64, what: impl fmt::Display) -> Result<&'a [u8]> {
        if length > self.remaining() {
            let missing = length - self.remaining();
            let message = format!("the file is cut short: {missing} bytes are missing in {what}");
            return Err(self.error(message).hint("the download or copy did not finish; get the file again"));
        }
        let bytes = &self.bytes[self.position..self.position + length as usize];
        self.position += length as usize;
        Ok(bytes)
    }

    fn array<const SIZE: usize>(&mut self, what: impl fmt::Display) -> Result<[u8; SIZE]> {
        let bytes = self.take(SIZE as u64, what)?;
        let mut array = [0; SIZE];
        array.copy_from_slice(bytes);
        Ok(array)
    }

    fn u32(&mut self, what: impl fmt::Display) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: impl fmt::Display) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn version(&mut self) -> Result<u32> {
        if self.bytes.is_empty() {
            return Err(self.error("is empty; expected a GGUF file"));
        }
        let magic: [u8; 4] = self.array("the magic number")?;
        match &magic {
            b"GGUF" => {}
            b"tjgg" | b"fmgg" | b"lmgg" | b"algg" | b"GGJT" | b"GGMF" | b"GGML" | b"GGLA" => {
                let error = self.error("is a GGML file from before GGUF, which is not supported");
                return Err(error.hint("convert it with llama.cpp, or get the model as GGUF"));
            }
            b"FUGG" => return Err(self.error("is a big-endian GGUF file, which is not supported")),
            other => {
                let found = String::from_utf8_lossy(other);
                return Err(self.error(format!("starts with {found:?}; expected the magic \"GGUF\"")));
            }
        }
        match self.u32("the version")? {
            version @ (2 | 3) => Ok(version),
            version if version != 0 && version & 0xffff == 0 => {
                Err(self.error("is a big-endian GGUF file, which is not supported"))
            }
            version => Err(self.error(format!("has GGUF version {version}; supported are 2 and 3"))),
        }
    }

    fn count(&mut self, what: &str, limit: u64) -> Result<u64> {
        let count = self.u64(format_args!("the number of {what}"))?;
        if count > limit {
            return Err(self.error(format!("declares {count} {what}, above the limit of {limit}")));
        }
        Ok(count)
    }

    /// A string of at most `limit` bytes; `what` names it.
    fn string(&mut self, limit: u64, what: &str) -> Result<&'a str> {
        let length = self.u64(format_args!("the length of {what}"))?;
        if length > limit {
            return Err(self.error(format!("{what} has {length} bytes, above the limit of {limit}")));
        }
        let bytes = self.take(length, what)?;
        std::str::from_utf8(bytes).map_err(|error| self.error(format!("{what} is not UTF-8: {error}")))
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<String, Value>> {
        let mut metadata = BTreeMap::new();
        for index in 0..count {
            let key = self.string(MAX_KEY_BYTES, &format!("metadata key {index}"))?;
            if key.is_empty() {
                return Err(self.error(format!("metadata key {index} is empty")));
            }
            let kind = self.u32(format_args!("the type of `{key}`"))?;
            let value = self.value(kind, key)?;
            if metadata.insert(key.to_owned(), value).is_some() {
                return Err(self.error(format!("the metadata key `{key}` stands twice")));
            }
        }
        Ok(metadata)
    }

    fn value(&mut self, kind: u32, key: &str) -> Result<Value> {
        let what = format_args!("the value of `{key}`");
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => {
                let [byte] = self.array(what)?;
                Value::Bool(self.boolean(byte, key)?)
            }
            8 => Value::String(self.string(MAX_STRING_BYTES, &format!("`{key}`"))?.to_owned()),
            9 => Value::Array(self.value_array(key, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            other => return Err(self.error(format!("`{key}` has the unknown metadata type {other}"))),
        })
    }

    fn boolean(&self, byte: u8, key: &str) -> Result<bool> {
        match byte {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(format!("`{key}` holds {other} where a boolean is 0 or 1"))),
        }
    }

    fn value_array(&mut self, key: &str, depth: usize) -> Result<Array> {
        if depth > MAX_ARRAY_DEPTH {
            return Err(self.error(format!("`{key}` nests arrays more than {MAX_ARRAY_DEPTH} deep")));
        }
        let kind = self.u32(format_args!("the item type of `{key}`"))?;
        let count = self.u64(format_args!("the length of `{key}`"))?;
        self.array_items = self.array_items.saturating_add(count);
        if self.array_items > MAX_ARRAY_ITEMS {
            let message = format!("`{key}` has {count} items; the limit is {MAX_ARRAY_ITEMS} in all arrays together");
            return Err(self.error(message));
        }
        Ok(match kind {
            0 => Array::U8(self.items(count, key, u8::from_le_bytes)?),
            1 => Array::I8(self.items(count, key, i8::from_le_bytes)?),
            2 => Array::U16(self.items(count, key, u16::from_le_bytes)?),
            3 => Array::I16(self.items(count, key, i16::from_le_bytes)?),
            4 => Array::U32(self.items(count, key, u32::from_le_bytes)?),
            5 => Array::I32(self.items(count, key, i32::from_le_bytes)?),
            6 => Array::F32(self.items(count, key, f32::from_le_bytes)?),
            7 => {
                let bytes = self.items(count, key, u8::from_le_bytes)?;
                Array::Bool(bytes.into_iter().map(|byte| self.boolean(byte, key)).collect::<Result<_>>()?)
            }
            8 => Array::String(self.strings(count, key)?),
            9 => {
                let mut arrays = Vec::new();
                for _ in 0..count {
                    arrays.push(self.value_array(key, depth + 1)?);
                }
                Array::Array(arrays)
            }
            10 => Array::U64(self.items(count, key, u64::from_le_bytes)?),
            11 => Array::I64(self.items(count, key, i64::from_le_bytes)?),
            12 => Array::F64(self.items(count, key, f64::from_le_bytes)?),
            other => return Err(self.error(format!("`{key}` is an array of the unknown type {other}"))),
        })
    }

    fn items<T, const SIZE: usize>(&mut self, count: u64, key: &str, decode: fn([u8; SIZE]) -> T) -> Result<Vec<T>> {
        // The item limit keeps the product far from overflow.
        let bytes = self.take(count * SIZE as u64, format_args!("`{key}`"))?;
        Ok(bytes.as_chunks().0.iter().map(|item| decode(*item)).collect())
    }

    fn strings(&mut self, count: u64, key: &str) -> Result<Vec<String>> {
        let what = format!("an item of `{key}`");
        let mut strings = Vec::with_capacity(count.min(self.remaining() / 8) as usize);
        for _ in 0..count {
            strings.push(self.string(MAX_ITEM_BYTES, &what)?.to_owned());
        }
        Ok(strings)
    }

    fn tensor_table(&mut self, count: u64, alignment: u64) -> Result<BTreeMap<String, Entry>> {
        let mut tensors = BTreeMap::new();
        for index in 0..count {
            let name = self.string(MAX_NAME_BYTES, &format!("the name of tensor {index}"))?;
            if name.is_empty() {
                return Err(self.error(format!("tensor {index} has an empty name")));
            }
            let entry = self.tensor_entry(name)?;
            if entry.offset % alignment != 0 {
                let message = format!("offset {} is not a multiple of the alignment {alignment}", entry.offset);
                return Err(self.tensor_error(name, message));
            }
            if tensors.insert(name.to_owned(), entry).is_some() {
                return Err(self.tensor_error(name, "stands twice in the tensor table"));
            }
        }
        Ok(tensors)
    }

    fn tensor_error(&self, name: &str, message: impl Into<String>) -> Error {
        Error::input(format_args!("{}: tensor {name}", self.place), message)
    }

    fn tensor_entry(&mut self, name: &str) -> Result<Entry> {
        let dimensions = self.u32(format_args!("the dimensions of {name}"))?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            let message = format!("has {dimensions} dimensions; expected 1 to {MAX_DIMENSIONS}");
            return Err(self.tensor_error(name, message));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64(format_args!("the shape of {name}"))?;
            let size = usize::try_from(size).ok().filter(|&size| size > 0);
            shape.push(size.ok_or_else(|| self.tensor_error(name, "has a dimension of 0 or beyond this machine"))?);
        }
        shape.reverse();
        let id = self.u32(format_args!("the type of {name}"))?;
        let dtype = dtype_of(id).ok_or_else(|| {
            let kind = unsupported_type_name(id).map_or(format!("the unknown type {id}"), str::to_owned);
            self.tensor_error(name, format!("is stored as {kind}, which is not supported"))
                .hint("supported are F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K")
        })?;
        let offset = self.u64(format_args!("the offset of {name}"))?;
        let bytes = dtype.bytes_of(&shape).ok_or_else(|| {
            let message = match dtype {
                Dtype::Block(block) if shape.last().is_some_and(|row| row % block.values_per_block() != 0) => {
                    format!("has rows of {} values; {block} needs a multiple of {}", shape[shape.len() - 1], {
                        block.values_per_block()
                    })
                }
                _ => format!("has the impossible shape {shape:?}"),
            };
            self.tensor_error(name, message)
        })?;
        Ok(Entry { dtype, shape, offset, bytes: bytes as u64 })
    }
}

fn dtype_of(id: u32) -> Option<Dtype> {
    match id {
        0 => Some(Dtype::F32),
        1 => Some(Dtype::F16),
        24 => Some(Dtype::I8),
        26 => Some(Dtype::I32),
        27 => Some(Dtype::I64),
        30 => Some(Dtype::Bf16),
        other => BlockType::from_ggml_type_id(other).map(Dtype::Block),
    }
}

/// Names of ggml types that are known and not read here (`enum ggml_type`).
fn unsupported_type_name(id: u32) -> Option<&'static str> {
    Some(match id {
        4 => "Q4_2 (removed from GGUF)",
        5 => "Q4_3 (removed from GGUF)",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        20 => "IQ4_NL",
        21 => "IQ3_S",
        22 => "IQ2_S",
        23 => "IQ4_XS",
        25 => "I16",
        28 => "F64",
        29 => "IQ1_M",
        31..=33 => "Q4_0 in a repacked layout (removed from GGUF)",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return None,
    })
}

fn alignment(place: &str, metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
    let Value::U32(alignment) = *value else {
        let message = format!("`general.alignment` is of type {}; expected u32", value.type_name());
        return Err(Error::input(place, message));
    };
    if !alignment.is_power_of_two() || !(8..=65_536).contains(&alignment) {
        let message = format!("`general.alignment` is {alignment}; expected a power of two from 8 to 65536");
        return Err(Error::input(place, message));
    }
    Ok(alignment.into())
}

/// Every tensor inside the file, none over another.
fn check_layout(place: &str, tensors: &BTreeMap<String, Entry>, data_start: u64, file_bytes: u64) -> Result<()> {
    let mut by_offset: Vec<(&String, &Entry)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, entry)| entry.offset);
    let mut end = 0u64;
    let mut previous = "";
    for (name, entry) in by_offset {
        if entry.offset < end {
            let message = format!("its data overlaps that of {previous}");
            return Err(Error::input(format_args!("{place}: tensor {name}"), message));
        }
        end = entry.offset.checked_add(entry.bytes).filter(|end| end.checked_add(data_start).is_some()).ok_or_else(
            || {
                Error::input(
                    format_args!("{place}: tensor {name}"),
                    format!("has the impossible offset {}", entry.offset),
                )
            },
        )?;
        previous = name;
    }
    let needed = if tensors.is_empty() { 0 } else { data_start + end };
    if needed > file_bytes {
        let message =
            format!("the file is cut short: {} bytes are missing before {previous} ends", needed - file_bytes);
        return Err(Error::input(place, message).hint("the download or copy did not finish; get the file again"));
    }
    Ok(())
}

/// The vocabulary's arrays agree: as many scores and types as tokens, no empty token, byte tokens that
/// name a byte.
fn check_vocabulary(place: &str, metadata: &BTreeMap<String, Value>) -> Result<()> {
    const BYTE_TOKEN: i64 = 6;
    let Some(value) = metadata.get("tokenizer.ggml.tokens") else { return Ok(()) };
    let Some(tokens) = value.as_strings() else {
        return Err(Error::input(place, "`tokenizer.ggml.tokens` is not an array of strings"));
    };
    for key in ["tokenizer.ggml.scores", "tokenizer.ggml.token_type"] {
        let length = match metadata.get(key) {
            None => continue,
            Some(Value::Array(array)) => array.len(),
            Some(other) => {
                return Err(Error::input(
                    place,
                    format!("`{key}` is of type {}; expected an array", other.type_name()),
                ));
            }
        };
        if length != tokens.len() {
            let message = format!("`{key}` has {length} items for {} tokens", tokens.len());
            return Err(Error::input(place, message));
        }
    }
    if let Some(index) = tokens.iter().position(String::is_empty) {
        return Err(Error::input(place, format!("token {index} is empty")));
    }
    let types = metadata.get("tokenizer.ggml.token_type").and_then(Value::as_integers).unwrap_or_default();
    for (index, (token, kind)) in tokens.iter().zip(types).enumerate() {
        if kind == BYTE_TOKEN && byte_of_token(token).is_none() {
            let message = format!("token {index} is a byte token named {token:?}; expected <0x00> to <0xFF>");
            return Err(Error::input(place, message));
        }
    }
    Ok(())
}

/// The byte that a token such as `<0x0A>` stands for.
pub fn byte_of_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}
