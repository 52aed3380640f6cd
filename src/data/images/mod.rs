//! Pictures: from PNG and JPEG files to the values that a tower sees, and to the tokens in whose places its features stand.

pub mod decode;
pub mod parts;
pub mod pictures;
mod png;
pub mod processor;
pub mod resize;
pub mod thumbnail;

pub use pictures::{Picture, Pictures};
pub use processor::{ImageProcessor, Tiles};
