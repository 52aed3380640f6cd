//! The input of a product: activations in f32, and rounded to int8 in blocks.

use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::pool;
use crate::ops::cpu::shared::SharedMut;

/// Values of a block that share a scale.
pub(super) const BLOCK: usize = 32;

/// Blocks that a task rounds: more than a row of most models.
const BLOCKS_PER_TASK: usize = 512;

/// The scale of a block of activations, and sums of its values.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[repr(C)]
pub(super) struct BlockScale {
    /// The value of a code of 1.
    pub scale: f32,
    /// The sum of the rounded values.
    pub sum: f32,
    /// The sums of the first 16 of them and of the others.
    pub halves: [f32; 2],
}

/// Rows of activations on their way into products.
pub struct Input<'a> {
    pub(super) values: &'a [f32],
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// `[rows, columns]` from -127 to 127; empty where no weight needs them.
    pub(super) codes: Vec<i8>,
    /// `[rows, columns / 32]`.
    pub(super) scales: Vec<BlockScale>,
}

impl<'a> Input<'a> {
    /// The rows `values`, `[rows, columns]`; rounded, too, if a weight `needs_codes`.
    pub fn new(values: &'a [f32], columns: usize, needs_codes: bool) -> Self {
        let rows = values.len() / columns;
        let mut input = Self { values, rows, columns, codes: Vec::new(), scales: Vec::new() };
        if needs_codes {
            input.codes = vec![0; rows * columns];
            input.scales = vec![BlockScale::default(); rows * columns / BLOCK];
            let (blocks, rest) = values.as_chunks::<BLOCK>();
            debug_assert!(rest.is_empty(), "whole blocks");
            let codes = SharedMut::new(input.codes.as_chunks_mut::<BLOCK>().0);
            pool::for_each_chunk(&mut input.scales, BLOCKS_PER_TASK, |task, scales| {
                let first = task * BLOCKS_PER_TASK;
                // SAFETY: the codes of a block belong to the task that has its scale.
                let codes = unsafe { codes.slice(first, scales.len()) };
                round(&blocks[first..first + scales.len()], codes, scales);
            });
        }
        input
    }
}

vectorised! {
    /// `code = round(value · 127 / absmax)`, ties to even.
    fn round(values: &[[f32; BLOCK]], codes: &mut [[i8; BLOCK]], scales: &mut [BlockScale]) {
        for ((values, codes), scale) in values.iter().zip(codes).zip(scales) {
            let mut absmax = [0f32; BLOCK / 2];
            for i in 0..BLOCK / 2 {
                let (left, right) = (values[i].abs(), values[BLOCK / 2 + i].abs());
                absmax[i] = if left > right { left } else { right };
            }
            let absmax = absmax.iter().fold(0f32, |most, value| if *value > most { *value } else { most });
            let inverse = if absmax > 0.0 { 127.0 / absmax } else { 0.0 };
            let mut halves = [0i32; 2];
            for (half, total) in halves.iter_mut().enumerate() {
                let mut sum = 0i32;
                for i in half * BLOCK / 2..(half + 1) * BLOCK / 2 {
                    let code = rounded(values[i] * inverse);
                    codes[i] = code as i8;
                    sum += code;
                }
                *total = sum;
            }
            let unit = absmax / 127.0;
            *scale = BlockScale {
                scale: unit,
                sum: unit * (halves[0] + halves[1]) as f32,
                halves: halves.map(|sum| unit * sum as f32),
            };
        }
    }
}

/// The nearest integer of a value within ±127, ties to even. A value that is not a number is some integer of that range.
#[inline(always)]
fn rounded(value: f32) -> i32 {
    // The sum with 1.5·2^23 has the integer in its low bits.
    const ROUND: f32 = 12_582_912.0;
    let bits = (value + ROUND).to_bits() as i32;
    bits.wrapping_sub(ROUND.to_bits() as i32) as i8 as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_are_rounded_to_the_nearest_of_255_values() {
        let values: Vec<f32> = (0..96).map(|i| ((i * 37) % 61) as f32 / 7.0 - 4.0).chain([0.0; 32]).collect();
        let input = Input::new(&values, 64, true);
        for (block, (values, scale)) in values.chunks_exact(32).zip(&input.scales).enumerate() {
            let codes = &input.codes[32 * block..][..32];
            for (code, value) in codes.iter().zip(values) {
                assert!((f32::from(*code) * scale.scale - value).abs() <= 0.5001 * scale.scale);
            }
            let sum: i32 = codes.iter().map(|code| i32::from(*code)).sum();
            assert_eq!(scale.sum, scale.scale * sum as f32);
            assert!((scale.halves[0] + scale.halves[1] - scale.sum).abs() < 1e-4);
            assert_eq!(codes.iter().any(|code| code.abs() == 127), block < 3);
        }
    }
}
