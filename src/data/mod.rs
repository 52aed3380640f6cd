//! From a line of a data file to token ids with a mask: example, template, encoding, batches.

pub mod batch;
pub mod encode;
pub mod example;
pub mod jsonl;
pub mod tables;
pub mod template;

pub use batch::Batch;
pub use encode::{Encoded, Encoder};
pub use example::{Example, Message, Role};
pub use jsonl::Format;
pub use template::ChatTemplate;
