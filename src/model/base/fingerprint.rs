//! The fingerprint that identifies a base: a hash over its files of weights.

use std::path::PathBuf;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{BaseFiles, Source};
use crate::error::Result;
use crate::files::{Bytes, hex, known_hashes};

/// Bytes of a tensor that are in memory at once.
const PIECE: usize = 16 << 20;

impl BaseFiles {
    /// SHA-256 in hexadecimal that identifies the weights: over the files in the order of their names, of
    /// each its size, its header and the digest of each tensor. File names do not count. That of a large model is kept in
    /// the cache ([`known_hashes`]).
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn content_hash(&self) -> Result<String> {
        known_hashes::known_or(&self.files(), || self.hash_of_all())
    }

    /// The files of weights; of a GGUF model in several files the first.
    pub fn files(&self) -> Vec<PathBuf> {
        match &self.source {
            Source::Gguf(_) => vec![self.path.clone()],
            Source::Folder(shards) => shards.files.iter().map(|file| PathBuf::from(file.place())).collect(),
            // It has the hash of no content.
            Source::Synthetic => Vec::new(),
        }
    }

    fn hash_of_all(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        match &self.source {
            Source::Gguf(gguf) => {
                for (header, size, names) in gguf.files() {
                    hash_file(&mut hasher, header, size, names.into_iter(), |name| Ok(gguf.tensor(name)?.bytes))?;
                }
            }
            Source::Folder(shards) => {
                for file in &shards.files {
                    let (header, size) = (file.header_bytes(), file.file_bytes());
                    hash_file(&mut hasher, header, size, file.names(), |name| file.tensor_bytes(name))?;
                }
            }
            Source::Synthetic => {}
        }
        Ok(hex::encode(&hasher.finalize()))
    }
}

/// Feeds a file: its size, its header, and the digest of each tensor.
fn hash_file<'a>(
    hasher: &mut Sha256,
    header: &[u8],
    file_bytes: usize,
    names: impl Iterator<Item = &'a str>,
    bytes: impl Fn(&str) -> Result<Bytes> + Sync,
) -> Result<()> {
    hasher.update((file_bytes as u64).to_le_bytes());
    hasher.update((header.len() as u64).to_le_bytes());
    hasher.update(header);
    let names: Vec<&str> = names.collect();
    let digest = |name: &&str| {
        let bytes = bytes(name)?;
        let mut hasher = Sha256::new();
        for start in (0..bytes.len()).step_by(PIECE) {
            let piece = bytes.slice(start..bytes.len().min(start + PIECE));
            piece.iter().for_each(|piece| {
                hasher.update(&**piece);
                // Pages read for the digest need not stay in memory until the weights are loaded.
                piece.release();
            });
        }
        let digest: [u8; 32] = hasher.finalize().into();
        Ok(digest)
    };
    let digests: Result<Vec<_>> = names.par_iter().map(digest).collect();
    for digest in digests? {
        hasher.update(digest);
    }
    Ok(())
}
