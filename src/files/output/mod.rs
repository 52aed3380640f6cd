//! Writing of files and folders; no other module of the library does it.
//!
//! An output appears under its name only once it is complete: [`atomic`] for a file, [`staging`] for a folder,
//! [`shards`] for the weights of a model, [`partial`] for a download. A [`log`] grows line by line instead. Files and folders that do not bear their
//! final name yet are [`temporary`]: they are removed when the work fails and when a signal ends the process.
#![expect(clippy::disallowed_methods, reason = "the module of the library that writes files")]

pub mod atomic;
pub mod lock;
pub mod log;
pub mod partial;
pub mod shards;
pub mod staging;
pub mod temporary;
