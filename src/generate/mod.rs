//! Inference: the choice of tokens from logits, formats that answers are held to, and the engine that continues many sequences at once.

pub mod constraint;
pub mod engine;
pub mod run;
pub mod sample;
