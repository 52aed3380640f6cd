//! How a frozen matrix is stored.

use half::{bf16, f16};

use crate::files::Bytes;
use crate::files::bitsandbytes::{Int8Tensor, Nf4Tensor};
use crate::quant::BlockType;

/// How the values of a [`Matrix`] are stored.
#[derive(Debug, Clone)]
pub enum Storage {
    /// Little-endian f32.
    F32(Bytes),
    /// Little-endian f16.
    F16(Bytes),
    /// Little-endian bf16.
    Bf16(Bytes),
    /// GGUF blocks; a row is a whole number of blocks.
    Blocks(BlockType, Bytes),
    /// bitsandbytes' 4-bit format, its scales single or quantised themselves.
    Nf4(Nf4Tensor),
    /// One scale a row.
    Int8(Int8Tensor),
}

/// A frozen `[rows, columns]` matrix, row-major; for a projection `[out, in]`.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    storage: Storage,
}

impl Matrix {
    /// Wraps stored values. Bytes that are not aligned for their type are copied once.
    ///
    /// # Panics
    /// If the storage does not hold `rows * columns` values: loaders check sizes first.
    pub fn new(rows: usize, columns: usize, storage: Storage) -> Self {
        let storage = match storage {
            Storage::F32(bytes) => Storage::F32(aligned::<f32>(bytes)),
            Storage::F16(bytes) => Storage::F16(aligned::<f16>(bytes)),
            Storage::Bf16(bytes) => Storage::Bf16(aligned::<bf16>(bytes)),
            other => other,
        };
        let values = match &storage {
            Storage::F32(bytes) => bytes.len() / 4,
            Storage::F16(bytes) | Storage::Bf16(bytes) => bytes.len() / 2,
            Storage::Blocks(block, bytes) => bytes.len() / block.bytes_per_block() * block.values_per_block(),
            Storage::Nf4(tensor) => tensor.elements(),
            Storage::Int8(tensor) => tensor.elements(),
        };
        assert_eq!(values, rows * columns, "the storage holds the matrix");
        Self { rows, columns, storage }
    }

    /// Number of rows (a projection's outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (a projection's inputs).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The bytes that may lie in a mapped file: values or codes, and the scales of the blocks.
    pub fn stored(&self) -> impl Iterator<Item = &Bytes> {
        let (values, scales) = match &self.storage {
            Storage::F32(bytes) | Storage::F16(bytes) | Storage::Bf16(bytes) | Storage::Blocks(_, bytes) => {
                (bytes, None)
            }
            Storage::Nf4(tensor) => (&tensor.packed, Some(tensor.scales.stored())),
            Storage::Int8(tensor) => (&tensor.codes, None),
        };
        std::iter::once(values).chain(scales)
    }

    /// Returns the memory of values in a mapped file to the system, which reads them again on the next access.
    pub fn release(&self) {
        self.stored().for_each(Bytes::release);
    }

    /// How it is stored.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }
}

/// Bytes whose address suits `T`: as they are, or a copy.
fn aligned<T: bytemuck::Pod>(bytes: Bytes) -> Bytes {
    if bytemuck::try_cast_slice::<u8, T>(&bytes).is_ok() { bytes } else { Bytes::from(bytes.to_vec()) }
}

/// The bytes as values; [`Matrix::new`] made sure they are aligned.
pub(super) fn cast<T: bytemuck::Pod>(bytes: &Bytes) -> &[T] {
    bytemuck::cast_slice(bytes)
}
