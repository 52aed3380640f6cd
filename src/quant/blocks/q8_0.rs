//! Blocks of 32 values in eight bits: Q8_0.

use super::f16_at;

/// `d * q`, `q` a signed byte.
#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for i in 0..32 {
        out[i] = scale * f32::from(block[2 + i] as i8);
    }
}
