//! GGUF block formats: how many values share a block, and how a block becomes `f32`.
//!
//! Layouts and formulas after llama.cpp (`ggml-common.h`, `ggml-quants.c`) and gguf-py (`quants.py`), with
//! the same order of `f32` operations, so that results equal theirs to the bit.
//!
//! The decoders are what the packed products call per tile: plain loops of fixed length without branches,
//! compiled for several instruction sets, of which [`BlockType::decode`] takes the best there is.

use super::float::f16_bits_to_f32;

/// A GGUF block format (llama.cpp `ggml-common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockType {
    /// Every format, in the order of the ggml type numbers.
    pub const ALL: [Self; 8] =
        [Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q5_1, Self::Q8_0, Self::Q4K, Self::Q5K, Self::Q6K];

    /// Values that one block holds: 32, or 256 for the K formats.
    #[inline]
    pub const fn values_per_block(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => 256,
        }
    }

    /// Bytes of one block, scales included.
    #[inline]
    pub const fn bytes_per_block(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
        }
    }

    /// The number of this format in a GGUF tensor table (`enum ggml_type`).
    pub const fn ggml_type_id(self) -> u32 {
        match self {
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
        }
    }

    /// The format with this number in a GGUF tensor table; `None` for any other ggml type.
    pub fn from_ggml_type_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|block| block.ggml_type_id() == id)
    }

    /// llama.cpp's name, `Q4_K`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Where the `f16` scales (and minima) of a block lie, in bytes from its start.
    pub const fn scale_offsets(self) -> &'static [usize] {
        match self {
            Self::Q4_0 | Self::Q5_0 | Self::Q8_0 => &[0],
            Self::Q4_1 | Self::Q5_1 | Self::Q4K | Self::Q5K => &[0, 2],
            Self::Q6K => &[208],
        }
    }

    /// Index of the first block whose scale or minimum is infinite or NaN.
    pub fn first_non_finite(self, blocks: &[u8]) -> Option<usize> {
        blocks.chunks_exact(self.bytes_per_block()).position(|block| {
            self.scale_offsets().iter().any(|&offset| {
                let scale = u16::from_le_bytes([block[offset], block[offset + 1]]);
                scale & 0x7c00 == 0x7c00
            })
        })
    }

    /// Decodes whole blocks: `blocks.len() / bytes_per_block()` of them to as many times
    /// `values_per_block()` values. Lengths that do not agree decode as far as both reach.
    ///
    /// Takes the widest vectors the machine has; the results are the same to the bit with any.
    #[inline]
    pub fn decode(self, blocks: &[u8], out: &mut [f32]) {
        debug_assert_eq!(
            blocks.len() / self.bytes_per_block() * self.values_per_block(),
            out.len(),
            "as many blocks as values"
        );
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512vl") {
                // SAFETY: the machine has the instructions.
                return unsafe { self.decode_avx512(blocks, out) };
            }
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the machine has the instructions.
                return unsafe { self.decode_avx2(blocks, out) };
            }
        }
        self.decode_inlined(blocks, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    fn decode_avx512(self, blocks: &[u8], out: &mut [f32]) {
        self.decode_inlined(blocks, out);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn decode_avx2(self, blocks: &[u8], out: &mut [f32]) {
        self.decode_inlined(blocks, out);
    }

    /// The loops over blocks, compiled for whatever instructions the caller is compiled for.
    #[inline(always)]
    fn decode_inlined(self, blocks: &[u8], out: &mut [f32]) {
        // A loop and not a closure: a closure is not compiled for the caller's instructions.
        macro_rules! each {
            ($decode:ident) => {
                for (block, values) in blocks.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
                    $decode(block, values);
                }
            };
        }
        match self {
            Self::Q4_0 => each!(q4_0),
            Self::Q4_1 => each!(q4_1),
            Self::Q5_0 => each!(q5_0),
            Self::Q5_1 => each!(q5_1),
            Self::Q8_0 => each!(q8_0),
            Self::Q4K => each!(q4_k),
            Self::Q5K => each!(q5_k),
            Self::Q6K => each!(q6_k),
        }
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The `f16` at byte `offset`.
#[inline(always)]
fn f16_at<const BYTES: usize>(block: &[u8; BYTES], offset: usize) -> f32 {
    f16_bits_to_f32(u16::from_le_bytes([block[offset], block[offset + 1]]))
}

/// Keeps the compiler from vectorising across blocks, with gathers: loops as short as those of Q4_0 and Q4_1
/// are unrolled, and then the loop over blocks is the innermost. Three times as fast (AVX-512).
#[inline(always)]
fn opaque<const BYTES: usize>(block: &[u8; BYTES]) -> &[u8; BYTES] {
    std::hint::black_box(block)
}

/// `d * (q - 8)`; low nibbles are the first half of the values.
#[inline(always)]
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
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
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
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
fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
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
fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
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

/// `d * q`, `q` a signed byte.
#[inline(always)]
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_at(block, 0);
    for i in 0..32 {
        out[i] = scale * f32::from(block[2 + i] as i8);
    }
}

/// The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes: `(scales, minima)`.
#[inline(always)]
fn six_bit_scales<const BYTES: usize>(block: &[u8; BYTES], offset: usize) -> ([f32; 8], [f32; 8]) {
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
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
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
fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
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
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_numbers_round_trip() {
        for block in BlockType::ALL {
            assert_eq!(BlockType::from_ggml_type_id(block.ggml_type_id()), Some(block));
        }
        for unsupported in [0, 1, 4, 5, 9, 10, 11, 15, 16, 24, 30, 39, u32::MAX] {
            assert_eq!(BlockType::from_ggml_type_id(unsupported), None);
        }
    }

    #[test]
    fn a_non_finite_scale_is_found_in_every_format() {
        for block in BlockType::ALL {
            let mut bytes = vec![0; 3 * block.bytes_per_block()];
            assert_eq!(block.first_non_finite(&bytes), None);
            for offset in block.scale_offsets() {
                let at = 2 * block.bytes_per_block() + offset + 1;
                bytes[at] = 0x7c;
                assert_eq!(block.first_non_finite(&bytes), Some(2), "{block}");
                bytes[at] = 0;
            }
        }
    }
}
