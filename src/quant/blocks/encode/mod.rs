//! Values to blocks of every format, as llama.cpp's reference quantisers make them (`ggml-quants.c`, `quantize_row_*_ref`,
//! without an importance matrix), to the bit: the same `f32` operations in the same order.

mod k;
mod small;
mod weighted;

use super::{BlockType, f16_bits_to_f32};
use crate::quant::float::f32_to_f16_bits;

impl BlockType {
    /// Encodes `values`, whole blocks of finite numbers, into as many `blocks`. Lengths that do not agree encode as far as
    /// both reach. A scale beyond `f16` becomes infinite, which [`first_non_finite`](Self::first_non_finite) finds.
    pub fn encode(self, values: &[f32], blocks: &mut [u8]) {
        debug_assert_eq!(
            values.len() / self.values_per_block() * self.bytes_per_block(),
            blocks.len(),
            "as many blocks as values"
        );
        macro_rules! each {
            ($encode:expr) => {
                for (values, block) in values.as_chunks().0.iter().zip(blocks.as_chunks_mut().0) {
                    $encode(values, block);
                }
            };
        }
        match self {
            Self::Q4_0 => each!(small::q4_0),
            Self::Q4_1 => each!(small::q4_1),
            Self::Q5_0 => each!(small::q5_0),
            Self::Q5_1 => each!(small::q5_1),
            Self::Q8_0 => each!(small::q8_0),
            Self::Q4K => each!(k::q4_k),
            Self::Q5K => each!(k::q5_k),
            Self::Q6K => each!(k::q6_k),
        }
    }
}

/// Writes the `f16` nearest to `value` at byte `offset`; returns it.
fn put_f16<const BYTES: usize>(block: &mut [u8; BYTES], offset: usize, value: f32) -> f32 {
    let bits = f32_to_f16_bits(value);
    block[offset..offset + 2].copy_from_slice(&bits.to_le_bytes());
    f16_bits_to_f32(bits)
}

/// `1 / value`, and 0 for 0.
fn reciprocal(value: f32) -> f32 {
    if value == 0.0 { 0.0 } else { 1.0 / value }
}
