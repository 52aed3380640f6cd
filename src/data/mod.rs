//! From a row of a data file to token ids with a mask: reading, chat templates, encoding, batches.

pub mod augment;
pub mod batch;
pub mod chat;
pub mod encode;
pub mod encoded;
pub mod example;
pub mod format;
pub mod kept;
pub mod read;
pub mod remark;
pub mod set;
pub mod settings;

mod alpaca;
mod problems;

pub use augment::{Augment, Augmenter};
pub use chat::ChatTemplate;
pub use encode::Encoder;
pub use encoded::Encoded;
pub use example::{Example, Message, Position, Role, Row};
pub use format::Format;
pub use read::{DataFile, jsonl, read, read_file, tables};
pub use set::{EncodedSet, LongPolicy};
pub use settings::DataSettings;
