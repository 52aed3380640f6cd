//! Mapped files read ahead of their use, by a thread of its own.

use std::sync::mpsc::{Sender, channel};
use std::thread;

use super::Bytes;

/// A thread that has the system read what it is given. It ends with the last handle.
#[derive(Debug, Clone)]
pub struct Fetcher(Sender<Bytes>);

impl Fetcher {
    /// Starts the thread: handing a hundred megabytes to the disk takes longer than a product may wait.
    ///
    /// # Errors
    /// The system starts no thread.
    pub fn start() -> std::io::Result<Self> {
        let (sender, receiver) = channel::<Bytes>();
        thread::Builder::new()
            .name("fetcher".to_owned())
            .spawn(move || receiver.iter().for_each(|bytes| bytes.fetch()))?;
        Ok(Self(sender))
    }

    /// Has the system read these bytes, if they lie in a mapped file.
    pub fn fetch(&self, bytes: &Bytes) {
        // Without the thread they are read when they are needed.
        let _ = self.0.send(bytes.clone());
    }
}
