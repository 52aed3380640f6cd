//! The types of a GGUF file as a whole, and the number format of each tensor in it.
//!
//! A file of a block type is a mixture: llama.cpp gives some tensors more bits (`src/llama-quant.cpp`,
//! `llama_tensor_get_type_impl`), and another format where a row is no whole number of blocks (`tensor_type_fallback`).

use crate::error::{Error, Place, Result};
use crate::files::{Dtype, FloatType};
use crate::model::ModelConfig;
use crate::quant::BlockType;
use crate::settings::choice;

choice! {
    /// The type of a GGUF file: of its matrices, or of most of them. Vectors are always f32.
    GgufType {
        /// 32-bit floats.
        F32 = "f32",
        /// 16-bit floats.
        F16 = "f16",
        /// bfloat16.
        Bf16 = "bf16",
        /// 8 bits, blocks of 32.
        Q8_0 = "q8_0",
        /// 4 bits, blocks of 32 with a scale; the head in 6 bits.
        Q4_0 = "q4_0",
        /// 4 bits, blocks of 32 with a scale and a minimum; the head in 6 bits.
        Q4_1 = "q4_1",
        /// 5 bits, blocks of 32 with a scale; the head in 6 bits.
        Q5_0 = "q5_0",
        /// 5 bits, blocks of 32 with a scale and a minimum; the head in 6 bits.
        Q5_1 = "q5_1",
        /// 4 bits, blocks of 256; the head, and half of the value and down projections, in 6 bits.
        Q4KM = "q4_k_m",
        /// 5 bits, blocks of 256; the head, and half of the value and down projections, in 6 bits.
        Q5KM = "q5_k_m",
        /// 6 bits, blocks of 256.
        Q6K = "q6_k",
    }
}

/// The number format of most matrices.
enum Matrices {
    Float(FloatType),
    Blocks(BlockType),
}

impl GgufType {
    /// The number in `general.file_type` (llama.cpp `enum llama_ftype`).
    pub fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q8_0 => 7,
            Self::Q5_0 => 8,
            Self::Q5_1 => 9,
            Self::Q4KM => 15,
            Self::Q5KM => 17,
            Self::Q6K => 18,
            Self::Bf16 => 32,
        }
    }

    /// The type of a Hugging Face folder by the same word; `None` for types in blocks.
    pub fn float_type(self) -> Option<FloatType> {
        match self.matrices() {
            Matrices::Float(float_type) => Some(float_type),
            Matrices::Blocks(_) => None,
        }
    }

    /// Whether an importance matrix makes a difference to the type: to all in blocks but `q8_0`.
    pub fn takes_importance(self) -> bool {
        matches!(self.matrices(), Matrices::Blocks(block) if block != BlockType::Q8_0)
    }

    fn matrices(self) -> Matrices {
        match self {
            Self::F32 => Matrices::Float(FloatType::F32),
            Self::F16 => Matrices::Float(FloatType::F16),
            Self::Bf16 => Matrices::Float(FloatType::Bf16),
            Self::Q8_0 => Matrices::Blocks(BlockType::Q8_0),
            Self::Q4_0 => Matrices::Blocks(BlockType::Q4_0),
            Self::Q4_1 => Matrices::Blocks(BlockType::Q4_1),
            Self::Q5_0 => Matrices::Blocks(BlockType::Q5_0),
            Self::Q5_1 => Matrices::Blocks(BlockType::Q5_1),
            Self::Q4KM => Matrices::Blocks(BlockType::Q4K),
            Self::Q5KM => Matrices::Blocks(BlockType::Q5K),
            Self::Q6K => Matrices::Blocks(BlockType::Q6K),
        }
    }

    /// The number format of a tensor by its GGUF name. `has_head` says whether the file has a tensor of the head.
    ///
    /// # Errors
    /// Input: a row that is no whole number of blocks, where llama.cpp has no other format to fall back on.
    pub fn dtype(self, name: &str, shape: &[usize], config: &ModelConfig, has_head: bool) -> Result<Dtype> {
        let is_matrix = shape.len() > 1 && name.ends_with(".weight") && !name.ends_with("_norm.weight");
        let columns = shape.last().copied().unwrap_or(1);
        match self.matrices() {
            _ if !is_matrix => Ok(Dtype::F32),
            Matrices::Float(float_type) => Ok(float_type.dtype()),
            Matrices::Blocks(usual) => {
                let is_head = name == "output.weight" || (name == "token_embd.weight" && !has_head);
                let wanted = match is_head {
                    true if usual == BlockType::Q8_0 => BlockType::Q8_0,
                    true => BlockType::Q6K,
                    false => self.of_projection(name, usual, config),
                };
                fallback(wanted, columns).ok_or_else(|| {
                    let message = format!(
                        "has rows of {columns} values; {wanted} needs a multiple of {}",
                        wanted.values_per_block()
                    );
                    Error::input(Place::tensor("", name), message)
                        .hint("`--type f16` and `bf16` take any row; `q4_k_m`, `q5_k_m` and `q6_k` fall back to them")
                })
            }
        }
    }

    /// The mixture of the types whose name ends in `_m`.
    fn of_projection(self, name: &str, usual: BlockType, config: &ModelConfig) -> BlockType {
        let mut parts = name.split('.').skip(1);
        let layer = parts.next().and_then(|layer| layer.parse().ok()).unwrap_or(0);
        let module = parts.next().unwrap_or_default();
        let is_value = matches!(module, "attn_v" | "attn_qkv");
        let is_mixed = matches!(self, Self::Q4KM | Self::Q5KM);
        if is_mixed && (is_value || module == "ffn_down") && has_more_bits(layer, config.layers) {
            return BlockType::Q6K;
        }
        // Of the 70B models, whose values are few (`LLM_TYPE_70B`).
        let is_70b =
            config.layers == 80 && config.heads != config.kv_heads && matches!(config.family.gguf, "llama" | "qwen2");
        if is_value && is_70b && usual == BlockType::Q4K { BlockType::Q5K } else { usual }
    }
}

/// The layers whose sensitive projections get more bits: the first and last eighth, and every third between.
fn has_more_bits(layer: usize, layers: usize) -> bool {
    let first = layers / 8;
    layer < first || layer >= 7 * layers / 8 || (layer - first) % 3 == 2
}

/// The format that a row of `columns` values gets in place of `wanted`.
fn fallback(wanted: BlockType, columns: usize) -> Option<Dtype> {
    let fits = |block: BlockType| columns.is_multiple_of(block.values_per_block());
    if fits(wanted) {
        return Some(Dtype::Block(wanted));
    }
    let smaller = match wanted {
        BlockType::Q4K => BlockType::Q5_0,
        BlockType::Q5K => BlockType::Q5_1,
        BlockType::Q6K => BlockType::Q8_0,
        _ => return None,
    };
    Some(if fits(smaller) { Dtype::Block(smaller) } else { Dtype::F16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_more_bits_are_those_of_llama_cpp() {
        let of = |layers| (0..layers).filter(|layer| has_more_bits(*layer, layers)).collect::<Vec<_>>();
        // SmolLM2-135M, as its Q4_K_M file in llama.cpp has them.
        assert_eq!(of(30), [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]);
        assert_eq!(of(1), [0]);
        assert_eq!(of(2), [1]);
    }

    #[test]
    fn rows_that_do_not_divide_fall_back() {
        let dtype = |wanted, columns| fallback(wanted, columns).map(Dtype::name);
        assert_eq!(dtype(BlockType::Q4K, 512), Some("Q4_K"));
        assert_eq!(dtype(BlockType::Q4K, 576), Some("Q5_0"));
        assert_eq!(dtype(BlockType::Q5K, 576), Some("Q5_1"));
        assert_eq!(dtype(BlockType::Q6K, 576), Some("Q8_0"));
        assert_eq!(dtype(BlockType::Q6K, 40), Some("F16"));
        assert_eq!(dtype(BlockType::Q8_0, 40), None);
    }
}
