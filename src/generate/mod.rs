//! Inference: choosing tokens (and, with a decoder, producing them).

pub mod run;
pub mod sample;
