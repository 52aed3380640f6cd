//! Inference: the choice of tokens from logits, and the engine that continues many sequences at once.

pub mod engine;
pub mod run;
pub mod sample;
