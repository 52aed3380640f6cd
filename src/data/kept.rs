//! Encoded sets kept on disk, so that a run does not encode again what a check has encoded.
//!
//! ```text
//! <folder>/<key>    magic, length of the head (u64), head (JSON), ids (u32 each), masks (a bit a token), SHA-256 of it all
//! ```
//!
//! Numbers are little-endian. The key is a hash of all that decides a set: the rows, the tokenizer, the chat template, the
//! limit of the length and the version of this program. A file that is not whole is removed, and its set encoded again.

use std::fmt::Write as _;
use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::encode::Encoder;
use super::encoded::{Encoded, Judged};
use super::example::Row;
use super::format::Format;
use super::images::parts::have_pictures;
use super::remark::{Remark, Remarks, Rows};
use super::set::{EncodedSet, LongPolicy};
use crate::error::{Error, Result};
use crate::files::hex;
use crate::files::output::bounded::BoundedFolder;

/// The first bytes of a file: its kind, and the version of the layout.
const MAGIC: &[u8; 8] = b"BRNSET02";
/// The most bytes of all files together.
const MAX_BYTES: u64 = 4 << 30;
/// The fewest rows that are worth a file: fewer are encoded in no time.
const MIN_ROWS: usize = 1000;

/// The folder of encoded sets.
#[derive(Debug, Clone)]
pub struct KeptSets(BoundedFolder);

/// The part of a set beside tokens and masks.
#[derive(Serialize, Deserialize)]
struct Head {
    format: Option<String>,
    lengths: Vec<usize>,
    untrained_turns: Vec<usize>,
    judged: Vec<Judged>,
    indices: Vec<usize>,
    dropped_long: usize,
    truncated: usize,
    dropped_untrained: usize,
    remarks: Vec<(Remark, Rows)>,
}

impl KeptSets {
    /// The sets in `folder`, which need not exist yet.
    pub fn new(folder: PathBuf) -> Self {
        Self(BoundedFolder::new(folder, MAX_BYTES))
    }

    /// The set of this key, made of `rows`; `None` where it is not kept, or not whole.
    fn get(&self, key: &str, rows: &[Row]) -> Option<EncodedSet> {
        let set = parsed(&self.0.read(key, MAX_BYTES)?, rows);
        if set.is_none() {
            self.0.remove(key);
        }
        set
    }

    /// Keeps a set under a key.
    fn put(&self, key: &str, set: &EncodedSet) -> Result<()> {
        let failed = |error: std::io::Error| Error::write(&self.0.file(key), &error);
        let head = Head {
            format: set.format.map(|format| format.name().to_owned()),
            lengths: set.sequences.iter().map(|sequence| sequence.ids.len()).collect(),
            untrained_turns: set.sequences.iter().map(|sequence| sequence.untrained_turns).collect(),
            judged: set.sequences.iter().map(|sequence| sequence.judged).collect(),
            indices: set.indices.clone(),
            dropped_long: set.dropped_long,
            truncated: set.truncated,
            dropped_untrained: set.dropped_untrained,
            remarks: set.remarks.iter().map(|(remark, rows)| (remark.clone(), rows.clone())).collect(),
        };
        let head = serde_json::to_vec(&head).map_err(|error| Error::failed("head", error.to_string()))?;
        let bytes = head.len() + set.tokens * size_of::<u32>() + set.tokens / 8;
        self.0.write(key, bytes as u64, |writer| {
            let mut write = |bytes: &[u8]| writer.write_all(bytes).map_err(failed);
            write(MAGIC)?;
            write(&(head.len() as u64).to_le_bytes())?;
            write(&head)?;
            for sequence in &set.sequences {
                let ids: Vec<u8> = sequence.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
                write(&ids)?;
            }
            for sequence in &set.sequences {
                let bits = |flags: &[bool]| flags.iter().rev().fold(0u8, |bits, flag| bits << 1 | u8::from(*flag));
                let mask: Vec<u8> = sequence.trained.chunks(8).map(bits).collect();
                write(&mask)?;
            }
            Ok(())
        })
    }
}

/// The set of a file, made of `rows`; `None` where the file is not whole.
fn parsed(bytes: &[u8], rows: &[Row]) -> Option<EncodedSet> {
    let (head_bytes, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let (head, rest) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*head_bytes)).ok()?)?;
    let head: Head = serde_json::from_slice(head).ok()?;
    let format = head.format.map(|name| name.parse::<Format>()).transpose().ok()?;
    let tokens: usize = head.lengths.iter().sum();
    let (mut ids, mut masks) = rest.split_at_checked(tokens.checked_mul(size_of::<u32>())?)?;
    let (mut sequences, mut positions) = (Vec::with_capacity(head.lengths.len()), Vec::new());
    let heads = head.lengths.iter().zip(&head.untrained_turns).zip(&head.judged).zip(&head.indices);
    for (((length, untrained_turns), judged), index) in heads {
        let row = rows.get(*index)?;
        positions.push(row.position.clone());
        let (of_this, rest) = ids.split_at_checked(length * size_of::<u32>())?;
        let (mask, rest_of_masks) = masks.split_at_checked(length.div_ceil(8))?;
        (ids, masks) = (rest, rest_of_masks);
        let (of_this, _) = of_this.as_chunks::<4>();
        sequences.push(Encoded {
            ids: of_this.iter().map(|id| u32::from_le_bytes(*id)).collect(),
            trained: (0..*length).map(|at| mask[at / 8] >> (at % 8) & 1 == 1).collect(),
            untrained_turns: *untrained_turns,
            weight: row.weight,
            judged: *judged,
        });
    }
    let mut remarks = Remarks::about(rows);
    remarks.extend(head.remarks);
    Some(EncodedSet {
        format,
        positions,
        indices: head.indices,
        dropped_long: head.dropped_long,
        truncated: head.truncated,
        dropped_untrained: head.dropped_untrained,
        untrained_turns: head.untrained_turns.iter().sum(),
        tokens,
        trained_tokens: sequences.iter().map(Encoded::trained_tokens).sum(),
        notices: remarks.lines(),
        remarks,
        sequences,
    })
}

impl Encoder {
    /// [`Self::encode_all_watched`], unless `kept` holds the set; a set that takes a while to encode is kept there. A set that
    /// cannot be kept is none the worse.
    ///
    /// # Errors
    /// Those of [`Self::encode_all`].
    pub fn encode_kept(
        &self,
        kept: Option<&KeptSets>,
        rows: &[Row],
        (max_seq_tokens, policy): (usize, LongPolicy),
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<EncodedSet> {
        // The numbers of pictures are those of this run.
        let Some(kept) = kept.filter(|_| rows.len() >= MIN_ROWS && !have_pictures(rows)) else {
            return self.encode_all_watched(rows, max_seq_tokens, policy, progress);
        };
        let key = self.key(rows, max_seq_tokens, policy)?;
        if let Some(set) = kept.get(&key, rows) {
            return Ok(set);
        }
        let set = self.encode_all_watched(rows, max_seq_tokens, policy, progress)?;
        // The disk may be full or the folder not ours: then the set is encoded again the next time.
        let _ = kept.put(&key, &set);
        Ok(set)
    }

    /// The hash of all that decides a set.
    fn key(&self, rows: &[Row], max_seq_tokens: usize, policy: LongPolicy) -> Result<String> {
        // `Debug` writes every field of a row, those that are added one day included.
        let hashes: Vec<_> = rows.par_iter().map(hash_of).collect();
        let mut sum = Sha256::new();
        hashes.iter().for_each(|hash| sum.update(hash));
        sum.update(self.identity()?);
        sum.update(format!("{max_seq_tokens} {policy:?} {}", env!("BURNISH_BUILD")));
        Ok(hex::encode(&sum.finalize()))
    }
}

/// The hash of what a row is.
fn hash_of(row: &Row) -> sha2::digest::Output<Sha256> {
    /// Text on its way into a hash.
    struct Hashing(Sha256);

    impl std::fmt::Write for Hashing {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.0.update(text);
            Ok(())
        }
    }

    let mut hashing = Hashing(Sha256::new());
    // Hashing never fails.
    let _ = write!(hashing, "{row:?}");
    hashing.0.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::position::Position;

    fn rows() -> Vec<Row> {
        let text = crate::data::Example::Text { text: "a".into() };
        let row = |line| Row { weight: line as f64, ..Row::new(Position::line("d.jsonl", line), text.clone()) };
        (1..=5).map(row).collect()
    }

    fn set() -> EncodedSet {
        let rows = rows();
        let lengths = [(3usize, 0), (8, 1), (17, 4)];
        let sequence = |(length, row): (usize, usize)| Encoded {
            ids: (0..length as u32).map(|id| id * 70_000).collect(),
            trained: (0..length).map(|at| at % 3 != 0).collect(),
            untrained_turns: length % 2,
            weight: rows[row].weight,
            judged: [Judged::Not, Judged::Labelled(false), Judged::Above(length / 2)][length % 3],
        };
        let sequences: Vec<Encoded> = lengths.map(sequence).into();
        let mut remarks = Remarks::about(&rows);
        remarks.add(&rows[3].position, vec![Remark::KeyIgnored { key: "id".into() }, Remark::TooLong { max: 9 }]);
        EncodedSet {
            format: Some(Format::Chat),
            positions: [0, 1, 4].map(|row: usize| rows[row].position.clone()).into(),
            indices: vec![0, 1, 4],
            dropped_long: 1,
            truncated: 2,
            dropped_untrained: 3,
            untrained_turns: 2,
            tokens: 28,
            trained_tokens: sequences.iter().map(Encoded::trained_tokens).sum(),
            notices: remarks.lines(),
            remarks,
            sequences,
        }
    }

    #[test]
    fn a_kept_set_comes_back_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = KeptSets::new(folder.path().join("sets"));
        kept.put("key", &set()).expect("written");
        assert_eq!(kept.get("key", &rows()), Some(set()));
        assert_eq!(kept.get("other", &rows()), None);
    }

    #[test]
    fn a_file_that_is_cut_or_changed_is_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let kept = KeptSets::new(folder.path().to_owned());
        kept.put("key", &set()).expect("written");
        let path = folder.path().join("key");
        let whole = std::fs::read(&path).expect("written");
        let is_refused = |bytes: &[u8]| {
            crate::files::atomic::write_bytes(&path, bytes).expect("written");
            kept.get("key", &rows()).is_none() && !path.exists()
        };
        assert!((0..whole.len()).all(|length| is_refused(&whole[..length])));
        assert!((0..whole.len()).all(|at| {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            is_refused(&changed)
        }));
    }
}
