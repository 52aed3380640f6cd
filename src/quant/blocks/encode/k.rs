//! Blocks of 256 values: Q4_K, Q5_K, Q6_K.
//!
//! Every group of 16 or 32 values gets the scale (and minimum) with the least weighted squared error among a few tries;
//! scales and minima of the groups are rounded to the block's, and the codes made anew with what they became.

use super::super::f16_at;
use super::put_f16;
use crate::quant::float::round_ties_even;

pub(super) const GROUPS: usize = 8;

/// The whole number nearest to `value`, ties to even.
pub(super) fn nearest(value: f32) -> i32 {
    round_ties_even(value) as i32
}

/// The scale and minimum of a group: a value is `scale · code - minimum`.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fit {
    pub(super) scale: f32,
    pub(super) minimum: f32,
}

/// The tries at a group's scale: `(first + step · i + largest code) / range`, `i` from 0 to `count`.
pub(super) struct Tries {
    pub(super) largest_code: f32,
    pub(super) first: f32,
    pub(super) step: f32,
    pub(super) count: u32,
}

/// The weights of a group's values where nothing else is known of them: `root mean square + |value|`.
fn usual_weights(values: &[f32; 32]) -> [f32; 32] {
    let root = (square_sum(values) / 32.0).sqrt();
    values.map(|value| root + value.abs())
}

/// The sum of squares, in order.
pub(super) fn square_sum(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |sum: f32, value| sum + value * value)
}

/// Fits a group of 32 values with these weights (llama.cpp `make_qkx2_quants`, `make_qkx3_quants`); and the codes that go with
/// it.
pub(super) fn fit(values: &[f32; 32], weights: &[f32; 32], tries: &Tries) -> (Fit, [f32; 32]) {
    let (mut least, mut largest) = (values[0], values[0]);
    let (mut weight_sum, mut value_sum) = (weights[0], weights[0] * values[0]);
    for (&value, &weight) in values.iter().zip(weights).skip(1) {
        least = if value < least { value } else { least };
        largest = if value > largest { value } else { largest };
        weight_sum += weight;
        value_sum += weight * value;
    }
    least = if least > 0.0 { 0.0 } else { least };
    if largest == least {
        return (Fit { scale: 0.0, minimum: -least }, [0.0; 32]);
    }
    // A loop of its own, which the compiler vectorises. `max` before `min` makes 0 of what is no number.
    let code_all = |inverse: f32, least: f32, codes: &mut [f32; 32]| {
        for (code, value) in codes.iter_mut().zip(values) {
            *code = round_ties_even(inverse * (value - least)).max(0.0).min(tries.largest_code);
        }
    };
    let inverse = tries.largest_code / (largest - least);
    let mut scale = 1.0 / inverse;
    let mut best_error = 0.0;
    let mut best_codes = [0.0; 32];
    code_all(inverse, least, &mut best_codes);
    let mut codes = best_codes;
    for ((&value, &weight), &code) in values.iter().zip(weights).zip(&best_codes) {
        let difference = scale * code + least - value;
        best_error += weight * (difference * difference);
    }
    for attempt in 0..=tries.count {
        let inverse = (tries.first + tries.step * attempt as f32 + tries.largest_code) / (largest - least);
        code_all(inverse, least, &mut codes);
        let (mut code_sum, mut square_sum, mut product_sum) = (0.0, 0.0, 0.0);
        for ((&value, &weight), &code) in values.iter().zip(weights).zip(&codes) {
            code_sum += weight * code;
            square_sum += weight * code * code;
            product_sum += weight * code * value;
        }
        let determinant = weight_sum * square_sum - code_sum * code_sum;
        if determinant <= 0.0 || determinant.is_nan() {
            continue;
        }
        let mut own_scale = (weight_sum * product_sum - value_sum * code_sum) / determinant;
        let mut own_least = (square_sum * value_sum - code_sum * product_sum) / determinant;
        if own_least > 0.0 {
            own_least = 0.0;
            own_scale = product_sum / square_sum;
        }
        let mut error = 0.0;
        for ((&value, &weight), &code) in values.iter().zip(weights).zip(&codes) {
            let difference = own_scale * code + own_least - value;
            error += weight * (difference * difference);
        }
        if error < best_error {
            // Later tries go on from this minimum.
            (best_error, best_codes, scale, least) = (error, codes, own_scale, own_least);
        }
    }
    (Fit { scale, minimum: -least }, best_codes)
}

/// Rounds the groups' scales and minima to six bits, puts them with the block's two factors into the first 16 bytes, and
/// returns the scales and minima as they will be decoded.
fn put_scales<const BYTES: usize>(block: &mut [u8; BYTES], fits: &[Fit; GROUPS]) -> [Fit; GROUPS] {
    const LARGEST: f32 = 63.0;
    let largest =
        |values: [f32; GROUPS]| values.into_iter().fold(0.0, |best: f32, one| if one > best { one } else { best });
    let (max_scale, max_minimum) = (largest(fits.map(|fit| fit.scale)), largest(fits.map(|fit| fit.minimum)));
    let inverse = |largest: f32| if largest > 0.0 { LARGEST / largest } else { 0.0 };
    let (inverse_scale, inverse_minimum) = (inverse(max_scale), inverse(max_minimum));
    // Through a byte, as in C: a scale below zero becomes the largest one.
    let six_bits = |value: f32| (nearest(value) as u8).min(63);
    let scales = fits.map(|fit| six_bits(inverse_scale * fit.scale));
    let minima = fits.map(|fit| six_bits(inverse_minimum * fit.minimum));
    put_rounded(block, (max_scale / LARGEST, scales), (max_minimum / LARGEST, minima))
}

/// Puts the factors and the six-bit codes of the groups' scales and minima into the first 16 bytes, and returns the scales and minima
/// as they will be decoded.
pub(super) fn put_rounded<const BYTES: usize>(
    block: &mut [u8; BYTES],
    (scale, scales): (f32, [u8; GROUPS]),
    (minimum, minima): (f32, [u8; GROUPS]),
) -> [Fit; GROUPS] {
    let scale = put_f16(block, 0, scale);
    let minimum = put_f16(block, 2, minimum);
    for index in 0..4 {
        block[4 + index] = scales[index] | (scales[4 + index] >> 4) << 6;
        block[8 + index] = minima[index] | (minima[4 + index] >> 4) << 6;
        block[12 + index] = (scales[4 + index] & 15) | (minima[4 + index] & 15) << 4;
    }
    std::array::from_fn(|group| Fit {
        scale: scale * f32::from(scales[group]),
        minimum: minimum * f32::from(minima[group]),
    })
}

const Q4_TRIES: Tries = Tries { largest_code: 15.0, first: -1.0, step: 0.1, count: 20 };
const Q5_TRIES: Tries = Tries { largest_code: 31.0, first: -0.5, step: 0.1, count: 15 };

/// Puts the scales and minima of all groups into the block; returns the codes of all values.
fn put_fits<const BYTES: usize>(values: &[f32; 256], block: &mut [u8; BYTES], tries: &Tries) -> [u8; 256] {
    let mut fits = [Fit::default(); GROUPS];
    let mut codes = [0; 256];
    let groups = values.as_chunks::<32>().0;
    for ((found, codes), values) in fits.iter_mut().zip(codes.as_chunks_mut().0).zip(groups) {
        let (fit, own_codes) = fit(values, &usual_weights(values), tries);
        (*found, *codes) = (fit, own_codes.map(|code| code as u8));
    }
    let rounded = put_scales(block, &fits);
    code_anew(values, &rounded, tries.largest_code, &mut codes);
    codes
}

/// Makes the codes of all values from the scales and minima as they will be decoded.
pub(super) fn code_anew(values: &[f32; 256], rounded: &[Fit; GROUPS], largest_code: f32, codes: &mut [u8; 256]) {
    let groups = values.as_chunks::<32>().0;
    for ((Fit { scale, minimum }, codes), values) in rounded.iter().zip(codes.as_chunks_mut::<32>().0).zip(groups) {
        // Under a scale of zero every code means the same.
        if *scale != 0.0 {
            *codes = values.map(|value| (nearest((value + minimum) / scale) as f32).clamp(0.0, largest_code) as u8);
        }
    }
}

pub(super) fn q4_k(values: &[f32; 256], block: &mut [u8; 144]) {
    let codes = put_fits(values, block, &Q4_TRIES);
    put_q4_codes(block, &codes);
}

/// Puts four-bit codes behind the scales.
pub(super) fn put_q4_codes(block: &mut [u8; 144], codes: &[u8; 256]) {
    for (bytes, codes) in block[16..].as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = codes[index] | codes[32 + index] << 4;
        }
    }
}

pub(super) fn q5_k(values: &[f32; 256], block: &mut [u8; 176]) {
    let codes = put_fits(values, block, &Q5_TRIES);
    put_q5_codes(block, &codes);
}

/// Puts five-bit codes behind the scales.
pub(super) fn put_q5_codes(block: &mut [u8; 176], codes: &[u8; 256]) {
    for index in 0..32 {
        block[16 + index] = (0..GROUPS).fold(0, |bits, group| bits | (codes[32 * group + index] >> 4) << group);
    }
    for (bytes, codes) in block[48..].as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (codes[index] & 15) | codes[32 + index] << 4;
        }
    }
}

/// Below it, a group of values, or of scales, counts as zero (llama.cpp `GROUP_MAX_EPS`).
pub(super) const NOTHING: f32 = 1e-15;

/// The code of a value, from `-limit` to `limit - 1`.
fn signed_code(value: f32, limit: i32) -> i32 {
    nearest(value).clamp(-limit, limit - 1)
}

/// Fits the scale of a group of values with these weights; and the codes that go with it, from `-limit` to `limit - 1` (llama.cpp
/// `make_qx_quants` with `rmse_type` 1).
pub(super) fn fit_signed<const N: usize>(values: &[f32; N], weights: &[f32; N], limit: i32) -> (f32, [i32; N]) {
    let extreme =
        values.iter().fold(0.0, |extreme: f32, &value| if value.abs() > extreme.abs() { value } else { extreme });
    if extreme.abs() < NOTHING {
        return (0.0, [-limit; N]);
    }
    let sums = |inverse: f32| {
        let mut codes = [0.0; N];
        for (code, value) in codes.iter_mut().zip(values) {
            *code = round_ties_even(inverse * value).max(-limit as f32).min((limit - 1) as f32);
        }
        let (mut product_sum, mut square_sum) = (0.0, 0.0);
        for ((&value, &weight), code) in values.iter().zip(weights).zip(codes) {
            product_sum += weight * value * code;
            square_sum += weight * code * code;
        }
        (product_sum, square_sum)
    };
    let mut kept = -limit as f32 / extreme;
    let (product_sum, square_sum): (f32, f32) = sums(kept);
    let mut scale = if square_sum == 0.0 { 0.0 } else { product_sum / square_sum };
    let mut best = scale * product_sum;
    for attempt in (-9..=9).filter(|attempt| *attempt != 0) {
        let inverse = -(limit as f32 + 0.1 * attempt as f32) / extreme;
        let (product_sum, square_sum) = sums(inverse);
        if square_sum > 0.0 && product_sum * product_sum > best * square_sum {
            kept = inverse;
            scale = product_sum / square_sum;
            best = scale * product_sum;
        }
    }
    (scale, values.map(|value| signed_code(kept * value, limit)))
}

pub(super) fn q6_k(values: &[f32; 256], block: &mut [u8; 210]) {
    // Each value weighs its square.
    q6_k_weighted(values, &values.map(|value| value * value), block);
}

/// The block of values with these weights.
pub(super) fn q6_k_weighted(values: &[f32; 256], weights: &[f32; 256], block: &mut [u8; 210]) {
    const SCALES_AT: usize = 192;
    const FACTOR_AT: usize = 208;
    let mut scales = [0.0; 16];
    let mut codes = [0; 256];
    let groups = values.as_chunks().0.iter().zip(weights.as_chunks().0);
    for ((scale, codes), (values, weights)) in scales.iter_mut().zip(codes.as_chunks_mut().0).zip(groups) {
        (*scale, *codes) = fit_signed::<16>(values, weights, 32);
    }
    let extreme =
        scales.iter().fold(0.0, |extreme: f32, &scale| if scale.abs() > extreme.abs() { scale } else { extreme });
    if extreme.abs() < NOTHING {
        return block.fill(0);
    }
    let inverse = -128.0 / extreme;
    put_f16(block, FACTOR_AT, 1.0 / inverse);
    let factor = f16_at(block, FACTOR_AT);
    for (index, scale) in scales.iter().enumerate() {
        block[SCALES_AT + index] = nearest(inverse * scale).min(127) as i8 as u8;
    }
    for (group, (codes, values)) in codes.as_chunks_mut::<16>().0.iter_mut().zip(values.as_chunks::<16>().0).enumerate()
    {
        let scale = factor * f32::from(block[SCALES_AT + group] as i8);
        if scale != 0.0 {
            *codes = values.map(|value| signed_code(value / scale, 32));
        }
    }
    let codes = codes.map(|code| (code + 32) as u8);
    for half in 0..2 {
        for index in 0..32 {
            let code = |row: usize| codes[128 * half + 32 * row + index];
            block[64 * half + index] = (code(0) & 15) | code(2) << 4;
            block[64 * half + 32 + index] = (code(1) & 15) | code(3) << 4;
            block[128 + 32 * half + index] = code(0) >> 4 | code(1) >> 4 << 2 | code(2) >> 4 << 4 | code(3) >> 4 << 6;
        }
    }
}
