//! Models and adapters in the formats of other programs: GGUF, GGUF-LoRA, Ollama, mlx-lm.
//!
//! Each is planned in full before a byte is written, and what cannot be expressed is an error by then: the plan goes through
//! the reader that would open the file, and has to come out as the same model and the same tokenizer. What was written is
//! read again and compared before it gets its name.

mod check;
pub mod feasible;
pub mod importance;
pub mod lora;
pub mod mlx;
pub mod model;
pub mod ollama;
mod pieces;
pub mod types;

pub use importance::Importance;
pub use model::{ExportOptions, ExportReport};
pub use types::GgufType;
