//! The verdicts of a run: the adapter against the base on the validation examples, the test examples and the guard.

use std::borrow::Cow;

use super::classes::Classifiers;
use super::held_out::MeasuredSet;
use super::outcome::Validation;
use super::preferences;
use super::prepare::Prepared;
use super::watch::{Stage, Watch};
use crate::adapter::host::HostAdapter;
use crate::data::{Encoded, EncodedSet};
use crate::error::Result;
use crate::eval::loss::{self, ExampleLoss};
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::train::evaluate::evaluate_among;
use crate::train::{ObjectiveKind, Outcome, Ranks, preference};

/// A last loss above the base's by this factor is a divergence rather than a step too far.
const DIVERGED: f64 = 1.5;

/// The verdicts of a run, as far as there is data for them.
#[derive(Debug, Default)]
pub(super) struct Verdicts {
    pub(super) validation: Option<Validation>,
    pub(super) test: Option<Validation>,
    pub(super) guard: Option<Validation>,
}

impl Verdicts {
    /// Measures what training has not measured already. An interrupted run is judged by the examples of its evaluations alone.
    ///
    /// # Errors
    /// Failed: a loss that is not finite.
    pub(super) fn of(
        ranks: &dyn Ranks,
        prepared: &Prepared,
        decoder: &Decoder,
        outcome: &Outcome,
        watch: &mut dyn Watch,
    ) -> Result<Self> {
        // The losses of a classifier, which training has measured, do not tell the labels that it gave.
        if let (Some(classifier), false) = (&outcome.adapter.classifier, outcome.interrupted) {
            return Self::of_classifier(prepared, decoder, &classifier.labels, outcome, watch);
        }
        let Prepared { plan, held_out, valid, .. } = prepared;
        let measured = [&held_out.test, &held_out.guard];
        let all_of_valid = held_out.valid_at_steps(valid).len() < valid.sequences.len();
        if outcome.interrupted || (!all_of_valid && measured.iter().all(|set| set.is_none())) {
            return Ok(Self { validation: by_training(prepared, outcome)?, ..Self::default() });
        }
        watch.stage(Stage::Judge);
        let adapter = outcome.adapter.attach(decoder.config(), &prepared.device)?;
        // Preferences are judged against the adapter that the run began with, their reference.
        let reference = match plan.train.objective.is_preference() {
            true => Some(prepared.start.attach(decoder.config(), &prepared.device)?),
            false => None,
        };
        let objective = plan.train.objective();
        let mut measure = |name, set: &MeasuredSet, reference: Option<&Adapter>| {
            let sequences = match reference {
                Some(_) => preference::evaluated(&*objective, &set.set.sequences)?,
                None => Cow::Borrowed(&set.set.sequences[..]),
            };
            let losses = before_and_after(ranks, decoder, (reference, &adapter), &sequences, watch)?;
            let losses = (&losses.0[..], &losses.1[..]);
            let place = |index: usize| set.place(index);
            match reference {
                Some(_) => preferences::verdict(name, &plan.train, &set.set.sequences, losses, place),
                None => Validation::of(name, losses, plan.train.seed, place),
            }
            .map(Some)
        };
        let test = held_out.test.as_ref().map_or(Ok(None), |set| measure("test", set, reference.as_ref()))?;
        let guard = held_out.guard.as_ref().map_or(Ok(None), |set| measure("guard", set, None))?;
        let validation = match all_of_valid {
            true => {
                let sequences = preference::evaluated(&*objective, &valid.sequences)?;
                let (before, after) =
                    before_and_after(ranks, decoder, (reference.as_ref(), &adapter), &sequences, watch)?;
                Some(on_validation(prepared, outcome, &valid.sequences, (&before, &after))?)
            }
            false => by_training(prepared, outcome)?,
        };
        Ok(Self { validation, test, guard })
    }

    /// The verdicts on a classifier with these labels.
    fn of_classifier(
        prepared: &Prepared,
        decoder: &Decoder,
        labels: &[String],
        outcome: &Outcome,
        watch: &mut dyn Watch,
    ) -> Result<Self> {
        let Prepared { plan, held_out, valid, .. } = prepared;
        watch.stage(Stage::Judge);
        let attached = |adapter: &HostAdapter| adapter.attach(decoder.config(), &prepared.device);
        let (before, after) = (&attached(&prepared.start)?, &attached(&outcome.adapter)?);
        let classifiers = Classifiers { decoder, labels, before, after };
        let mut verdict = |name, set: &EncodedSet| {
            let total = 2 * set.sequences.len();
            let place = |index: usize| set.positions[index].to_string();
            classifiers.verdict(name, &set.sequences, plan.train.seed, place, &mut |done| watch.evaluating(done, total))
        };
        let validation = (!valid.sequences.is_empty()).then(|| verdict("validation", valid)).transpose()?;
        let test = held_out.test.as_ref().map(|test| verdict("test", &test.set)).transpose()?;
        let validation = validation.map(|validation| with_advice(validation, outcome, plan.train.learning_rate));
        Ok(Self { validation, test, guard: None })
    }
}

/// The verdict by the losses that were measured while training.
fn by_training(prepared: &Prepared, outcome: &Outcome) -> Result<Option<Validation>> {
    if outcome.valid_before.is_empty() {
        return Ok(None);
    }
    let measured = prepared.held_out.valid_at_steps(&prepared.valid);
    on_validation(prepared, outcome, measured, (&outcome.valid_before, &outcome.valid_after)).map(Some)
}

/// The verdict on validation examples, with its reason and a remedy where no step was better than the base.
fn on_validation(
    prepared: &Prepared,
    outcome: &Outcome,
    measured: &[Encoded],
    losses: (&[ExampleLoss], &[ExampleLoss]),
) -> Result<Validation> {
    let Prepared { plan, valid, .. } = prepared;
    // A part of the examples has places of its own, which nobody needs: their losses were finite while training.
    let place = |index: usize| valid.positions[index].to_string();
    let (name, seed) = ("validation", plan.train.seed);
    let mut validation = match plan.train.objective {
        // The loss of a label has no perplexity.
        ObjectiveKind::Classify => {
            Validation::by(name, &loss::compare(losses.0, losses.1, seed, place)?, measured.len())
        }
        objective if objective.is_preference() => preferences::verdict(name, &plan.train, measured, losses, place)?,
        _ => Validation::of(name, losses, seed, place)?,
    };
    validation.unmeasured_examples = valid.sequences.len() - measured.len();
    Ok(with_advice(validation, outcome, plan.train.learning_rate))
}

/// The verdict with its reason and a remedy, where no step was better than the base.
fn with_advice(validation: Validation, outcome: &Outcome, learning_rate: f64) -> Validation {
    match (outcome.best_step, outcome.steps, outcome.valid_last) {
        (0, 1.., Some(last)) => {
            let (reason, advice) = no_step_was_better(validation.loss_before, last, learning_rate);
            Validation { verdict_reason: Some(reason), advice: Some(advice), ..validation }
        }
        _ => validation,
    }
}

/// The reason of a verdict where no evaluation was better than the base, and a remedy.
fn no_step_was_better(before: f64, last: f64, learning_rate: f64) -> (String, String) {
    let diverged = if last > DIVERGED * before { "the training diverged: " } else { "" };
    let reason = format!(
        "{diverged}no evaluation was better than the base, and the last had a loss of {last:.4}; the adapter is kept as \
         it started, and changes nothing"
    );
    let advice = format!("try a `train.learning_rate` ten times lower ({:e}), or a warm-up", learning_rate / 10.0);
    (reason, advice)
}

/// The losses before and after the training, each with an adapter or with the base alone.
fn before_and_after(
    ranks: &dyn Ranks,
    decoder: &Decoder,
    (before, after): (Option<&Adapter>, &Adapter),
    sequences: &[Encoded],
    watch: &mut dyn Watch,
) -> Result<(Vec<ExampleLoss>, Vec<ExampleLoss>)> {
    let total = 2 * sequences.len();
    let mut measure = |adapter, first| {
        let progress = &mut |done| {
            watch.evaluating(first + done, total);
            Ok(())
        };
        evaluate_among(ranks, decoder, adapter, sequences, progress)
    };
    Ok((measure(before, 0)?, measure(Some(after), sequences.len())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_too_far_is_told_from_a_divergence() {
        let (reason, advice) = no_step_was_better(1.7693, 1.8, 2e-4);
        assert!(
            reason.starts_with("no evaluation was better than the base, and the last had a loss of 1.8000"),
            "{reason}"
        );
        assert_eq!(advice, "try a `train.learning_rate` ten times lower (2e-5), or a warm-up");
        let (reason, _) = no_step_was_better(1.7693, 81.6, 0.3);
        assert!(reason.starts_with("the training diverged: no evaluation was better"), "{reason}");
    }
}
