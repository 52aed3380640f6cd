//! The LLaMA family: configuration, tensor names, base files, and the decoder.

pub mod base;
pub mod config;
pub mod decoder;
pub mod folder;
pub mod load;
pub mod names;
pub mod quantize;

pub use base::{BaseFiles, StoredWeight};
pub use config::ModelConfig;
pub use decoder::Decoder;
