//! From a row of a data file to token ids with a mask: reading, chat templates, encoding, batches.

pub mod augment;
pub mod bare;
pub mod batch;
pub mod canaries;
pub mod chat;
pub mod columns;
pub mod encode;
pub mod encoded;
pub mod example;
pub mod format;
pub mod images;
pub mod kept;
pub mod paths;
pub mod position;
pub mod preflight;
pub mod read;
pub mod remark;
pub mod set;
pub mod settings;
pub mod split;

mod alpaca;
mod problems;

pub use augment::{Augment, Augmenter};
pub use bare::ControlTokens;
pub use canaries::Canaries;
pub use chat::ChatTemplate;
pub use columns::Columns;
pub use encode::Encoder;
pub use encoded::{Encoded, Judged};
pub use example::{Example, Message, Role, Row};
pub use format::Format;
pub use images::Pictures;
pub use paths::Paths;
pub use position::{At, Position};
pub use read::{DataSet, Lines, Shape, jsonl, lines, read, tables};
pub use set::{EncodedSet, LongPolicy};
pub use settings::{DataSettings, DataSource};
