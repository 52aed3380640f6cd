//! The integers of a block with their scales, before they are multiplied: for kernels that compute with integers.

use super::k::six_bit_scales;
use super::{BlockType, f16_at};

/// 32 neighbouring values: `scales[i / 16] · (codes[i] − offset) + minimum`, with [`BlockType::code_offset`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Codes {
    /// The integers.
    pub codes: [u8; 32],
    /// The scales of the first 16 values and of the others.
    pub scales: [f32; 2],
    /// The summand.
    pub minimum: f32,
}

impl BlockType {
    /// The code that stands for zero.
    pub const fn code_offset(self) -> u8 {
        match self {
            Self::Q4_0 => 8,
            Self::Q5_0 => 16,
            Self::Q6K => 32,
            Self::Q8_0 => 128,
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => 0,
        }
    }

    /// Whether every code is below 16.
    pub const fn has_nibbles(self) -> bool {
        matches!(self, Self::Q4_0 | Self::Q4_1 | Self::Q4K)
    }

    /// Whether the values have a summand of their own.
    pub const fn has_minima(self) -> bool {
        matches!(self, Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K)
    }

    /// The values `32 · group ..` of a block.
    ///
    /// # Panics
    /// If the block has other than [`bytes_per_block`](Self::bytes_per_block) bytes, or too few values.
    pub fn codes(self, block: &[u8], group: usize) -> Codes {
        assert_eq!(block.len(), self.bytes_per_block(), "one block");
        match self {
            Self::Q4_0 => of_32(f16(block, 0), 0.0, |i| nibble(&block[2..], i)),
            Self::Q4_1 => of_32(f16(block, 0), f16(block, 2), |i| nibble(&block[4..], i)),
            Self::Q5_0 => of_32(f16(block, 0), 0.0, |i| nibble(&block[6..], i) | bit(&block[2..], i) << 4),
            Self::Q5_1 => of_32(f16(block, 0), f16(block, 2), |i| nibble(&block[8..], i) | bit(&block[4..], i) << 4),
            Self::Q8_0 => of_32(f16(block, 0), 0.0, |i| block[2 + i] ^ 0x80),
            Self::Q4K => {
                let (scales, minima) = six_bit_scales::<12>(&std::array::from_fn(|i| block[4 + i]), 0);
                let quants = &block[16 + 32 * (group / 2)..];
                let (scale, minimum) = (f16(block, 0) * scales[group], f16(block, 2) * minima[group]);
                of_32(scale, -minimum, |i| quants[i] >> (4 * (group % 2)) & 15)
            }
            Self::Q5K => {
                let (scales, minima) = six_bit_scales::<12>(&std::array::from_fn(|i| block[4 + i]), 0);
                let (high, quants) = (&block[16..48], &block[48 + 32 * (group / 2)..]);
                let (scale, minimum) = (f16(block, 0) * scales[group], f16(block, 2) * minima[group]);
                of_32(scale, -minimum, |i| quants[i] >> (4 * (group % 2)) & 15 | (high[i] >> group & 1) << 4)
            }
            Self::Q6K => {
                let (half, row) = (group / 4, group % 4);
                let (low, high) = (&block[64 * half + 32 * (row % 2)..], &block[128 + 32 * half..]);
                let scale = |part: usize| f16(block, 208) * f32::from(block[192 + 8 * half + 2 * row + part] as i8);
                let code = |i: usize| low[i] >> (4 * (row / 2)) & 15 | (high[i] >> (2 * row) & 3) << 4;
                Codes { scales: [scale(0), scale(1)], ..of_32(0.0, 0.0, code) }
            }
        }
    }
}

fn of_32(scale: f32, minimum: f32, code: impl Fn(usize) -> u8) -> Codes {
    Codes { codes: std::array::from_fn(code), scales: [scale; 2], minimum }
}

fn f16(block: &[u8], offset: usize) -> f32 {
    f16_at(&[block[offset], block[offset + 1]], 0)
}

/// Value `i` of 32: low nibbles are the first half.
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i % 16] >> (4 * (i / 16)) & 15
}

fn bit(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 8] >> (i % 8) & 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_scales_give_the_decoded_values() {
        for block_type in BlockType::ALL {
            let mut block: Vec<u8> = (0..block_type.bytes_per_block()).map(|i| (i * 151 + 43) as u8).collect();
            for &offset in block_type.scale_offsets() {
                block[offset..offset + 2].copy_from_slice(&[(17 * offset) as u8, 0x2c]);
            }
            let mut values = vec![0f32; block_type.values_per_block()];
            block_type.decode(&block, &mut values);
            for (group, values) in values.chunks_exact(32).enumerate() {
                let Codes { codes, scales, minimum } = block_type.codes(&block, group);
                for (i, value) in values.iter().enumerate() {
                    let whole = f32::from(codes[i]) - f32::from(block_type.code_offset());
                    let found = scales[i / 16] * whole + minimum;
                    assert!(
                        (found - value).abs() <= 1e-6 * value.abs().max(1.0),
                        "{block_type:?}: {found}, not {value}"
                    );
                    assert!(!block_type.has_nibbles() || codes[i] < 16);
                }
                assert!(block_type.has_minima() || minimum == 0.0);
            }
        }
    }
}
