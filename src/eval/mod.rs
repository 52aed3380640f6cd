//! Measures of a model: losses with their comparison, and scores of generated text.

pub mod loss;
pub mod text;
