//! Preferences in a run: rows of the kind that the objective takes, and the verdict on pairs or labelled answers.

use std::fmt;

use serde::Serialize;

use super::outcome::Validation;
use crate::data::{Encoded, Example, Row};
use crate::error::{Error, Result};
use crate::eval::bootstrap::{self, Better, Comparison, LEAST_EXAMPLES, Share, Verdict};
use crate::eval::loss::{ExampleLoss, mean_loss};
use crate::train::preference::{Measured, Preferences, measure};
use crate::train::{ObjectiveKind, TrainSettings};

/// Checks that all rows are of the kind that `objective` takes.
///
/// # Errors
/// Input: the first row of another kind, and the number of these.
pub(super) fn check_shapes(objective: ObjectiveKind, rows: &[Row]) -> Result<()> {
    let is_other = |row: &&Row| match objective.data_format() {
        Some(format) => row.example.format() != format,
        None => {
            matches!(row.example, Example::Preference { .. } | Example::Labelled { .. } | Example::Class { .. })
        }
    };
    let Some(first) = rows.iter().find(is_other) else { return Ok(()) };
    let others = rows.iter().filter(is_other).count();
    let (found, rest) = (first.example.format(), others - 1);
    let more = if rest > 0 { format!(", and so are {rest} more") } else { String::new() };
    let (expected, hint) = match objective.data_format() {
        Some(format) => (
            format!("`{format}`"),
            "the keys are `prompt`, `chosen`, `rejected`, for \"kto\" `completion`, `label`, for \"classify\" `text`, `label`",
        ),
        None => (
            "examples to learn from".to_owned(),
            "preferences and labels need a `train.objective` that takes them, as \"dpo\" or \"classify\"",
        ),
    };
    let message = format!("is read as `{found}`{more}; the objective `{objective}` takes {expected}");
    Err(Error::input(first.position.place(), message).hint(hint))
}

/// The measures of preferences before and after the training.
#[derive(Debug, Clone, Serialize)]
pub struct PreferenceVerdict {
    /// The measures of the model as it was before the first step.
    pub before: Preferences,
    /// Those of the adapter.
    pub after: Preferences,
    /// The difference of the reward accuracies, with its 95% interval.
    pub accuracy: Comparison,
    /// The reward accuracy where the preferred answer is the longer one; none for labelled answers, and where there are no such pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_where_longer: Option<f64>,
    /// The same where it is the shorter one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy_where_shorter: Option<f64>,
    /// The signs of a training that does something else than is asked for, in words.
    pub warnings: Vec<String>,
}

/// The verdict on the preferences `examples` of the set `name`: by the losses of their sequences before and after the training, those
/// before being the reference. The loss of the objective decides. `place` names an example.
///
/// # Errors
/// Failed: a loss that is not finite.
pub(super) fn verdict(
    name: &'static str,
    settings: &TrainSettings,
    examples: &[Encoded],
    (before, after): (&[ExampleLoss], &[ExampleLoss]),
    place: impl Fn(usize) -> String,
) -> Result<Validation> {
    // Sequences of an example are neighbours; mismatched ones follow after the last example.
    let of_each = examples.first().map_or(1, |example| example.sequences().count());
    let of_sequence = |index: usize| place(index / of_each % examples.len());
    mean_loss(before, of_sequence)?;
    mean_loss(after, of_sequence)?;
    let objective = settings.objective();
    let [measured_before, measured_after] =
        [before, after].map(|losses| measure(&*objective, examples, losses, before));
    let compare = |of: &dyn Fn(&Measured) -> Option<f64>, better: Better| {
        let shares =
            |measured: &[Measured]| -> Vec<Share> { measured.iter().filter_map(of).map(Share::of_score).collect() };
        bootstrap::compare(&shares(&measured_before), &shares(&measured_after), better, settings.seed)
    };
    let by_loss = compare(&|one| Some(one.loss), Better::Lower);
    let accuracy = compare(&|one| one.rewards.accuracy(), Better::Higher);
    let likelihood = compare(&|one| Some(one.preferred?.0), Better::Higher);
    let accuracy_where = |is_wanted: &dyn Fn(usize, usize) -> bool| {
        let pairs = measured_after.iter().filter(|one| match (one.preferred, one.other) {
            (Some((_, preferred)), Some((_, other))) => is_wanted(preferred, other),
            _ => false,
        });
        let accuracies: Vec<f64> = pairs.filter_map(|one| one.rewards.accuracy()).collect();
        (accuracies.iter().sum::<f64>() / accuracies.len() as f64, accuracies.len())
    };
    let longer = accuracy_where(&|preferred, other| preferred > other);
    let shorter = accuracy_where(&|preferred, other| preferred < other);
    let mut warnings = Vec::new();
    if likelihood.verdict == Verdict::Worse {
        warnings.push(format!(
            "the preferred answers became less likely too (mean log-probability {:.2} -> {:.2}, difference {:+.2}, 95% interval \
             {:+.2} to {:+.2}); a higher `train.beta`, a lower `train.learning_rate`, or `train.rpo_alpha` under \"dpo\" holds them",
            likelihood.before, likelihood.after, likelihood.difference, likelihood.low, likelihood.high
        ));
    }
    warnings.extend(follows_length(longer, shorter));
    let of_some = |(accuracy, count): (f64, usize)| (count > 0).then_some(accuracy);
    let tokens = examples.iter().map(Encoded::trained_tokens).sum();
    Ok(Validation {
        preferences: Some(PreferenceVerdict {
            before: Preferences::of(&measured_before),
            after: Preferences::of(&measured_after),
            accuracy,
            accuracy_where_longer: of_some(longer),
            accuracy_where_shorter: of_some(shorter),
            warnings,
        }),
        ..Validation::by(name, &by_loss, tokens)
    })
}

/// The warning where the rewards prefer one length rather than the preferred answers: right where these have it, and wrong on
/// average where they have the other. Each case has an accuracy and the number of its pairs.
fn follows_length(longer: (f64, usize), shorter: (f64, usize)) -> Option<String> {
    if longer.1 < LEAST_EXAMPLES || shorter.1 < LEAST_EXAMPLES {
        return None;
    }
    let (length, right, wrong) = match (longer.0 > 0.5, shorter.0 > 0.5) {
        (true, false) => ("longer", longer, shorter),
        (false, true) => ("shorter", shorter, longer),
        _ => return None,
    };
    Some(format!(
        "the rewards follow the length: they are right in {:.0}% of the {} pairs whose preferred answer is the {length} one, and in \
         {:.0}% of the {} others: answers only grow {length}; balance the lengths in the data, or set `train.length_normalised` \
         under \"dpo\"",
        100.0 * right.0,
        right.1,
        100.0 * wrong.0,
        wrong.1
    ))
}

impl fmt::Display for PreferenceVerdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after, accuracy, warnings, .. } = self;
        let Comparison { difference, low, high, .. } = accuracy;
        write!(
            f,
            "  reward accuracy {:.1}% -> {:.1}% ({:+.1}%, 95% interval {:+.1}% to {:+.1}%)",
            100.0 * before.reward_accuracy,
            100.0 * after.reward_accuracy,
            100.0 * difference,
            100.0 * low,
            100.0 * high
        )?;
        if let (Some(before), Some(after)) = (before.reward_margin, after.reward_margin) {
            write!(f, ", margin {before:.4} -> {after:.4}")?;
        }
        let log_probabilities = [
            ("preferred", before.preferred_log_probability, after.preferred_log_probability, after.preferred_tokens),
            ("other", before.other_log_probability, after.other_log_probability, after.other_tokens),
        ];
        for (name, before, after, tokens) in log_probabilities {
            if let (Some(before), Some(after), Some(tokens)) = (before, after, tokens) {
                write!(
                    f,
                    "\n  {name} answers: log-probability {before:.2} -> {after:.2}, {tokens:.1} tokens on average"
                )?;
            }
        }
        warnings.iter().try_for_each(|warning| write!(f, "\n  warning: {warning}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Judged, Position};

    /// Pairs of answers with these lengths.
    fn pairs(lengths: &[(usize, usize)]) -> Vec<Encoded> {
        let pair = |&(chosen, rejected): &(usize, usize)| {
            let mask = |answer: usize| [vec![false], vec![true; answer]].concat();
            let trained = [mask(chosen), mask(rejected)].concat();
            let ids = vec![0; trained.len()];
            Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Above(chosen + 1) }
        };
        lengths.iter().map(pair).collect()
    }

    /// The losses of the answers of pairs with these lengths.
    fn losses(lengths: &[(usize, usize)], sums: impl IntoIterator<Item = f64>) -> Vec<ExampleLoss> {
        let tokens = lengths.iter().flat_map(|&(chosen, rejected)| [chosen, rejected]);
        let loss = |(loss_sum, tokens)| ExampleLoss { loss_sum, tokens, correct_tokens: 0 };
        sums.into_iter().zip(tokens).map(loss).collect()
    }

    /// The verdict of DPO on pairs of these lengths, each sum changed from 10 by the training.
    fn judged(lengths: &[(usize, usize)], changes: impl Fn(usize) -> [f64; 2]) -> Validation {
        let settings = TrainSettings { objective: ObjectiveKind::Dpo, ..TrainSettings::default() };
        let after: Vec<f64> = (0..lengths.len()).flat_map(|index| changes(index).map(|by| 10.0 + by)).collect();
        let before = losses(lengths, vec![10.0; after.len()]);
        verdict("test", &settings, &pairs(lengths), (&before, &losses(lengths, after)), |index| index.to_string())
            .expect("finite")
    }

    #[test]
    fn the_loss_of_the_objective_and_the_accuracy_have_intervals() {
        let found = judged(&[(4, 4); 20], |index| [-2.0 - 0.1 * (index % 3) as f64, 1.0]);
        assert_eq!(found.verdict, Verdict::Improved);
        let preferences = found.preferences.as_ref().expect("measured");
        assert!((found.loss_before - 2f64.ln()).abs() < 1e-12 && found.perplexity_before.is_none());
        assert_eq!((preferences.accuracy.before, preferences.accuracy.after), (0.5, 1.0));
        assert!(preferences.accuracy.low > 0.0 && preferences.warnings.is_empty());
        let text = found.to_string();
        assert!(
            text.contains("reward accuracy 50.0% -> 100.0% (+50.0%, 95% interval +50.0% to +50.0%), margin 0.0000"),
            "{text}"
        );
        assert!(!text.contains("token accuracy"), "{text}");
    }

    #[test]
    fn chosen_answers_that_become_less_likely_are_a_warning() {
        let found = judged(&[(4, 4); 20], |_| [1.0, 5.0]);
        let preferences = found.preferences.as_ref().expect("measured");
        assert_eq!(found.verdict, Verdict::Improved, "the margin grows all the same");
        assert!(preferences.warnings[0].contains("less likely too (mean log-probability -10.00 -> -11.00"), "{found}");
    }

    #[test]
    fn rewards_that_follow_the_length_are_a_warning() {
        let lengths: Vec<(usize, usize)> = (0..40).map(|index| if index % 2 == 0 { (8, 4) } else { (4, 8) }).collect();
        let longer_wins = judged(&lengths, |index| if index % 2 == 0 { [-1.0, 0.0] } else { [0.0, -1.0] });
        let preferences = longer_wins.preferences.as_ref().expect("measured");
        assert_eq!((preferences.accuracy_where_longer, preferences.accuracy_where_shorter), (Some(1.0), Some(0.0)));
        assert!(preferences.warnings[0].contains("answers only grow longer"), "{longer_wins}");
        let both = judged(&lengths, |_| [-1.0, 0.0]);
        assert!(both.preferences.expect("measured").warnings.is_empty());
        assert_eq!(follows_length((1.0, 9), (0.0, 30)), None, "too few to say");
    }

    #[test]
    fn rows_of_another_kind_are_refused_by_name() {
        let text = || Example::Text { text: "a".into() };
        let pair = || Example::Preference { chosen: Box::new(text()), rejected: Box::new(text()) };
        let row = |line: usize, example: Example| Row::new(Position::line("d.jsonl", line), example);
        let rows = [row(1, pair()), row(2, text()), row(3, text())];
        let error = check_shapes(ObjectiveKind::Dpo, &rows).expect_err("texts").to_string();
        assert!(
            error.starts_with("d.jsonl:2: is read as `text`, and so are 1 more; the objective `dpo` takes"),
            "{error}"
        );
        let error = check_shapes(ObjectiveKind::Sft, &rows).expect_err("a pair").to_string();
        assert!(error.starts_with("d.jsonl:1: is read as `preference`;"), "{error}");
        assert!(
            check_shapes(ObjectiveKind::Kto, &rows).is_err() && check_shapes(ObjectiveKind::SimPo, &rows[..1]).is_ok()
        );
    }
}
