//! The settings of the data: which files, which shape, how long.

use std::path::PathBuf;

use super::augment::Augment;
use super::format::Format;
use super::set::LongPolicy;
use crate::settings::{Limit, OrAuto, any, between, not_empty, optional, section};

section! {
    /// The examples that the adapter is trained on.
    DataSettings {
        /// The training examples: a `.jsonl`, `.json`, `.csv` or `.parquet` file. A path is relative to the current folder.
        train: PathBuf = Refuse, not_empty();
        /// The validation examples: a file of the same kinds.
        valid: Option<PathBuf> = Take(None), optional(not_empty());
        /// Instead of `valid`: this share of the training examples is held out, chosen by the seed.
        valid_fraction: Option<f64> = Take(None), optional(Limit::new("above 0, below 1", |share| *share > 0.0 && *share < 1.0));
        /// The test examples: base and adapter are measured on them once, at the end. Nothing is chosen by them, unlike by the
        /// validation examples, which choose the best adapter.
        test: Option<PathBuf> = Take(None), optional(not_empty());
        /// The shape of the examples; `auto` looks at the first.
        format: OrAuto<Format> = Take(OrAuto::Auto), any();
        /// The longest sequence, in tokens.
        max_seq_tokens: usize = Take(512), between(2..=1 << 24);
        /// The treatment of an example longer than `max_seq_tokens`.
        overlong: LongPolicy = Take(LongPolicy::Drop), any();
        /// Fill micro-batches by best fit up to `micro_batch_seqs` × `max_seq_tokens` tokens instead of counting sequences;
        /// attention never crosses from one example to the next.
        packing: bool = Take(false), any();
        /// Changes of the prompts of the training examples.
        augment: Option<Augment> = Take(None), any();
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The defaults, over this file.
    pub(crate) fn over(train: &str, max_seq_tokens: usize) -> DataSettings {
        DataSettings {
            train: train.into(),
            valid: None,
            valid_fraction: None,
            test: None,
            format: OrAuto::Auto,
            max_seq_tokens,
            overlong: LongPolicy::Drop,
            packing: false,
            augment: None,
        }
    }
}
