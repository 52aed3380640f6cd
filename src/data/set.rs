//! All rows of a data file, encoded.

use rayon::prelude::*;

use super::encode::Encoder;
use super::encoded::Encoded;
use super::example::Row;
use super::format::Format;
use super::position::Position;
use super::problems::Problems;
use super::remark::{Remark, Remarks};
use crate::error::{Error, Place, Result};
use crate::settings::choice;

choice! {
    /// The treatment of an example that is longer than `max_seq_tokens`.
    LongPolicy {
        /// It is left out, and counted.
        Drop = "drop",
        /// The start of its prompt is cut off, the beginning-of-text token excepted; left out if that is not enough.
        TruncatePrompt = "truncate-prompt",
        /// It is a problem, reported before training.
        Error = "error",
    }
}

/// Encoded examples, and what was left out on the way.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct EncodedSet {
    /// In the order of the examples; those left out are missing.
    pub sequences: Vec<Encoded>,
    /// The begin of the row of each sequence.
    pub positions: Vec<Position>,
    /// The shape of the examples.
    pub format: Option<Format>,
    /// Left out because they have too many tokens.
    pub dropped_long: usize,
    /// Prompt cut because they had too many tokens.
    pub truncated: usize,
    /// Left out because nothing in them is trained.
    pub dropped_untrained: usize,
    /// Turns of the assistant in the kept sequences that are not trained.
    pub untrained_turns: usize,
    /// Tokens of the kept sequences.
    pub tokens: usize,
    /// Of these, the ones loss is taken on.
    pub trained_tokens: usize,
    /// Remarks on the rows for the user: keys that nothing reads, turns that the template leaves out, and the like.
    pub notices: Vec<String>,
}

impl Encoder {
    /// Ids and masks of all rows, in parallel. `policy` decides about examples of more than
    /// `max_seq_tokens` tokens; what has no trained token is left out and counted.
    ///
    /// # Errors
    /// Input: every row that cannot be encoded, equal problems together.
    pub fn encode_all(&self, rows: &[Row], max_seq_tokens: usize, policy: LongPolicy) -> Result<EncodedSet> {
        let encoded: Vec<_> = rows.par_iter().map(|row| self.encode_with_remarks(&row.example)).collect();
        let mut set = EncodedSet { format: rows.first().map(|row| row.example.format()), ..EncodedSet::default() };
        let mut problems = Problems::default();
        let several_files = rows.windows(2).any(|pair| pair[0].position.file != pair[1].position.file);
        let mut remarks = Remarks::new(several_files);
        for (row, encoded) in rows.iter().zip(encoded) {
            let (mut encoded, mut said) = match encoded {
                Ok(encoded) => encoded,
                Err(error) => {
                    problems.add(&row.position, &error);
                    continue;
                }
            };
            said.extend(row.ignored.iter().map(|key| Remark::KeyIgnored { key: key.to_string() }));
            let length = encoded.ids.len();
            let fits = match policy {
                _ if length <= max_seq_tokens => true,
                LongPolicy::Drop => false,
                LongPolicy::TruncatePrompt => {
                    let fits = self.truncate(&mut encoded, max_seq_tokens);
                    set.truncated += usize::from(fits);
                    fits
                }
                LongPolicy::Error => {
                    let message = format!("has {length} tokens; at most {max_seq_tokens} fit");
                    problems.add(&row.position, &Error::input(Place::Nowhere, message));
                    continue;
                }
            };
            let trained = encoded.trained_tokens();
            if !fits {
                set.dropped_long += 1;
            } else if trained == 0 {
                set.dropped_untrained += 1;
                said.push(Remark::NothingTrained);
            } else {
                set.tokens += encoded.ids.len();
                set.trained_tokens += trained;
                set.untrained_turns += encoded.untrained_turns;
                set.positions.push(row.position.clone());
                encoded.weight = row.weight;
                set.sequences.push(encoded);
            }
            remarks.add(&row.position, said);
        }
        set.notices = remarks.lines();
        problems.finish(set)
    }
}
