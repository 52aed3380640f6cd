//! Blocks of 32 values in four or five bits: Q4_0, Q4_1, Q5_0, Q5_1.

use super::{f16_at, opaque};

/// `d * (q - 8)`; low nibbles are the first half of the values.
#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let block = opaque(block);
    let scale = f16_at(block, 0);
    for i in 0..16 {
        out[i] = scale * (i32::from(block[2 + i] & 15) - 8) as f32;
    }
    for i in 0..16 {
        out[16 + i] = scale * (i32::from(block[2 + i] >> 4) - 8) as f32;
    }
}

/// `d * q + m`.
#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let block = opaque(block);
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    for i in 0..16 {
        out[i] = scale * i32::from(block[4 + i] & 15) as f32 + minimum;
    }
    for i in 0..16 {
        out[16 + i] = scale * i32::from(block[4 + i] >> 4) as f32 + minimum;
    }
}

/// The fifth bits of 32 values: bit `i` belongs to value `i`.
#[inline(always)]
fn fifth_bits<const BYTES: usize>(block: &[u8; BYTES], offset: usize) -> u32 {
    u32::from_le_bytes([block[offset], block[offset + 1], block[offset + 2], block[offset + 3]])
}

/// `d * (q - 16)`, the fifth bit of each value apart.
#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    let high = fifth_bits(block, 2);
    for i in 0..16 {
        let byte = u32::from(block[6 + i]);
        let low_value = (byte & 15) | (((high >> i) & 1) << 4);
        let high_value = (byte >> 4) | (((high >> (16 + i)) & 1) << 4);
        out[i] = scale * (low_value as i32 - 16) as f32;
        out[16 + i] = scale * (high_value as i32 - 16) as f32;
    }
}

/// `d * q + m`, the fifth bit of each value apart.
#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    let high = fifth_bits(block, 4);
    for i in 0..16 {
        let byte = u32::from(block[8 + i]);
        let low_value = (byte & 15) | (((high >> i) & 1) << 4);
        let high_value = (byte >> 4) | (((high >> (16 + i)) & 1) << 4);
        out[i] = scale * low_value as i32 as f32 + minimum;
        out[16 + i] = scale * high_value as i32 as f32 + minimum;
    }
}
