//! Writing files and folders: the only place of the library that does.
//!
//! An output appears under its name only once it is complete: [`atomic`] for a file, [`staging`] for a folder,
//! [`shards`] for the weights of a model, [`partial`] for a download. Files and folders that do not bear their final name yet are [`temporary`]: they
//! are removed when the work fails and when a signal ends the process.

pub mod atomic;
pub mod lock;
pub mod partial;
pub mod shards;
pub mod staging;
pub mod temporary;
