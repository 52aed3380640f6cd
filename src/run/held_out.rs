//! The examples of a run that are measured and never trained on: the validation examples of each evaluation, the test
//! examples and the guard.

use super::answer::{Expected, Question};
use super::base::OpenBase;
use super::preferences::check_shapes;
use super::samples::questions;
use crate::data::{DataSet, Encoded, EncodedSet, Paths, Row, Shape, batch};
use crate::error::{Error, Place, Result};
use crate::recipe::Plan;
use crate::train::{EvalOn, ObjectiveKind};

/// The stream of the seed that chooses examples: neither that of an epoch nor that of the validation split.
const CHOICE_STREAM: u64 = u64::MAX - 2;

/// The examples that are measured and never trained on, beside the whole validation set.
#[derive(Debug, Default)]
pub struct HeldOut {
    /// The validation examples of each evaluation while training, where they are not all.
    chosen: Option<Vec<Encoded>>,
    /// The validation prompts that are answered at each evaluation.
    pub questions: Vec<Question>,
    /// The validation prompts whose exact answers choose the best adapter; none where the loss does.
    pub scored: Vec<Question>,
    /// The test examples.
    pub test: Option<MeasuredSet>,
    /// The examples on which the adapter should not get worse.
    pub guard: Option<MeasuredSet>,
}

/// A data set that base and adapter are measured on at the end.
#[derive(Debug)]
pub struct MeasuredSet {
    /// The data files.
    pub paths: Paths,
    /// Their SHA-256 ([`DataSet::sha256`]).
    pub sha256: String,
    /// Their examples.
    pub set: EncodedSet,
}

impl HeldOut {
    /// Reads and encodes the test examples and the guard of `plan`.
    ///
    /// # Errors
    /// Input: every row that cannot be read or encoded; a set of which no example is left.
    pub(super) fn read(plan: &Plan, base: &OpenBase) -> Result<Self> {
        let test = plan
            .data
            .test
            .as_ref()
            .map(|paths| MeasuredSet::read((paths, &plan.data.shape()), plan.train.objective, None, plan, base))
            .transpose();
        let guard = plan.eval.guard.as_ref();
        // Examples to learn from, even where the training compares answers.
        let guard = guard.map(|guard| {
            let files = (&guard.path, &guard.shape());
            MeasuredSet::read(files, ObjectiveKind::Sft, guard.max_examples, plan, base)
        });
        let guard = guard.transpose();
        let (test, guard) = Error::both(test, guard)?;
        Ok(Self { test, guard, ..Self::default() })
    }

    /// Chooses the validation examples of each evaluation, and those of the samples.
    ///
    /// # Errors
    /// Input: what template and tokenizer say.
    pub(super) fn choose(&mut self, plan: &Plan, base: &OpenBase, rows: &[Row], valid: &EncodedSet) -> Result<()> {
        let chosen = chosen(valid.sequences.len(), plan.eval.max_examples, plan.train.seed);
        self.chosen = chosen.map(|indices| indices.into_iter().map(|index| valid.sequences[index].clone()).collect());
        self.questions = questions(plan, base, rows, plan.sample.valid_prompts, |_| true)?;
        if plan.train.eval_on == EvalOn::ExactMatch {
            let is_text = |question: &Question| matches!(question.expected, Expected::Text(_));
            self.scored = questions(plan, base, rows, plan.eval.exact_match_examples, is_text)?;
            if self.scored.is_empty() {
                let message = "is \"exact_match\", and no validation example has an answer to compare with";
                return Err(Error::input(Place::setting("train.eval_on"), message));
            }
        }
        Ok(())
    }

    /// The validation examples of each evaluation while training.
    pub fn valid_at_steps<'a>(&'a self, valid: &'a EncodedSet) -> &'a [Encoded] {
        self.chosen.as_deref().unwrap_or(&valid.sequences)
    }
}

/// The indices of at most `most` of `count` examples, in order; `None` for all of them.
fn chosen(count: usize, most: Option<usize>, seed: u64) -> Option<Vec<usize>> {
    let most = most.filter(|most| *most < count)?;
    let mut indices = batch::order(count, seed, CHOICE_STREAM);
    indices.truncate(most);
    indices.sort_unstable();
    Some(indices)
}

impl MeasuredSet {
    /// Reads a set of examples of the kind that `objective` takes, `most` of them.
    fn read(
        (paths, shape): (&Paths, &Shape),
        objective: ObjectiveKind,
        most: Option<usize>,
        plan: &Plan,
        base: &OpenBase,
    ) -> Result<Self> {
        let data = DataSet::read(paths, shape)?;
        let (sha256, mut rows) = (data.sha256(), data.rows);
        check_shapes(objective, &rows)?;
        if let Some(indices) = chosen(rows.len(), most, plan.train.seed) {
            rows = indices.into_iter().map(|index| rows[index].clone()).collect();
        }
        let limit = plan.data.max_seq_tokens.min(base.files.config().max_positions);
        let set = base.encoder.encode_all(&rows, limit, plan.data.overlong)?;
        if set.sequences.is_empty() {
            let message = format!("no example is left that has a trained token and at most {limit} tokens");
            return Err(
                Error::input(paths.to_string(), message).hint("raise `data.max_seq_tokens`, or name another file")
            );
        }
        Ok(Self { paths: paths.clone(), sha256, set })
    }

    /// The name of an example, for messages.
    pub(super) fn place(&self, index: usize) -> String {
        self.set.positions[index].to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_fixed_by_the_seed_and_in_order() {
        assert_eq!(chosen(5, None, 0), None);
        assert_eq!(chosen(5, Some(5), 0), None);
        let some = chosen(100, Some(10), 3).expect("a choice");
        assert!(some.len() == 10 && some.is_sorted() && some.iter().all(|index| *index < 100));
        assert_eq!(chosen(100, Some(10), 3), Some(some.clone()));
        assert_ne!(chosen(100, Some(10), 4), Some(some));
    }
}
