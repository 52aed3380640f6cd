//! Writing of a safetensors file, one tensor at a time.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use super::METADATA_KEY;
use crate::error::{Error, Place, Result};
use crate::files::{Bytes, Dtype, atomic};

/// A tensor that is going to be written: everything but its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// The name, unique in the file.
    pub name: String,
    /// The number format; not a block format.
    pub dtype: Dtype,
    /// The shape, outermost dimension first.
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
            Error::failed(Place::tensor("", &self.name), message)
        })
    }
}

/// Writes `tensors` to `path`, atomically: the file appears whole or not at all.
///
/// `bytes_of` is called once for each tensor, one after another, so at most one is in memory. Tensors lie in the order
/// given, except that wider dtypes come first (which aligns them all).
///
/// # Errors
/// Those of [`write_to`] and of [`atomic::write`].
pub fn write(
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorHeader],
    bytes_of: impl FnMut(&TensorHeader) -> Result<Bytes>,
) -> Result<()> {
    atomic::write(path, |writer| write_to(writer, path, metadata, tensors, bytes_of))
}

/// Writes the content of a safetensors file as [`write()`] does; `path` is the place that errors name.
///
/// # Errors
/// Those of `bytes_of` and of `writer`; Failed: a tensor that cannot be written, or has another size than its header says.
pub fn write_to(
    writer: &mut dyn Write,
    path: &Path,
    metadata: &BTreeMap<String, String>,
    tensors: &[TensorHeader],
    mut bytes_of: impl FnMut(&TensorHeader) -> Result<Bytes>,
) -> Result<()> {
    let mut ordered: Vec<&TensorHeader> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bytes_of(&[1])));
    let header = header_json(metadata, &ordered)?;
    let failed = |error: std::io::Error| Error::write(path, &error);
    writer.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    writer.write_all(header.as_bytes()).map_err(failed)?;
    for tensor in ordered {
        let bytes = bytes_of(tensor)?;
        let expected = tensor.bytes()?;
        if bytes.len() != expected {
            let place = Place::tensor(path, &tensor.name);
            return Err(Error::failed(place, format!("{} bytes to write; expected {expected}", bytes.len())));
        }
        writer.write_all(&bytes).map_err(failed)?;
        // The pages of a mapped base are not needed any more.
        bytes.release();
    }
    Ok(())
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
        let place = || Place::tensor("", &tensor.name);
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
    use crate::files::safetensors::SafeTensorsFile;

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
