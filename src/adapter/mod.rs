//! Low-rank adapters: what to adapt, the trainable factors, PEFT's file format, merging.

pub mod attach;
pub mod file;
pub mod merge;
pub mod peft_config;
pub mod spec;
