//! A frozen matrix as it was stored: memory-mapped, 16-bit, or packed blocks. It is the only copy there is.
//!
//! Products decode it a few panels at a time; nothing of its full decoded size is ever made.

mod columns;
mod decode;
mod few_rows;
mod interleave;
mod storage;

pub use self::columns::Views;
pub use self::interleave::interleave_rows;
pub use self::storage::{Matrix, Storage};
