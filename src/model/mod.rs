//! Models: the families and their configurations, base files, loading, and the decoder that runs them all.

pub mod base;
mod batch;
pub mod config;
pub mod decoder;
pub mod families;
pub mod folder;
pub mod gradients;
mod inside;
pub mod load;
mod place;
pub mod quantize;
pub mod rope;
pub mod sites;
pub mod spec;
mod stages;
mod tensors;
pub mod vision;

pub use base::{BaseFiles, StoredWeight};
pub use batch::Batch;
pub use config::ModelConfig;
pub use decoder::Decoder;
pub use sites::{Site, SiteKind};
