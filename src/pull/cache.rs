//! The hub's cache on disk, laid out as Python's `huggingface_hub` lays it out. Either side uses what the other fetched.
//!
//! ```text
//! <cache>/models--ORG--NAME/blobs/<etag>                 the files; <etag>.incomplete while they are fetched
//!                           snapshots/<commit>/<file>    relative links to blobs
//!                           refs/<revision>              the commit a branch or tag stood at
//! <cache>/.locks/models--ORG--NAME/<etag>.lock
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{atomic, hex, open};

/// The largest safetensors index, in bytes: of 100,000 tensors, with room to spare.
const MAX_INDEX_BYTES: u64 = 32 << 20;
/// The largest file of a reference: it holds the 40 digits of a commit.
const MAX_REFERENCE_BYTES: u64 = 1024;

/// The files to fetch of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A Hugging Face folder: configuration, tokenizer, chat template, safetensors.
    Safetensors,
    /// One file, by name.
    File(String),
}

/// Files besides the weights that a base needs, or that belong beside a merged model.
const SMALL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
];
const INDEX: &str = "model.safetensors.index.json";

impl Wanted {
    pub(super) fn is_wanted(&self, file: &str) -> bool {
        match self {
            Self::File(name) => file == name,
            Self::Safetensors => {
                let is_weight = file.starts_with("model") && file.ends_with(".safetensors");
                SMALL_FILES.contains(&file) || file == INDEX || is_weight
            }
        }
    }

    /// The files that `snapshot` lacks to be used without asking the hub.
    pub(super) fn missing(&self, snapshot: &Path) -> Vec<String> {
        let needed = match self {
            Self::File(name) => vec![name.clone()],
            Self::Safetensors => {
                let mut needed = vec!["config.json".to_owned(), "tokenizer.json".to_owned()];
                needed.extend(shards(&snapshot.join(INDEX)).unwrap_or_else(|| vec!["model.safetensors".to_owned()]));
                needed
            }
        };
        needed.into_iter().filter(|file| !snapshot.join(file).is_file()).collect()
    }

    pub(super) fn path(&self, snapshot: PathBuf) -> PathBuf {
        match self {
            Self::Safetensors => snapshot,
            Self::File(name) => snapshot.join(name),
        }
    }
}

/// The files that a safetensors index names; `None` if it cannot be read as one.
fn shards(index: &Path) -> Option<Vec<String>> {
    let index: Value = serde_json::from_slice(&open::read(index, MAX_INDEX_BYTES).ok()?).ok()?;
    let mut files: Vec<String> =
        index.get("weight_map")?.as_object()?.values().filter_map(Value::as_str).map(str::to_owned).collect();
    files.sort();
    files.dedup();
    Some(files)
}

/// A part of a repository's name, or the name of a file: nothing that leaves its folder.
pub(super) fn is_plain_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain) && !name.contains("..") && name != "."
}

/// A branch, tag, commit or `refs/pr/N`.
pub(super) fn is_revision(revision: &str) -> bool {
    revision.split('/').all(is_plain_name)
}

pub(super) fn is_commit(revision: &str) -> bool {
    hex::is_hexadecimal(revision, 20)
}

/// The part of the cache that belongs to one repository.
#[derive(Debug)]
pub(super) struct CachedRepository {
    folder: PathBuf,
    locks: PathBuf,
}

impl CachedRepository {
    /// The place of `repo` (`org/name`) in the cache; nothing has to be there.
    pub(super) fn new(cache: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The folder of the snapshot that `revision` means; `None` where the cache does not know it.
    pub(super) fn snapshot_of(&self, revision: &str) -> Option<PathBuf> {
        let commit = match is_commit(revision) {
            true => revision.to_owned(),
            false => {
                let bytes = open::read(&self.reference(revision), MAX_REFERENCE_BYTES).ok()?;
                String::from_utf8(bytes).ok()?.trim().to_owned()
            }
        };
        is_commit(&commit).then(|| self.snapshot(&commit))
    }

    /// The folder of the snapshot at `commit`.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The file that holds the content with this etag.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The lock file of the process that fetches the content with this etag.
    pub(super) fn lock_file(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    fn reference(&self, revision: &str) -> PathBuf {
        self.folder.join("refs").join(revision)
    }

    /// Notes that the branch or tag `revision` stands at `commit`.
    ///
    /// # Errors
    /// Failed: it cannot be written.
    pub(super) fn set_reference(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.reference(revision);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
        atomic::write_bytes(&path, commit.as_bytes())
    }
}

/// Makes `link` stand for `blob`, as Python does: a relative link where there are links, else a copy.
///
/// # Errors
/// Failed: it cannot be written.
pub(super) fn link_blob(blob: &Path, link: &Path) -> Result<()> {
    let folder = link.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| Error::write(folder, &error))?;
    match fs::remove_file(link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::write(link, &error)),
        _ => {}
    }
    #[cfg(unix)]
    {
        let target = Path::new("../../blobs").join(blob.file_name().unwrap_or_default());
        match std::os::unix::fs::symlink(target, link) {
            // Another process that fetches the same snapshot was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && link.is_file() => Ok(()),
            linked => linked.map_err(|error| Error::write(link, &error)),
        }
    }
    #[cfg(not(unix))]
    {
        let mut content = fs::File::open(blob).map_err(|error| Error::read(blob, &error))?;
        atomic::write(link, |output| {
            io::copy(&mut content, output).map(|_| ()).map_err(|error| Error::write(link, &error))
        })
    }
}
