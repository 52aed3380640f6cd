//! Number formats: 16-bit floats, GGUF blocks, NF4, int8. Pure functions from bytes to `f32` and back.

pub mod blocks;
mod dynamic_map;
pub mod float;
pub mod int8;
pub mod nf4;
pub mod scheme;

pub use blocks::BlockType;
pub use scheme::{Compute, Quant};
