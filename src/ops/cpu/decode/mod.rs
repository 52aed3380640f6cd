//! Products for inference: weights are repacked once, activations are rounded to eight bits, and nothing is packed per token.
//!
//! A [`Weight`] is either as the file stores it, multiplied in f32 (`exact`), or repacked (`panels`): 16 rows lie interleaved, so
//! that a vector holds a value of each and no sum goes across a vector. The activations of a product are rounded to int8 in
//! blocks of 32 with a scale each (`activations`), as llama.cpp does; weights without blocks become bf16 and their activations
//! stay in f32.
//!
//! On AMX, rows of integers go through tiles of 16 as far as there are as many; the sums of a block are exact, and the rest is the same.
//!
//! The sum of each output is taken in one fixed order, whatever the number of rows, threads or pieces: a row's result does
//! not depend on the rows beside it, bit for bit.

mod activations;
mod exact;
mod kernel;
mod panels;
mod product;

pub use activations::Input;
pub use panels::Panels;
pub use product::{Member, Weight, products};
