//! Writing of GGUF files, version 3: metadata, tensor table, then the tensors one at a time.

use std::io::Write;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::tensor_type::id_of;
use super::value::{Array, Value};
use crate::error::{Error, Place, Result};
use crate::files::{Dtype, atomic};

const VERSION: u32 = 3;
/// llama.cpp's default for `general.alignment` (`GGUF_DEFAULT_ALIGNMENT`).
pub(super) const ALIGNMENT: u64 = 32;

/// A tensor that is going to be written: everything but its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name, unique in the file.
    pub name: String,
    /// The number format.
    pub dtype: Dtype,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Bytes that the tensor takes in the file.
    ///
    /// # Errors
    /// Failed: a row that is no whole number of blocks, a size beyond this machine.
    pub fn bytes(&self) -> Result<u64> {
        let bytes = self.dtype.bytes_of(&self.shape).map(|bytes| bytes as u64);
        bytes.ok_or_else(|| {
            let message = format!("{} of shape {:?} cannot be written as GGUF", self.dtype, self.shape);
            Error::failed(Place::tensor("", &self.name), message)
        })
    }
}

/// The SHA-256 of a tensor's bytes.
pub type TensorDigest = [u8; 32];

/// The receiver of one tensor's bytes.
pub struct TensorWriter<'a> {
    writer: &'a mut dyn Write,
    path: &'a Path,
    hasher: Sha256,
    bytes: u64,
}

impl TensorWriter<'_> {
    /// Adds `bytes` to the tensor.
    ///
    /// # Errors
    /// Failed: the disk is full.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write_all(bytes).map_err(|error| Error::write(self.path, &error))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Writes a file to `path`, atomically. `produce` is called once for each tensor, in order, and writes its bytes in pieces
/// of any size.
///
/// Returns the digest of each tensor.
///
/// # Errors
/// Those of `produce`. Failed: a full disk; a tensor that GGUF cannot hold, or that got more or fewer bytes than its shape
/// says.
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[TensorInfo],
    mut produce: impl FnMut(&TensorInfo, &mut TensorWriter<'_>) -> Result<()>,
) -> Result<Vec<TensorDigest>> {
    let header = header(metadata, tensors)?;
    let mut digests = Vec::with_capacity(tensors.len());
    atomic::write(path, |writer| {
        let failed = |error: std::io::Error| Error::write(path, &error);
        writer.write_all(&header).map_err(failed)?;
        for tensor in tensors {
            let mut receiver = TensorWriter { writer: &mut *writer, path, hasher: Sha256::new(), bytes: 0 };
            produce(tensor, &mut receiver)?;
            let (bytes, expected) = (receiver.bytes, tensor.bytes()?);
            digests.push(receiver.hasher.finalize().into());
            if bytes != expected {
                let place = Place::tensor(path, &tensor.name);
                return Err(Error::failed(place, format!("{bytes} bytes to write; expected {expected}")));
            }
            writer.write_all(padding(bytes)).map_err(failed)?;
        }
        Ok(())
    })?;
    Ok(digests)
}

/// The zeros that fill up to a multiple of the alignment.
fn padding(bytes: u64) -> &'static [u8] {
    const ZEROS: [u8; ALIGNMENT as usize] = [0; ALIGNMENT as usize];
    &ZEROS[..(bytes.next_multiple_of(ALIGNMENT) - bytes) as usize]
}

/// Everything before the data, and the zeros up to it.
pub(super) fn header(metadata: &[(String, Value)], tensors: &[TensorInfo]) -> Result<Vec<u8>> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_string(&mut bytes, key);
        bytes.extend(kind_of(value).to_le_bytes());
        put_value(&mut bytes, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_string(&mut bytes, &tensor.name);
        bytes.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            bytes.extend((*size as u64).to_le_bytes());
        }
        let id = id_of(tensor.dtype).ok_or_else(|| {
            Error::failed(Place::tensor("", &tensor.name), format!("{} cannot be written as GGUF", tensor.dtype))
        })?;
        bytes.extend(id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += tensor.bytes()?.next_multiple_of(ALIGNMENT);
    }
    bytes.extend(padding(bytes.len() as u64));
    Ok(bytes)
}

fn put_string(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// The number of a value's type (`enum gguf_type` of gguf.h).
fn kind_of(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => bytes.push(*value),
        Value::I8(value) => bytes.extend(value.to_le_bytes()),
        Value::U16(value) => bytes.extend(value.to_le_bytes()),
        Value::I16(value) => bytes.extend(value.to_le_bytes()),
        Value::U32(value) => bytes.extend(value.to_le_bytes()),
        Value::I32(value) => bytes.extend(value.to_le_bytes()),
        Value::F32(value) => bytes.extend(value.to_le_bytes()),
        Value::Bool(value) => bytes.push(u8::from(*value)),
        Value::String(value) => put_string(bytes, value),
        Value::Array(array) => put_array(bytes, array),
        Value::U64(value) => bytes.extend(value.to_le_bytes()),
        Value::I64(value) => bytes.extend(value.to_le_bytes()),
        Value::F64(value) => bytes.extend(value.to_le_bytes()),
    }
}

fn put_array(bytes: &mut Vec<u8>, array: &Array) {
    macro_rules! numbers {
        ($kind:literal, $items:expr) => {{
            bytes.extend(u32::to_le_bytes($kind));
            bytes.extend(($items.len() as u64).to_le_bytes());
            bytes.extend($items.iter().flat_map(|item| item.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(items) => numbers!(0, items),
        Array::I8(items) => numbers!(1, items),
        Array::U16(items) => numbers!(2, items),
        Array::I16(items) => numbers!(3, items),
        Array::U32(items) => numbers!(4, items),
        Array::I32(items) => numbers!(5, items),
        Array::F32(items) => numbers!(6, items),
        Array::Bool(items) => {
            let items: Vec<u8> = items.iter().map(|item| u8::from(*item)).collect();
            numbers!(7, items);
        }
        Array::String(items) => {
            bytes.extend(8u32.to_le_bytes());
            bytes.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| put_string(bytes, item));
        }
        Array::Array(items) => {
            bytes.extend(9u32.to_le_bytes());
            bytes.extend((items.len() as u64).to_le_bytes());
            items.iter().for_each(|item| put_array(bytes, item));
        }
        Array::U64(items) => numbers!(10, items),
        Array::I64(items) => numbers!(11, items),
        Array::F64(items) => numbers!(12, items),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::gguf::Gguf;
    use crate::quant::BlockType;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> TensorInfo {
        TensorInfo { name: name.to_owned(), dtype, shape: shape.to_vec() }
    }

    fn every_kind_of_value() -> Vec<(String, Value)> {
        let nested = Array::Array(vec![Array::I8(vec![-1, 2]), Array::String(vec!["ä".to_owned(), "b".to_owned()])]);
        let values = [
            Value::U8(200),
            Value::I8(-3),
            Value::U16(60_000),
            Value::I16(-30_000),
            Value::U32(4_000_000_000),
            Value::I32(-2_000_000_000),
            Value::F32(1.5e-5),
            Value::Bool(true),
            Value::String("ein Text".to_owned()),
            Value::U64(u64::MAX),
            Value::I64(i64::MIN),
            Value::F64(-2.25),
            Value::Array(nested),
            Value::Array(Array::U8(vec![1, 2, 3])),
            Value::Array(Array::U16(vec![1, 65_535])),
            Value::Array(Array::I16(vec![-1])),
            Value::Array(Array::U32(vec![])),
            Value::Array(Array::I32(vec![-7, 7])),
            Value::Array(Array::F32(vec![0.5, -0.5])),
            Value::Array(Array::Bool(vec![true, false])),
            Value::Array(Array::U64(vec![1 << 40])),
            Value::Array(Array::I64(vec![-(1 << 40)])),
            Value::Array(Array::F64(vec![0.1])),
        ];
        values.into_iter().enumerate().map(|(index, value)| (format!("key.{index:02}"), value)).collect()
    }

    #[test]
    fn every_kind_of_value_and_tensor_reads_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.gguf");
        let metadata = every_kind_of_value();
        let tensors = [
            tensor("one", Dtype::F32, &[3]),
            tensor("two", Dtype::Block(BlockType::Q4_0), &[2, 32]),
            tensor("three", Dtype::Bf16, &[2, 3, 5]),
        ];
        let mut next = 0u8;
        let digests = write(&path, &metadata, &tensors, |tensor, writer| {
            next += 1;
            (0..tensor.bytes()?).try_for_each(|_| writer.write(&[next]))
        });
        let digests = digests.expect("written");

        let file = Gguf::open(&path).expect("valid");
        let found: Vec<(String, Value)> = file.metadata().clone().into_iter().collect();
        assert_eq!(found, metadata);
        for ((tensor, digest), byte) in tensors.iter().zip(digests).zip(1u8..) {
            let found = file.tensor(&tensor.name).expect("there");
            assert_eq!((found.dtype, &found.shape), (tensor.dtype, &tensor.shape));
            assert!(found.bytes.iter().all(|found| *found == byte), "{}", tensor.name);
            assert_eq!(digest, <TensorDigest>::from(Sha256::digest(&found.bytes[..])));
        }
    }

    #[test]
    fn a_tensor_of_the_wrong_length_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.gguf");
        let error = write(&path, &[], &[tensor("a", Dtype::F16, &[4])], |_, writer| writer.write(&[0; 7]));
        assert!(error.expect_err("seven bytes").to_string().contains("expected 8"));
        let error = write(&path, &[], &[tensor("a", Dtype::Block(BlockType::Q8_0), &[4, 31])], |_, _| Ok(()));
        assert!(error.expect_err("no whole block").to_string().contains("[4, 31]"));
        assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 0);
    }
}
