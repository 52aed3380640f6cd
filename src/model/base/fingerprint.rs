//! The fingerprint that identifies a base: a hash over its files of weights.

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::{BaseFiles, Source};
use crate::error::Result;
use crate::files::{Bytes, hex};

/// Files up to this size are hashed whole, larger ones by samples.
const MAX_HASHED_WHOLE: usize = 512 << 20;

impl BaseFiles {
    /// SHA-256 in hexadecimal that identifies the weights: over the files in the order of their names, of
    /// each its size, its header and the digest of each tensor. Of a file above 512 MiB tensors are sampled: of each
    /// the first and last 64 KiB and 14 chunks spread evenly between. A weight changed anywhere in a
    /// small file is seen; in a large one a fine-tune of the same base is, a single flipped bit may not be.
    /// File names do not count.
    pub fn content_hash(&self) -> Result<String> {
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
    let sample = file_bytes > MAX_HASHED_WHOLE;
    let digest = |name: &&str| {
        let bytes = bytes(name)?;
        let digest = tensor_digest(&bytes, sample);
        // Pages read for the digest need not stay in memory until the weights are loaded.
        bytes.release();
        Ok(digest)
    };
    let digests: Result<Vec<_>> = names.par_iter().map(digest).collect();
    for digest in digests? {
        hasher.update(digest);
    }
    Ok(())
}

fn tensor_digest(bytes: &[u8], sample: bool) -> [u8; 32] {
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = 16;
    if !sample || bytes.len() <= CHUNK * CHUNKS {
        return Sha256::digest(bytes).into();
    }
    let mut hasher = Sha256::new();
    let last = bytes.len() - CHUNK;
    for chunk in 0..CHUNKS {
        let start = if chunk == CHUNKS - 1 { last } else { last / (CHUNKS - 1) * chunk };
        hasher.update(&bytes[start..start + CHUNK]);
    }
    hasher.finalize().into()
}
