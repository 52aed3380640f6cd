//! GGUF block formats: the size of a block, its decoding to `f32`, and its encoding (`encode`).
//!
//! Layouts and formulas after llama.cpp (`ggml-common.h`, `ggml-quants.c`) and gguf-py (`quants.py`), with
//! the same order of `f32` operations, so that results equal theirs to the bit.
//!
//! The decoders are what the packed products call per tile: plain loops of fixed length without branches,
//! compiled for several instruction sets, of which [`BlockType::decode`] takes the best there is.

mod codes;
mod encode;
mod k;
mod q4;
mod q8_0;

use k::{q4_k, q5_k, q6_k};
use q4::{q4_0, q4_1, q5_0, q5_1};
use q8_0::q8_0;

pub use codes::Codes;

use super::float::f16_bits_to_f32;

/// A GGUF block format (llama.cpp `ggml-common.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// 32 values of four bits with a scale.
    Q4_0,
    /// 32 values of four bits with a scale and a minimum.
    Q4_1,
    /// 32 values of five bits with a scale.
    Q5_0,
    /// 32 values of five bits with a scale and a minimum.
    Q5_1,
    /// 32 signed bytes with a scale.
    Q8_0,
    /// 256 values of four bits; scales and minima of six bits for groups of 32.
    Q4K,
    /// 256 values of five bits; scales and minima of six bits for groups of 32.
    Q5K,
    /// 256 values of six bits; scales of eight bits for groups of 16.
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

    /// The offsets of the `f16` scales (and minima) of a block, in bytes from its start.
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
