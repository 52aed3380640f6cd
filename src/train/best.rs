//! The best adapter so far, by validation loss or exact answers, and early stopping.

use burn::module::Module;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::evaluate::{classify_cancellable, evaluate_cancellable};
use super::event::Event;
use super::fit::Job;
use super::preference::{self, Preferences};
use super::score::{EvalOn, Score};
use super::settings::EarlyStopping;
use super::step::AdapterTrainer;
use crate::adapter::host::HostAdapter;
use crate::data::Encoded;
use crate::error::{Error, Result};
use crate::eval::classes::{ClassFigures, Classified, figures};
use crate::eval::loss::{ExampleLoss, example_number, mean_loss};
use crate::files::json::exact;
use crate::interrupt;
use crate::nn::Adapter;

/// The best adapter so far: the one with the best validation score, or the last one without validation data.
#[derive(Debug, Clone, PartialEq)]
pub struct BestSoFar {
    /// The adapter.
    pub adapter: HostAdapter,
    /// How it was found.
    pub evaluations: Evaluations,
}

/// The evaluations of a run, as far as they decide something later.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Evaluations {
    /// Steps that the best adapter had.
    pub best_step: u64,
    /// Its measures; `None` before the first evaluation.
    pub best: Option<Score>,
    /// Loss of each validation sequence before the first step: the reference, where the objective has one.
    pub losses_before: Vec<ExampleLoss>,
    /// The same with the best adapter.
    pub losses: Vec<ExampleLoss>,
    /// Evaluations since the last that improved the loss.
    pub without_improvement: u64,
    /// The mean validation loss of the last evaluation.
    #[serde(with = "exact::option")]
    pub last_loss: Option<f64>,
    /// Steps done at the last evaluation, or without validation data at the last time that the adapter was kept.
    pub last_step: Option<u64>,
}

/// The losses of the validation examples `valid`, and of a classifier of so many labels its measures; `None`, on every rank, where
/// one of them was asked to stop.
fn measured(
    job: &Job<'_>,
    adapter: &Adapter,
    valid: &[Encoded],
    labels: Option<usize>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Option<(Vec<ExampleLoss>, Option<ClassFigures>)>> {
    let Job { ranks, decoder, .. } = *job;
    let Some(labels) = labels else {
        let losses = evaluate_cancellable(ranks, decoder, Some(adapter), valid, progress)?;
        return Ok(losses.map(|losses| (losses, None)));
    };
    let classified = classify_cancellable(ranks, decoder, adapter, valid, progress)?;
    Ok(classified.map(|classified| {
        let losses = classified.iter().map(Classified::loss).collect();
        (losses, Some(figures(&classified, labels)))
    }))
}

impl BestSoFar {
    /// No evaluation yet.
    pub(super) fn new(start: &HostAdapter) -> Self {
        Self { adapter: start.clone(), evaluations: Evaluations::default() }
    }

    /// Evaluates the adapter of this step, and reports it where it is the best; without validation data it always is.
    /// `false` if the user asked to stop first: then nothing has changed.
    ///
    /// # Errors
    /// A validation loss that is not finite before the first step; what `watch` returns.
    pub(super) fn evaluate(
        &mut self,
        job: &Job<'_>,
        step: u64,
        trainer: &AdapterTrainer,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<bool> {
        if job.valid.is_empty() {
            self.keep(job, step, trainer, watch)?;
            self.evaluations.last_step = Some(step);
            return Ok(true);
        }
        let adapter = trainer.adapter.valid();
        let objective = job.settings.objective();
        let valid = preference::evaluated(&*objective, job.valid)?;
        let valid = &valid[..];
        let total = valid.len();
        let labels = job.start.classifier.as_ref().map(|classifier| classifier.labels.len());
        let mut measured = |adapter: &Adapter| {
            measured(job, adapter, valid, labels, &mut |done| watch(Event::Evaluating { step, done, total }))
        };
        let Some((losses, classes)) = measured(&adapter)? else { return Ok(false) };
        // The validation data are others than those the run began with: the adapter that it began with is evaluated too.
        let before = match self.evaluations.losses_before.is_empty() && step > 0 {
            true => {
                let start = job.start.attach(job.decoder.config(), job.decoder.device())?;
                let Some((before, _)) = measured(&start)? else { return Ok(false) };
                Some(before)
            }
            false => None,
        };
        let exact_match = match job.exact_match {
            Some(measure) => {
                let own = interrupt::cancellable(|| measure.exact(job.ranks, &adapter)).transpose()?;
                let mut counts = [i64::from(own.is_none()), own.unwrap_or_default() as i64];
                job.ranks.sum(&mut counts);
                let [cancelled, exact] = counts;
                if cancelled > 0 {
                    return Ok(false);
                }
                Some(exact as f64 / measure.prompts() as f64)
            }
            None => None,
        };
        check_same_adapter(job, step, trainer)?;
        let so_far = &mut self.evaluations;
        if so_far.losses_before.is_empty() {
            so_far.losses_before = before.unwrap_or_else(|| losses.clone());
        }
        let preferences = job.settings.objective.is_preference().then(|| {
            let measured = preference::measure(&*objective, job.valid, &losses, &so_far.losses_before);
            Preferences::of(&measured)
        });
        let valid_loss = match (mean_loss(&losses, example_number), so_far.best) {
            // An adapter that has run away is no better than any other.
            (Err(_), Some(_)) => f64::INFINITY,
            (valid_loss, _) => preferences.as_ref().map_or(valid_loss?, |preferences| preferences.loss),
        };
        let min_delta = job.settings.early_stopping.as_ref().map_or(0.0, |stopping| stopping.min_delta);
        let accuracy = classes.map(|classes| classes.accuracy).filter(|_| job.settings.eval_on == EvalOn::Accuracy);
        let score = Score { share: exact_match.or(accuracy), loss: valid_loss };
        let is_best = so_far.best.is_none_or(|best| score.is_better_than(best));
        let has_improved = so_far.best.is_none_or(|best| score.improves_by(best, min_delta));
        let tokens = losses.iter().map(|loss| loss.tokens).sum();
        let correct_tokens = losses.iter().map(|loss| loss.correct_tokens).sum();
        watch(Event::Evaluation {
            step,
            valid_loss,
            tokens,
            correct_tokens,
            exact_match,
            preferences: preferences.as_ref(),
            classes: classes.as_ref(),
            is_best,
            adapter: &adapter,
        })?;
        (so_far.last_step, so_far.last_loss) = (Some(step), Some(valid_loss));
        so_far.without_improvement = if has_improved { 0 } else { so_far.without_improvement + 1 };
        if is_best {
            (so_far.best, so_far.losses) = (Some(score), losses);
            self.keep(job, step, trainer, watch)?;
        }
        Ok(true)
    }

    /// Whether early stopping ends the run.
    pub(super) fn has_stopped(&self, early_stopping: Option<&EarlyStopping>) -> bool {
        early_stopping.is_some_and(|stopping| self.evaluations.without_improvement >= stopping.patience_evals)
    }

    /// Keeps the adapter of this step.
    pub(super) fn keep(
        &mut self,
        job: &Job<'_>,
        step: u64,
        trainer: &AdapterTrainer,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<()> {
        self.adapter = self.adapter.with_values(job.decoder.config(), &trainer.adapter);
        self.evaluations.best_step = step;
        watch(Event::Best { step, adapter: &self.adapter })
    }
}

/// Compares the adapters of all ranks, which every decision from here on is computed from.
///
/// # Errors
/// Failed: that of another rank is not the one of rank 0.
fn check_same_adapter(job: &Job<'_>, step: u64, trainer: &AdapterTrainer) -> Result<()> {
    if job.ranks.count() == 1 {
        return Ok(());
    }
    let mut hash = Sha256::new();
    for matrix in trainer.adapter.matrices() {
        hash.update(matrix.val().into_data().as_bytes());
    }
    let hashes = job.ranks.gather(&hash.finalize());
    let Some(other) = hashes.iter().position(|hash| *hash != hashes[0]) else { return Ok(()) };
    let message = format!("the adapter differs from that of {}, from the same sums", job.ranks.name(0));
    Err(Error::failed(format!("step {step} on {}", job.ranks.name(other)), message)
        .hint("processors of different kinds may round differently: train on machines of one kind"))
}
