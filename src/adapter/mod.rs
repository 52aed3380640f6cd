//! Low-rank adapters: what to adapt, the first values, the trainable factors, PEFT's file format, merging.

pub mod attach;
mod base_modules;
pub mod begin;
mod choices;
pub mod combine;
pub mod host;
pub mod init;
pub mod map;
pub mod merge;
pub mod peft;
pub mod spec;
mod svd;
