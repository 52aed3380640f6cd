//! burnish: fine-tune LLaMA-family language models with low-rank adapters, on Burn.
//!
//! Read `docs/architecture.md` first. Modules in the order they build on each other (nothing imports upward):
//! [`error`], [`bytes`], [`allocator`], [`device`], [`settings`], [`quant`], [`files`], [`interrupt`], [`ops`], [`nn`],
//! [`model`], [`text`], [`data`], [`adapter`], [`export`], [`eval`], [`train`], [`generate`], [`pull`], [`recipe`], [`mod@import`], [`inspect`],
//! [`report`], [`run`], `serve`, [`cli`].

#![recursion_limit = "512"]

pub mod adapter;
pub mod allocator;
pub mod bytes;
pub mod cli;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod files;
pub mod generate;
pub mod import;
pub mod inspect;
pub mod interrupt;
pub mod model;
pub mod nn;
pub mod ops;
pub mod pull;
pub mod quant;
pub mod recipe;
pub mod report;
pub mod run;
#[cfg(feature = "serve")]
pub mod serve;
pub mod settings;
pub mod text;
pub mod train;

pub use error::{Error, Result};
