//! Low-rank adapters: what to adapt, the trainable factors, PEFT's file format, merging.

pub mod attach;
pub mod begin;
mod base_modules;
pub mod combine;
pub mod host;
pub mod merge;
pub mod peft;
pub mod spec;
