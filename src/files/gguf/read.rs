//! The header of a GGUF file, read forward: version, metadata, tensor table.
//!
//! Counts and lengths are not trusted: before memory is allocated for a count, its items must fit into the bytes that are
//! left. Texts are copied out of the file before they are checked to be UTF-8: the bytes of a
//! mapped file may change at any time, those of a `String` may not.

use std::collections::BTreeMap;
use std::fmt;

use super::tensor_type::{dtype_of, unsupported_type_name};
use super::value::{Array, Value};
use super::write::ALIGNMENT;
use super::{Entry, Header};
use crate::error::{Error, Place, Result};
use crate::files::Dtype;

const MAX_METADATA: u64 = 65_536;
const MAX_TENSORS: u64 = 100_000;
const MAX_KEY_BYTES: u64 = 65_535;
const MAX_NAME_BYTES: u64 = 1024;
/// The most bytes of a metadata string: of a chat template or licence, with room to spare.
const MAX_STRING_BYTES: u64 = 16 << 20;
/// The most bytes of one token or merge of a vocabulary.
const MAX_ITEM_BYTES: u64 = 65_535;
/// The most items of all arrays together: eight times the largest vocabulary with its scores, types and merges.
const MAX_ARRAY_ITEMS: u64 = 8 << 20;
const MAX_ARRAY_DEPTH: usize = 4;
const MAX_DIMENSIONS: u32 = 4;

/// Reads everything before the tensors' data, and checks that the data is there.
///
/// # Errors
/// Input: the file is broken; the error names metadata key or tensor.
pub(super) fn header(place: &str, bytes: &[u8]) -> Result<Header> {
    let mut reader = Reader { place, bytes, position: 0, array_items: 0 };
    let version = reader.version()?;
    let tensor_count = reader.count("tensors", MAX_TENSORS)?;
    let metadata_count = reader.count("metadata entries", MAX_METADATA)?;
    let metadata = reader.metadata(metadata_count)?;
    let alignment = alignment(place, &metadata)?;
    let tensors = reader.tensor_table(tensor_count, alignment)?;
    let data_start = (reader.position as u64).next_multiple_of(alignment);
    check_layout(place, &tensors, data_start, bytes.len() as u64)?;
    Ok(Header { version, metadata, tensors, data_start: data_start as usize })
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

    /// A copy of a string of at most `limit` bytes; `what` names it.
    fn string(&mut self, limit: u64, what: &str) -> Result<String> {
        let length = self.u64(format_args!("the length of {what}"))?;
        if length > limit {
            return Err(self.error(format!("{what} has {length} bytes, above the limit of {limit}")));
        }
        let bytes = self.take(length, what)?.to_vec();
        String::from_utf8(bytes).map_err(|error| self.error(format!("{what} is not UTF-8: {}", error.utf8_error())))
    }

    fn metadata(&mut self, count: u64) -> Result<BTreeMap<String, Value>> {
        let mut metadata = BTreeMap::new();
        for index in 0..count {
            let key = self.string(MAX_KEY_BYTES, &format!("metadata key {index}"))?;
            if key.is_empty() {
                return Err(self.error(format!("metadata key {index} is empty")));
            }
            let kind = self.u32(format_args!("the type of `{key}`"))?;
            let value = self.value(kind, &key)?;
            if metadata.contains_key(&key) {
                return Err(self.error(format!("the metadata key `{key}` stands twice")));
            }
            metadata.insert(key, value);
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
            8 => Value::String(self.string(MAX_STRING_BYTES, &format!("`{key}`"))?),
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
            strings.push(self.string(MAX_ITEM_BYTES, &what)?);
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
            let entry = self.tensor_entry(&name)?;
            if entry.offset % alignment != 0 {
                let message = format!("offset {} is not a multiple of the alignment {alignment}", entry.offset);
                return Err(self.tensor_error(&name, message));
            }
            if tensors.contains_key(&name) {
                return Err(self.tensor_error(&name, "stands twice in the tensor table"));
            }
            tensors.insert(name, entry);
        }
        Ok(tensors)
    }

    fn tensor_error(&self, name: &str, message: impl Into<String>) -> Error {
        Error::input(Place::tensor(self.place, name), message)
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
        Ok(Entry { dtype, shape, offset, bytes: bytes as u64, part: 0 })
    }
}

/// The alignment of the data: `general.alignment`, or the default.
fn alignment(place: &str, metadata: &BTreeMap<String, Value>) -> Result<u64> {
    let Some(value) = metadata.get("general.alignment") else { return Ok(ALIGNMENT) };
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

/// Checks that every tensor lies inside the file, and none over another.
fn check_layout(place: &str, tensors: &BTreeMap<String, Entry>, data_start: u64, file_bytes: u64) -> Result<()> {
    let mut by_offset: Vec<(&String, &Entry)> = tensors.iter().collect();
    by_offset.sort_by_key(|(_, entry)| entry.offset);
    let mut end = 0u64;
    let mut previous = "";
    for (name, entry) in by_offset {
        if entry.offset < end {
            let message = format!("its data overlaps that of {previous}");
            return Err(Error::input(Place::tensor(place, name), message));
        }
        end = entry.offset.checked_add(entry.bytes).filter(|end| end.checked_add(data_start).is_some()).ok_or_else(
            || Error::input(Place::tensor(place, name), format!("has the impossible offset {}", entry.offset)),
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
