//! Checks of a safetensors header that the `safetensors` crate does not make.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use safetensors::tensor::Dtype as FileDtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::METADATA_KEY;
use crate::error::{Error, Result};

/// The most tensors of a file: more than any model has. A header of a million tensors is an attack.
const MAX_TENSORS: usize = 100_000;
/// The most bytes of a header: the limit of the safetensors crate.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const MAX_NAME_BYTES: usize = 1024;
const MAX_DIMENSIONS: usize = 8;
const MAX_METADATA_STRINGS: usize = 10_000;

/// The range of the header: behind its length, inside the file.
pub(super) fn header_range(place: &str, bytes: &[u8]) -> Result<Range<usize>> {
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

fn missing(place: &str, bytes: u64, boundary: &str) -> Error {
    let unit = if bytes == 1 { "byte is" } else { "bytes are" };
    Error::input(place, format!("the file is cut short: {bytes} {unit} missing before {boundary}"))
        .hint("the download or copy did not finish; get the file again")
}

/// Refuses a header that the crate would accept, and says what is missing where the `data` bytes behind it are cut short.
pub(super) fn check(place: &str, text: &[u8], data: u64) -> Result<()> {
    let scan: Scan =
        serde_json::from_slice(text).map_err(|error| Error::input(place, format!("bad header: {error}")))?;
    if scan.tensors == 0 {
        return Err(Error::input(place, "holds no tensors"));
    }
    if scan.end > data {
        return Err(missing(place, scan.end - data, "the last tensor ends"));
    }
    if scan.end < data {
        let message = format!("{} bytes follow the last tensor; expected none", data - scan.end);
        return Err(Error::input(place, message));
    }
    Ok(())
}

/// The part of a header that the checks need.
struct Scan {
    tensors: usize,
    /// The end of the last tensor, from the start of the data.
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
        // mlx-lm writes `null` where there are none.
        deserializer.deserialize_option(MetadataVisitor)
    }
}

struct MetadataVisitor;

impl<'de> Visitor<'de> for MetadataVisitor {
    type Value = MetadataScan;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<MetadataScan, E> {
        Ok(MetadataScan)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<MetadataScan, D::Error> {
        deserializer.deserialize_map(self)
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
