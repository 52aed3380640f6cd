//! Text to token ids and back: Hugging Face `tokenizer.json` files and the vocabularies inside GGUF files.
//!
//! Every [`Tokenizer`] is built from the JSON form, which is checked first
//! (`check`), because the crate underneath panics on some broken files. A GGUF vocabulary is rewritten into
//! that JSON form (`gguf`).

mod added;
mod check;
mod folder;
mod gguf;
mod save;
mod stream;
mod templates;
mod token_bytes;
mod tokenizer;

pub(crate) use folder::FOLDER_FILES;
pub use gguf::GgufVocabulary;
pub use stream::{TextStream, token_texts};
pub use tokenizer::Tokenizer;
