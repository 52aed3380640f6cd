//! Blocks of 32 values: Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

use super::{put_f16, reciprocal};

/// The value of the largest magnitude, the first of several.
fn extreme(values: &[f32; 32]) -> f32 {
    values.iter().fold(0.0, |extreme: f32, &value| if extreme.abs() < value.abs() { value } else { extreme })
}

/// The least value, and the largest.
fn range(values: &[f32; 32]) -> (f32, f32) {
    let least = values.iter().fold(f32::MAX, |least, &value| if value < least { value } else { least });
    let largest = values.iter().fold(-f32::MAX, |largest, &value| if value > largest { value } else { largest });
    (least, largest)
}

/// Puts the codes' low four bits into 16 bytes, the first half of the values in the low nibbles.
pub(super) fn put_nibbles(bytes: &mut [u8], codes: &[u8; 32]) {
    for (index, byte) in bytes.iter_mut().enumerate().take(16) {
        *byte = (codes[index] & 15) | (codes[16 + index] << 4);
    }
}

/// The codes' fifth bits: bit `i` belongs to value `i`.
pub(super) fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    let bits = codes.iter().enumerate().fold(0u32, |bits, (index, code)| bits | (u32::from(code >> 4 & 1) << index));
    bits.to_le_bytes()
}

/// `trunc(value / scale + offset + 1/2)`, `offset + offset - 1` at most: a code around `offset`, which means zero.
fn signed_codes(values: &[f32; 32], inverse: f32, offset: u8) -> [u8; 32] {
    values.map(|value| ((value * inverse + (f32::from(offset) + 0.5)) as u8).min(2 * offset - 1))
}

/// `trunc((value - least) / scale + 1/2)`, `largest` at most.
fn unsigned_codes(values: &[f32; 32], least: f32, inverse: f32, largest: u8) -> [u8; 32] {
    values.map(|value| (((value - least) * inverse + 0.5) as u8).min(largest))
}

pub(super) fn q4_0(values: &[f32; 32], block: &mut [u8; 18]) {
    let scale = extreme(values) / -8.0;
    let codes = signed_codes(values, reciprocal(scale), 8);
    put_f16(block, 0, scale);
    put_nibbles(&mut block[2..], &codes);
}

pub(super) fn q4_1(values: &[f32; 32], block: &mut [u8; 20]) {
    let (least, largest) = range(values);
    let scale = (largest - least) / 15.0;
    let codes = unsigned_codes(values, least, reciprocal(scale), 15);
    put_f16(block, 0, scale);
    put_f16(block, 2, least);
    put_nibbles(&mut block[4..], &codes);
}

pub(super) fn q5_0(values: &[f32; 32], block: &mut [u8; 22]) {
    let scale = extreme(values) / -16.0;
    let codes = signed_codes(values, reciprocal(scale), 16);
    put_f16(block, 0, scale);
    block[2..6].copy_from_slice(&fifth_bits(&codes));
    put_nibbles(&mut block[6..], &codes);
}

pub(super) fn q5_1(values: &[f32; 32], block: &mut [u8; 24]) {
    let (least, largest) = range(values);
    let scale = (largest - least) / 31.0;
    let codes = unsigned_codes(values, least, reciprocal(scale), 31);
    put_f16(block, 0, scale);
    put_f16(block, 2, least);
    block[4..8].copy_from_slice(&fifth_bits(&codes));
    put_nibbles(&mut block[8..], &codes);
}

pub(super) fn q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let scale = extreme(values).abs() / 127.0;
    let inverse = reciprocal(scale);
    put_f16(block, 0, scale);
    for (code, value) in block[2..].iter_mut().zip(values) {
        // Rounded half away from zero, as C's `roundf`.
        *code = (value * inverse).round() as i8 as u8;
    }
}
