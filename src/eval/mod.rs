//! Measures of a model: losses and what they say, and scores of generated text.

pub mod loss;
pub mod text;
