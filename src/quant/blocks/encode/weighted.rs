//! Blocks of a row whose columns are of different importance, as llama.cpp makes them with an importance matrix
//! (`quantize_row_*_impl`), to the bit.
//!
//! A value's error weighs `importance · √(mean square + value²)`; in Q6_K, the importance alone.

use super::k::{self, Fit, GROUPS, NOTHING, Tries, fit, fit_signed, nearest, square_sum};
use super::put_f16;
use super::small::{fifth_bits, put_nibbles};
use crate::quant::BlockType;

const fn tries(largest_code: f32) -> Tries {
    Tries { largest_code, first: -0.9, step: 0.05, count: 36 }
}

impl BlockType {
    /// Encodes a row of whole blocks of finite numbers, of whose columns some matter more than others: `importance` has a number
    /// for each, the mean square of the activations that it is multiplied by. Q8_0 takes no account of it.
    pub fn encode_weighted(self, row: &[f32], importance: &[f32], blocks: &mut [u8]) {
        debug_assert_eq!(row.len(), importance.len(), "a number for each column");
        let mean_square = square_sum(row) / row.len() as f32;
        macro_rules! each {
            ($encode:expr) => {{
                let groups = row.as_chunks().0.iter().zip(importance.as_chunks().0);
                for ((values, importance), block) in groups.zip(blocks.as_chunks_mut().0) {
                    $encode(values, importance, block);
                }
            }};
        }
        let small = |values: &[f32; 32], importance: &[f32; 32]| weights(values, importance, mean_square);
        match self {
            Self::Q8_0 => self.encode(row, blocks),
            Self::Q4_0 => each!(|values, importance, block: &mut [u8; 18]| {
                let (scale, codes) = signed_codes(values, &small(values, importance), 8);
                put_f16(block, 0, scale);
                put_nibbles(&mut block[2..], &codes);
            }),
            Self::Q5_0 => each!(|values, importance, block: &mut [u8; 22]| {
                let (scale, codes) = signed_codes(values, &small(values, importance), 16);
                put_f16(block, 0, scale);
                block[2..6].copy_from_slice(&fifth_bits(&codes));
                put_nibbles(&mut block[6..], &codes);
            }),
            Self::Q4_1 => each!(|values, importance, block: &mut [u8; 20]| {
                let (Fit { scale, minimum }, codes) = fit(values, &small(values, importance), &tries(15.0));
                put_f16(block, 0, scale);
                put_f16(block, 2, -minimum);
                put_nibbles(&mut block[4..], &codes.map(|code| code as u8));
            }),
            Self::Q5_1 => each!(|values, importance, block: &mut [u8; 24]| {
                let (Fit { scale, minimum }, codes) = fit(values, &small(values, importance), &tries(31.0));
                let codes = codes.map(|code| code as u8);
                put_f16(block, 0, scale);
                put_f16(block, 2, -minimum);
                block[4..8].copy_from_slice(&fifth_bits(&codes));
                put_nibbles(&mut block[8..], &codes);
            }),
            Self::Q4K => each!(|values, importance, block: &mut [u8; 144]| {
                let codes = put_fits(values, importance, block, 15.0);
                k::put_q4_codes(block, &codes);
            }),
            Self::Q5K => each!(|values, importance, block: &mut [u8; 176]| {
                let codes = put_fits(values, importance, block, 31.0);
                k::put_q5_codes(block, &codes);
            }),
            Self::Q6K => each!(k::q6_k_weighted),
        }
    }
}

/// The weights of the errors of values.
fn weights(values: &[f32; 32], importance: &[f32; 32], mean_square: f32) -> [f32; 32] {
    std::array::from_fn(|index| importance[index] * (mean_square + values[index] * values[index]).sqrt())
}

/// The scale of a block around zero, and its codes from 0 to `2 · limit - 1`.
fn signed_codes(values: &[f32; 32], weights: &[f32; 32], limit: i32) -> (f32, [u8; 32]) {
    let (scale, codes) = fit_signed(values, weights, limit);
    (scale, codes.map(|code| (code + limit) as u8))
}

/// Puts the scales and minima of all groups into the block; returns the codes of all values.
fn put_fits<const BYTES: usize>(
    values: &[f32; 256],
    importance: &[f32; 256],
    block: &mut [u8; BYTES],
    largest_code: f32,
) -> [u8; 256] {
    let mean_square = 2.0 * square_sum(values) / 256.0;
    let (mut fits, mut sums, mut codes) = ([Fit::default(); GROUPS], [0.0; GROUPS], [0; 256]);
    let groups = values.as_chunks::<32>().0.iter().zip(importance.as_chunks::<32>().0);
    let own = fits.iter_mut().zip(&mut sums).zip(codes.as_chunks_mut::<32>().0);
    for (((found, sum), codes), (values, importance)) in own.zip(groups) {
        let weights = weights(values, importance, mean_square);
        *sum = weights.iter().fold(0.0, |sum: f32, weight| sum + weight);
        let (fit, own_codes) = fit(values, &weights, &tries(largest_code));
        (*found, *codes) = (fit, own_codes.map(|code| code as u8));
    }
    let scales = six_bit_codes(&fits.map(|fit| fit.scale), &sums);
    let minima = six_bit_codes(&fits.map(|fit| fit.minimum), &sums);
    let rounded = k::put_rounded(block, scales, minima);
    k::code_anew(values, &rounded, largest_code, &mut codes);
    codes
}

/// The factor of the groups' scales, or minima, and their codes of six bits, with the least weighted squared error (llama.cpp
/// `make_qp_quants`).
fn six_bit_codes(values: &[f32; GROUPS], weights: &[f32; GROUPS]) -> (f32, [u8; GROUPS]) {
    const LARGEST: i32 = 63;
    let largest = values.iter().fold(0.0, |largest: f32, &value| if value > largest { value } else { largest });
    if largest < NOTHING {
        return (0.0, [0; GROUPS]);
    }
    let error = |inverse: f32, most: i32| {
        let scale = 1.0 / inverse;
        let pairs = values.iter().zip(weights);
        pairs.fold(0.0, |sum: f32, (&value, &weight)| {
            let difference = value - scale * nearest(inverse * value).min(most) as f32;
            sum + weight * difference * difference
        })
    };
    let mut kept = LARGEST as f32 / largest;
    let mut least = error(kept, i32::MAX);
    for attempt in (-4..=4).filter(|attempt| *attempt != 0) {
        let inverse = (0.1 * attempt as f32 + LARGEST as f32) / largest;
        let error = error(inverse, LARGEST);
        if error < least {
            (least, kept) = (error, inverse);
        }
    }
    // Through a byte, as in C.
    let mut codes = values.map(|value| nearest(kept * value).min(LARGEST));
    let (mut product_sum, mut square_sum) = (0.0, 0.0);
    for ((&value, &weight), &code) in values.iter().zip(weights).zip(&codes) {
        product_sum += weight * value * code as f32;
        square_sum += weight * code as f32 * code as f32;
    }
    for _ in 0..5 {
        let mut has_changed = false;
        for ((&value, &weight), code) in values.iter().zip(weights).zip(&mut codes) {
            let old = *code as f32;
            let products = product_sum - weight * value * old;
            let squares = square_sum - weight * old * old;
            if products > 0.0 && squares > 0.0 {
                let new = nearest(value * squares / products).min(LARGEST);
                if new != *code {
                    let products = products + weight * value * new as f32;
                    let squares = squares + weight * new as f32 * new as f32;
                    if products * products * square_sum > product_sum * product_sum * squares {
                        (*code, product_sum, square_sum, has_changed) = (new, products, squares, true);
                    }
                }
            }
        }
        if !has_changed {
            break;
        }
    }
    (if square_sum > 0.0 { product_sum / square_sum } else { 0.0 }, codes.map(|code| code as u8))
}
