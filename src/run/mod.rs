//! Whole jobs: what a command does, without its arguments and its printing.

pub mod adapter;
pub mod base;
pub mod evaluate;
pub mod folder;
pub mod infer;
pub mod memory_plan;
pub mod merge;
pub mod train;

pub use adapter::OpenAdapter;
pub use base::OpenBase;
