//! Blocks of 256 values with scales of their own for groups of 16 or 32: Q4_K, Q5_K, Q6_K.

use super::f16_at;

/// The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes: `(scales, minima)`.
#[inline(always)]
pub(super) fn six_bit_scales<const BYTES: usize>(block: &[u8; BYTES], offset: usize) -> ([f32; 8], [f32; 8]) {
    let (mut scales, mut minima) = ([0.0; 8], [0.0; 8]);
    for i in 0..4 {
        let (scale, minimum, shared) = (block[offset + i], block[offset + 4 + i], block[offset + 8 + i]);
        scales[i] = f32::from(scale & 0x3f);
        minima[i] = f32::from(minimum & 0x3f);
        scales[4 + i] = f32::from((shared & 0x0f) | ((scale >> 2) & 0x30));
        minima[4 + i] = f32::from((shared >> 4) | ((minimum >> 2) & 0x30));
    }
    (scales, minima)
}

/// `(d * scale) * q - (dmin * minimum)`, eight groups of 32; 32 bytes hold two groups, low nibbles first.
#[inline(always)]
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, minima) = six_bit_scales(block, 4);
    for pair in 0..4 {
        let (low_scale, high_scale) = (scale * scales[2 * pair], scale * scales[2 * pair + 1]);
        let (low_minimum, high_minimum) = (minimum * minima[2 * pair], minimum * minima[2 * pair + 1]);
        for i in 0..32 {
            let byte = i32::from(block[16 + 32 * pair + i]);
            out[64 * pair + i] = low_scale * (byte & 15) as f32 - low_minimum;
            out[64 * pair + 32 + i] = high_scale * (byte >> 4) as f32 - high_minimum;
        }
    }
}

/// Q4_K with a fifth bit: bit `g` of high byte `i` belongs to value `i` of group `g`.
#[inline(always)]
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
    let (scales, minima) = six_bit_scales(block, 4);
    for pair in 0..4 {
        let (low_scale, high_scale) = (scale * scales[2 * pair], scale * scales[2 * pair + 1]);
        let (low_minimum, high_minimum) = (minimum * minima[2 * pair], minimum * minima[2 * pair + 1]);
        for i in 0..32 {
            let byte = i32::from(block[48 + 32 * pair + i]);
            let high = i32::from(block[16 + i]) >> (2 * pair);
            out[64 * pair + i] = low_scale * ((byte & 15) | ((high & 1) << 4)) as f32 - low_minimum;
            out[64 * pair + 32 + i] = high_scale * ((byte >> 4) | ((high & 2) << 3)) as f32 - high_minimum;
        }
    }
}

/// `(d * scale) * (q - 32)`, sixteen groups of 16 with signed 8-bit scales; each half of the block is four
/// rows of 32 values, their low four bits in 64 bytes, their high two bits in 32.
#[inline(always)]
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = f16_at(block, 208);
    for half in 0..2 {
        let mut scales = [0.0; 8];
        for (group, value) in scales.iter_mut().enumerate() {
            *value = scale * f32::from(block[192 + 8 * half + group] as i8);
        }
        for i in 0..32 {
            let first = i32::from(block[64 * half + i]);
            let second = i32::from(block[64 * half + 32 + i]);
            let high = i32::from(block[128 + 32 * half + i]);
            let group = i / 16;
            let at = 128 * half + i;
            out[at] = scales[group] * (((first & 15) | ((high & 3) << 4)) - 32) as f32;
            out[at + 32] = scales[2 + group] * (((second & 15) | ((high & 12) << 2)) - 32) as f32;
            out[at + 64] = scales[4 + group] * (((first >> 4) | (high & 48)) - 32) as f32;
            out[at + 96] = scales[6 + group] * (((second >> 4) | ((high & 192) >> 2)) - 32) as f32;
        }
    }
}
