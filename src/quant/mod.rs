//! Number formats: 16-bit floats, GGUF blocks, NF4, int8. Pure functions from bytes to `f32` and back.

pub mod blocks;
pub mod int8;
pub mod nf4;

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
