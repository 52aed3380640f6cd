//! Files of weights: safetensors and GGUF, read without copying, written atomically ([`output`]).
//!
//! A reader hands out [`RawTensor`]s: the bytes as they lie in the file, with a dtype and a shape.
//! `quant` decodes the numbers; `model` knows their purpose.

pub mod bitsandbytes;
pub mod cache_folder;
pub mod fetch;
pub mod folders;
pub mod gguf;
pub mod hex;
pub mod json;
pub mod known_hashes;
pub mod open;
pub mod output;
pub mod read_rate;
pub mod safetensors;

use std::fmt;
use std::ops::{Deref, Range};
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;

pub use output::{atomic, lock, log, secret, shards, space, staging, temporary, versions};

use crate::error::{Error, Place, Result};
use crate::quant::{BlockType, float};

/// Bytes that are either a slice of a memory-mapped file or owned. Cloning is cheap.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Mapped(Arc<memmap2::Mmap>),
    Heap(Arc<Vec<u8>>),
}

impl Bytes {
    /// A slice of a mapped file. `range` must lie inside the map.
    pub fn mapped(map: Arc<memmap2::Mmap>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= map.len(), "a tensor's range lies inside its file");
        Self { owner: Owner::Mapped(map), range }
    }

    /// A part of these bytes, sharing their memory; `None` where it reaches beyond them.
    pub fn slice(&self, part: Range<usize>) -> Option<Self> {
        if part.start > part.end || part.end > self.len() {
            return None;
        }
        let range = self.range.start + part.start..self.range.start + part.end;
        Some(Self { owner: self.owner.clone(), range })
    }

    /// Whether they lie in a mapped file, at an address that suits values of `size` bytes.
    pub fn are_mapped(&self, size: usize) -> bool {
        matches!(self.owner, Owner::Mapped(_)) && self.as_ptr().addr().is_multiple_of(size)
    }

    /// Has the system read the pages of a mapped file into its cache, without waiting for them.
    pub fn fetch(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            // Linux reads no more for one call than the device takes at once.
            const PIECE: usize = 128 << 10;
            for start in self.range.clone().step_by(PIECE) {
                let length = PIECE.min(self.range.end - start);
                // That the system does not take the advice is no error.
                let _ = map.advise_range(memmap2::Advice::WillNeed, start, length);
            }
        }
    }

    /// Returns the memory of a mapped file's pages to the system, which reads them again on the next access. Owned bytes
    /// stay.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Mapped(map) = &self.owner {
            // The first and the last page may belong to a neighbour as well.
            const PAGE: usize = 4096;
            let (start, end) = (self.range.start.next_multiple_of(PAGE), self.range.end / PAGE * PAGE);
            if start < end {
                // SAFETY: the map is a read-only view of a file: dropped pages come back with the same contents. That
                // the system does not take the advice is no error.
                let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
            }
        }
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Owner::Heap(Arc::new(bytes)), range }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.owner {
            Owner::Mapped(map) => &map[self.range.clone()],
            Owner::Heap(bytes) => &bytes[self.range.clone()],
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

/// Values of f32 in a mapped file or owned. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Floats(Bytes);

impl Floats {
    /// The bytes of the values.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }
}

impl From<Bytes> for Floats {
    /// Little-endian values, as many as there are whole ones; those at an address that does not suit them are copied once.
    fn from(bytes: Bytes) -> Self {
        let whole = bytes.len() / size_of::<f32>() * size_of::<f32>();
        let bytes = bytes.slice(0..whole).unwrap_or(bytes);
        let is_aligned = bytemuck::try_cast_slice::<u8, f32>(&bytes).is_ok();
        Self(if is_aligned { bytes } else { Bytes::from(bytes.to_vec()) })
    }
}

impl From<Vec<f32>> for Floats {
    fn from(values: Vec<f32>) -> Self {
        Bytes::from(float::encode_f32(&values)).into()
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }
}

/// The number format of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
    /// Signed bytes.
    I8,
    /// Unsigned bytes.
    U8,
    /// Signed 32-bit integers.
    I32,
    /// Signed 64-bit integers.
    I64,
    /// GGUF blocks, row by row.
    Block(BlockType),
}

impl Dtype {
    /// The name for users: `F32`, `BF16`, `Q4_K`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::I8 => "I8",
            Self::U8 => "U8",
            Self::I32 => "I32",
            Self::I64 => "I64",
            Self::Block(block) => block.name(),
        }
    }

    /// PyTorch's name of the type that holds these numbers: of a float format its own, of any other `float32`.
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
            _ => "float32",
        }
    }

    /// Bytes of a tensor of this shape; `None` where that overflows or the innermost dimension is not a
    /// whole number of blocks.
    pub fn bytes_of(self, shape: &[usize]) -> Option<usize> {
        let values = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
        match self {
            Self::I8 | Self::U8 => Some(values),
            Self::F16 | Self::Bf16 => values.checked_mul(2),
            Self::F32 | Self::I32 => values.checked_mul(4),
            Self::I64 => values.checked_mul(8),
            Self::Block(block) => {
                let row = shape.last().copied().unwrap_or(1);
                (row % block.values_per_block() == 0)
                    .then(|| values / block.values_per_block())?
                    .checked_mul(block.bytes_per_block())
            }
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A number format that weights can be written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16: the upper half of a binary32.
    Bf16,
}

impl FloatType {
    /// The dtype of tensors in this format.
    pub fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }

    /// Bytes of a value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// `values` rounded once to this type.
    pub fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => float::encode_f32(values),
            Self::F16 => float::encode_f16(values),
            Self::Bf16 => float::encode_bf16(values),
        }
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("unknown type `{name}`; there are f32, f16, bf16")),
        }
    }
}

/// A tensor as it lies in a file: row-major, outermost dimension first (`[out, in]` for a projection),
/// whatever order the file format uses.
#[derive(Debug, Clone)]
pub struct RawTensor {
    /// The number format.
    pub dtype: Dtype,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The values, row-major, little-endian.
    pub bytes: Bytes,
}

impl RawTensor {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Every value as `f32`: exact for 16-bit floats and 8-bit integers, the format's own formula for
    /// blocks, rounded for `I32` and `I64`. An error where the bytes do not fit the shape.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.check_size()?;
        let mut values = vec![0.0; self.elements()];
        values.par_chunks_mut(PIECE).enumerate().for_each(|(piece, values)| self.decode(piece * PIECE, values));
        Ok(values)
    }

    /// Every value rounded once to `float_type`, as bytes; a piece at a time is decoded in full.
    ///
    /// # Errors
    /// The bytes do not fit the shape.
    pub fn encoded(&self, float_type: FloatType) -> Result<Vec<u8>> {
        self.check_size()?;
        let size = float_type.bytes();
        let mut encoded = vec![0; size * self.elements()];
        encoded.par_chunks_mut(size * PIECE).enumerate().for_each(|(piece, encoded)| {
            let mut values = vec![0.0; encoded.len() / size];
            self.decode(piece * PIECE, &mut values);
            encoded.copy_from_slice(&float_type.encode(&values));
        });
        Ok(encoded)
    }

    /// Whether the bytes are as many as dtype and shape say.
    ///
    /// # Errors
    /// Bytes, dtype and shape contradict each other.
    pub fn check_size(&self) -> Result<()> {
        if self.dtype.bytes_of(&self.shape) == Some(self.bytes.len()) {
            return Ok(());
        }
        let message = format!("{} bytes do not fit shape {:?} of {}", self.bytes.len(), self.shape, self.dtype);
        Err(Error::input("", message))
    }

    /// Decodes the values `first..first + values.len()`: whole blocks, where the format has blocks. They must lie inside
    /// a tensor that [`Self::check_size`] has passed.
    pub fn decode(&self, first: usize, values: &mut [f32]) {
        let (per_block, block_bytes) = match self.dtype {
            Dtype::Block(block) => (block.values_per_block(), block.bytes_per_block()),
            dtype => (1, dtype.bytes_of(&[1]).unwrap_or(1)),
        };
        debug_assert!(first.is_multiple_of(per_block) && values.len().is_multiple_of(per_block));
        let bytes: &[u8] = &self.bytes;
        let bytes = &bytes[first / per_block * block_bytes..][..values.len() / per_block * block_bytes];
        match self.dtype {
            Dtype::F32 => float::decode_f32(bytes, values),
            Dtype::F16 => float::decode_f16(bytes, values),
            Dtype::Bf16 => float::decode_bf16(bytes, values),
            Dtype::I8 => convert(bytes, values, |[byte]| f32::from(byte as i8)),
            Dtype::U8 => convert(bytes, values, |[byte]| f32::from(byte)),
            Dtype::I32 => convert(bytes, values, |bytes| i32::from_le_bytes(bytes) as f32),
            Dtype::I64 => convert(bytes, values, |bytes| i64::from_le_bytes(bytes) as f32),
            Dtype::Block(block) => block.decode(bytes, values),
        }
    }

    /// An error naming `place` where a value (for blocks: a scale) is infinite or NaN: such a weight makes
    /// every loss NaN.
    pub fn check_finite(&self, place: impl Into<Place>) -> Result<()> {
        let bytes: &[u8] = &self.bytes;
        let (what, index) = match self.dtype {
            Dtype::F32 => ("value", any_special(bytes, |bytes| u32::from_le_bytes(bytes) & 0x7f80_0000 == 0x7f80_0000)),
            Dtype::F16 => ("value", any_special(bytes, |bytes| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00)),
            Dtype::Bf16 => ("value", any_special(bytes, |bytes| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80)),
            Dtype::Block(block) => ("block scale", block.first_non_finite(bytes)),
            Dtype::I8 | Dtype::U8 | Dtype::I32 | Dtype::I64 => return Ok(()),
        };
        match index {
            None => Ok(()),
            Some(index) => Err(Error::input(place, format!("{what} {index} is infinite or not a number"))
                .hint("the file is damaged, or the model was saved after its training diverged")),
        }
    }
}

/// Values that one task decodes at once: whole blocks of every format.
pub const PIECE: usize = 1 << 16;

/// Values of `SIZE` bytes each, converted one by one.
fn convert<const SIZE: usize>(bytes: &[u8], values: &mut [f32], convert: impl Fn([u8; SIZE]) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = convert(*bytes);
    }
}

/// Index of the first item for which `special` holds. Looks at runs without leaving early, which
/// vectorises, and searches only a run that has one.
fn any_special<const SIZE: usize>(bytes: &[u8], special: impl Fn([u8; SIZE]) -> bool) -> Option<usize> {
    const RUN: usize = 4096;
    bytes.as_chunks::<SIZE>().0.chunks(RUN).enumerate().find_map(|(run, items)| {
        let found = items.iter().fold(false, |found, item| found | special(*item));
        if found { items.iter().position(|item| special(*item)).map(|index| run * RUN + index) } else { None }
    })
}
