//! All rows of a data file, encoded.

use std::sync::Arc;
use std::sync::mpsc::channel;

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
    /// The number of each sequence among the rows, from 0.
    pub indices: Vec<usize>,
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
    /// Remarks on the rows: keys that nothing reads, turns that the template leaves out, and the like.
    pub remarks: Remarks,
    /// The remarks in words, a line each.
    pub notices: Vec<String>,
}

impl EncodedSet {
    /// The memory that the set takes, in bytes, with what the allocator adds to each of the buffers.
    pub fn bytes(&self) -> u64 {
        const ALLOCATION: usize = 16;
        let a_row = size_of::<Encoded>() + 2 * ALLOCATION + size_of::<Position>() + size_of::<usize>();
        (self.tokens * (size_of::<u32>() + size_of::<bool>()) + self.sequences.len() * a_row) as u64
    }
}

/// The number of rows that are encoded between two reports of progress.
const ROWS_AT_ONCE: usize = 1024;
/// The number of rows that a thread takes at a time.
const ROWS_OF_A_TASK: usize = 8;

impl Encoder {
    /// Ids and masks of all rows, in parallel. `policy` decides about examples of more than
    /// `max_seq_tokens` tokens; what has no trained token is left out and counted. The result does not depend on the number
    /// of threads.
    ///
    /// # Errors
    /// Input: every row that cannot be encoded, equal problems together.
    pub fn encode_all(&self, rows: &[Row], max_seq_tokens: usize, policy: LongPolicy) -> Result<EncodedSet> {
        self.encode_all_watched(rows, max_seq_tokens, policy, &mut |_, _| {})
    }

    /// [`Self::encode_all`]; calls `progress(done, total)` with numbers of rows.
    ///
    /// # Errors
    /// Those of [`Self::encode_all`].
    pub fn encode_all_watched(
        &self,
        rows: &[Row],
        max_seq_tokens: usize,
        policy: LongPolicy,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<EncodedSet> {
        if let Some(pictures) = self.pictures() {
            pictures.meet(rows);
        }
        let format = rows.first().map(|row| row.example.format());
        let set = EncodedSet { format, ..EncodedSet::default() };
        let (problems, remarks) = (Problems::default(), Remarks::about(rows));
        let encoder = Arc::new(self.clone());
        let mut building = Building { encoder: self, max_seq_tokens, policy, set, problems, remarks };
        for (index, chunk) in rows.chunks(ROWS_AT_ONCE).enumerate() {
            let done = index * ROWS_AT_ONCE;
            let encoded: Vec<_> = chunk.par_chunks(ROWS_OF_A_TASK).map(|rows| encode_some(&encoder, rows)).collect();
            for (offset, (row, encoded)) in chunk.iter().zip(encoded.into_iter().flatten()).enumerate() {
                building.add(done + offset, row, encoded);
            }
            progress(done + chunk.len(), rows.len());
        }
        building.finish()
    }
}

/// Ids, mask and remarks of some rows, made on a thread of the template where there is one.
fn encode_some(encoder: &Arc<Encoder>, rows: &[Row]) -> Vec<Result<(Encoded, Vec<Remark>)>> {
    let one_by_one =
        |rows: &[Row]| rows.iter().map(|row| encoder.encode_with_remarks(&row.example)).collect::<Vec<_>>();
    let Some(template) = encoder.template() else { return one_by_one(rows) };
    let (ready, encoded) = channel();
    let (shared, examples) = (Arc::clone(encoder), rows.iter().map(|row| row.example.clone()).collect::<Vec<_>>());
    let outcome = template.on_its_thread(move || {
        // Without a receiver the template was given up.
        let mut done = examples.iter().map(|example| ready.send(shared.encode_with_remarks(example)));
        done.all(|sent| sent.is_ok());
    });
    let mut done: Vec<_> = encoded.try_iter().collect();
    // The row in which the template was given up; the others behind it say that it was.
    done.extend(outcome.err().map(Err));
    done.extend(one_by_one(rows.get(done.len()..).unwrap_or_default()));
    done.truncate(rows.len());
    done
}

/// A set that is being built, row by row in their order.
struct Building<'a> {
    encoder: &'a Encoder,
    max_seq_tokens: usize,
    policy: LongPolicy,
    set: EncodedSet,
    problems: Problems,
    remarks: Remarks,
}

impl Building<'_> {
    /// Adds row number `index`, or what is wrong with it.
    fn add(&mut self, index: usize, row: &Row, encoded: Result<(Encoded, Vec<Remark>)>) {
        let (mut encoded, mut said) = match encoded {
            Ok(encoded) => encoded,
            Err(error) => return self.problems.add(&row.position, &error),
        };
        said.extend(row.ignored.iter().map(|key| Remark::KeyIgnored { key: key.to_string() }));
        let (length, max) = (encoded.longest_tokens(), self.max_seq_tokens);
        let fits = match self.policy {
            _ if length <= max => true,
            LongPolicy::Drop => false,
            LongPolicy::TruncatePrompt => encoded.cut_prompt(self.encoder.tokenizer.bos(), max),
            LongPolicy::Error => {
                let message = format!("has {length} tokens; at most {max} fit");
                return self.problems.add(&row.position, &Error::input(Place::Nowhere, message));
            }
        };
        let trained = encoded.trained_tokens();
        let set = &mut self.set;
        if !fits {
            set.dropped_long += 1;
            said.push(Remark::TooLong { max });
        } else if encoded.trained_by_sequence().any(|trained| trained == 0) {
            set.dropped_untrained += 1;
            said.push(Remark::NothingTrained);
        } else {
            if length > max {
                set.truncated += 1;
                said.push(Remark::PromptCut { max });
            }
            if encoded.untrained_turns > 0 {
                said.push(Remark::TurnNotTrained);
            }
            set.tokens += encoded.ids.len();
            set.trained_tokens += trained;
            set.untrained_turns += encoded.untrained_turns;
            set.positions.push(row.position.clone());
            set.indices.push(index);
            // The set stays in memory during the whole run.
            encoded.ids.shrink_to_fit();
            encoded.trained.shrink_to_fit();
            encoded.weight = row.weight;
            set.sequences.push(encoded);
        }
        self.remarks.add(&row.position, said);
    }

    fn finish(mut self) -> Result<EncodedSet> {
        self.set.notices = self.remarks.lines();
        self.set.remarks = self.remarks;
        self.problems.finish(self.set)
    }
}
