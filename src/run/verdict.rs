//! The verdicts of a run: the adapter against the base on the validation examples, the test examples and the guard.

use super::held_out::MeasuredSet;
use super::outcome::Validation;
use super::prepare::Prepared;
use super::watch::{Stage, Watch};
use crate::data::Encoded;
use crate::error::Result;
use crate::eval::loss::ExampleLoss;
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::train::Outcome;
use crate::train::evaluate::evaluate;

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
    pub(super) fn of(prepared: &Prepared, decoder: &Decoder, outcome: &Outcome, watch: &mut dyn Watch) -> Result<Self> {
        let Prepared { plan, held_out, valid, .. } = prepared;
        let measured = [&held_out.test, &held_out.guard];
        let all_of_valid = held_out.valid_at_steps(valid).len() < valid.sequences.len();
        if outcome.interrupted || (!all_of_valid && measured.iter().all(|set| set.is_none())) {
            return Ok(Self { validation: by_training(prepared, outcome)?, ..Self::default() });
        }
        watch.stage(Stage::Judge);
        let adapter = outcome.adapter.attach(decoder.config(), &prepared.device)?;
        let mut measure = |name, set: &MeasuredSet| {
            let (before, after) = base_and_adapter(decoder, &adapter, &set.set.sequences, watch)?;
            Validation::of(name, (&before, &after), plan.train.seed, |index| set.place(index)).map(Some)
        };
        let test = held_out.test.as_ref().map_or(Ok(None), |set| measure("test", set))?;
        let guard = held_out.guard.as_ref().map_or(Ok(None), |set| measure("guard", set))?;
        let validation = match all_of_valid {
            true => {
                let (before, after) = base_and_adapter(decoder, &adapter, &valid.sequences, watch)?;
                Some(on_validation(prepared, outcome, (&before, &after))?)
            }
            false => by_training(prepared, outcome)?,
        };
        Ok(Self { validation, test, guard })
    }
}

/// The verdict by the losses that were measured while training.
fn by_training(prepared: &Prepared, outcome: &Outcome) -> Result<Option<Validation>> {
    if outcome.valid_before.is_empty() {
        return Ok(None);
    }
    on_validation(prepared, outcome, (&outcome.valid_before, &outcome.valid_after)).map(Some)
}

/// The verdict on validation examples, with its reason and a remedy where no step was better than the base.
fn on_validation(
    prepared: &Prepared,
    outcome: &Outcome,
    (before, after): (&[ExampleLoss], &[ExampleLoss]),
) -> Result<Validation> {
    let Prepared { plan, valid, .. } = prepared;
    // A part of the examples has places of its own, which nobody needs: their losses were finite while training.
    let place = |index: usize| valid.positions[index].to_string();
    let mut validation = Validation::of("validation", (before, after), plan.train.seed, place)?;
    validation.unmeasured_examples = valid.sequences.len() - after.len();
    if let (0, 1.., Some(last)) = (outcome.best_step, outcome.steps, outcome.valid_last) {
        let (reason, advice) = no_step_was_better(validation.loss_before, last, plan.train.learning_rate);
        (validation.verdict_reason, validation.advice) = (Some(reason), Some(advice));
    }
    Ok(validation)
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

/// The losses of base and adapter.
fn base_and_adapter(
    decoder: &Decoder,
    adapter: &Adapter,
    sequences: &[Encoded],
    watch: &mut dyn Watch,
) -> Result<(Vec<ExampleLoss>, Vec<ExampleLoss>)> {
    let total = 2 * sequences.len();
    let mut measure = |adapter, first| {
        let progress = &mut |done| {
            watch.evaluating(first + done, total);
            Ok(())
        };
        evaluate(decoder, adapter, sequences, progress)
    };
    Ok((measure(None, 0)?, measure(Some(adapter), sequences.len())?))
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
