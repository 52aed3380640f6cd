//! Inference: the choice of tokens from logits, and generation with a decoder.

pub mod run;
pub mod sample;
