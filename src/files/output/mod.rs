//! Writing of files and folders; no other module of the library does it.
//!
//! An output appears under its name only once it is complete: [`atomic`] for a file, [`staging`] for a folder,
//! [`shards`] for the weights of a model, [`partial`] for a download, [`versions`] for a state that is saved again and
//! again, [`bounded`] for a cache, [`log`] for lines that are of use one by one. Files and folders that do not bear their
//! final name yet are [`temporary`]: they are removed when the work fails and when a signal ends the process. [`secret`] is for what nobody else
//! may read. All of them but the downloads, the logs and the secrets write through [`disk`].
#![expect(clippy::disallowed_methods, reason = "the module of the library that writes files")]

pub mod atomic;
pub mod bounded;
pub mod disk;
pub mod lock;
pub mod log;
pub mod partial;
pub mod secret;
pub mod shards;
pub mod space;
pub mod staging;
pub mod temporary;
pub mod versions;
