//! Classification in a run: its labels, and the verdict on texts with labels.

use std::fmt;

use serde::Serialize;

use super::outcome::Validation;
use crate::data::{Encoded, Example, Row};
use crate::error::Result;
use crate::eval::bootstrap::{self, Better, Comparison, Share};
use crate::eval::classes::{ClassReport, Classified};
use crate::eval::loss::{self, ExampleLoss};
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::recipe::Plan;
use crate::train::ObjectiveKind;
use crate::train::evaluate::classify;

/// The labels of a run: those of the recipe, else those of the examples, sorted: whole numbers by their value, before texts. None where the
/// run is no classification.
pub(super) fn labels<'a>(plan: &Plan, rows: impl Iterator<Item = &'a Row>) -> Vec<String> {
    match &plan.data.labels {
        _ if plan.train.objective != ObjectiveKind::Classify => Vec::new(),
        Some(labels) => labels.clone(),
        None => sorted(rows),
    }
}

/// The labels of rows, each once, in the order of [`labels`].
pub(super) fn sorted<'a>(rows: impl Iterator<Item = &'a Row>) -> Vec<String> {
    let label = |row: &Row| match &row.example {
        Example::Class { label, .. } => Some(label.clone()),
        _ => None,
    };
    let mut labels: Vec<String> = rows.filter_map(label).collect();
    let number = |label: &String| label.parse::<i64>().ok();
    labels.sort_unstable_by(|a, b| match (number(a), number(b)) {
        (Some(x), Some(y)) => x.cmp(&y).then_with(|| a.cmp(b)),
        (x, y) => y.is_some().cmp(&x.is_some()).then_with(|| a.cmp(b)),
    });
    labels.dedup();
    labels
}

/// The measures of a classifier on examples that it was not trained on.
#[derive(Debug, Clone, Serialize)]
pub struct ClassVerdict {
    /// The accuracy before and after the training, with the 95% interval of the difference. Before the first step, the head of labels is
    /// random.
    pub accuracy: Comparison,
    /// The measures after the training.
    pub after: ClassReport,
}

/// A classifier before and after its training.
pub(super) struct Classifiers<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) labels: &'a [String],
    pub(super) before: &'a Adapter,
    pub(super) after: &'a Adapter,
}

impl Classifiers<'_> {
    /// The verdict on the set `name` of texts: by the loss, with the measures of labels. `place` names an example; `progress` gets the number of
    /// examples done, of twice as many.
    ///
    /// # Errors
    /// Failed: a loss that is not finite. Those of `progress`.
    pub(super) fn verdict(
        &self,
        name: &'static str,
        texts: &[Encoded],
        seed: u64,
        place: impl Fn(usize) -> String,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Validation> {
        let mut measure = |adapter, first: usize| {
            classify(self.decoder, adapter, texts, &mut |done| {
                progress(first + done);
                Ok(())
            })
        };
        let (before, after) = (measure(self.before, 0)?, measure(self.after, texts.len())?);
        let losses = |classified: &[Classified]| classified.iter().map(Classified::loss).collect::<Vec<ExampleLoss>>();
        let (losses_before, losses_after) = (losses(&before), losses(&after));
        let comparison = loss::compare(&losses_before, &losses_after, seed, place)?;
        let shares = |losses: &[ExampleLoss]| losses.iter().map(ExampleLoss::share_of_correct).collect::<Vec<Share>>();
        let accuracy = bootstrap::compare(&shares(&losses_before), &shares(&losses_after), Better::Higher, seed);
        let after = ClassReport::of(&after, self.labels, seed);
        Ok(Validation {
            classes: Some(ClassVerdict { accuracy, after }),
            ..Validation::by(name, &comparison, texts.len())
        })
    }
}

impl fmt::Display for ClassVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { before, after, difference, low, high, .. } = self.accuracy;
        let [before, after, difference, low, high] = [before, after, difference, low, high].map(|share| 100.0 * share);
        write!(
            f,
            "  accuracy {before:.1}% -> {after:.1}% ({difference:+.1}%, 95% interval {low:+.1}% to {high:+.1}%)\n{}",
            self.after
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Position;

    #[test]
    fn numbers_are_sorted_by_their_value_and_come_first() {
        let row = |label: &str| {
            let example = Example::Class { text: "a".into(), label: label.into() };
            Row::new(Position::line("d.jsonl", 1), example)
        };
        let rows = ["10", "b", "9", "a", "9", "-1"].map(row);
        assert_eq!(sorted(rows.iter()), ["-1", "9", "10", "a", "b"]);
    }
}
