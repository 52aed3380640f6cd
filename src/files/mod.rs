//! Files of weights: safetensors and GGUF, read without copying, written atomically.
//!
//! A reader hands out [`RawTensor`]s: the bytes as they lie in the file, with a name, a dtype and a shape.
//! What the numbers mean is `quant`'s business, what they are for is `model`'s.

pub mod gguf;
pub mod safetensors;

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::quant::BlockType;

/// Bytes that are either a slice of a memory-mapped file or owned. Cloning is cheap.
#[derive(Clone)]
pub struct Bytes(Repr);

#[derive(Clone)]
enum Repr {
    Mapped { map: Arc<memmap2::Mmap>, range: Range<usize> },
    Owned(Arc<Vec<u8>>),
}

impl Bytes {
    /// A slice of a mapped file. `range` must lie inside the map.
    pub fn mapped(map: Arc<memmap2::Mmap>, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= map.len(), "a tensor's range lies inside its file");
        Self(Repr::Mapped { map, range })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Repr::Owned(Arc::new(bytes)))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Mapped { map, range } => &map[range.clone()],
            Repr::Owned(bytes) => bytes,
        }
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F16,
    Bf16,
    I8,
    U8,
    I32,
    I64,
    /// GGUF blocks, row by row.
    Block(BlockType),
}

/// A tensor as it lies in a file: row-major, outermost dimension first (`[out, in]` for a projection),
/// whatever order the file format uses.
#[derive(Debug, Clone)]
pub struct RawTensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

impl RawTensor {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}
