//! Measures of a model: losses, scores of generated text, and comparisons of two models.

pub mod bootstrap;
pub mod choices;
pub mod classes;
pub mod loss;
pub mod measure;
pub mod memorisation;
pub mod settings;
pub mod text;
pub mod tool_calls;

pub use settings::EvalSettings;
