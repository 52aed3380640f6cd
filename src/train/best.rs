//! The best adapter so far, by validation loss or exact answers, and early stopping.

use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::evaluate::{classify, evaluate};
use super::event::Event;
use super::fit::Job;
use super::preference::{self, Preferences};
use super::score::{EvalOn, Score};
use super::settings::EarlyStopping;
use super::step::AdapterTrainer;
use crate::adapter::host::HostAdapter;
use crate::data::Encoded;
use crate::error::Result;
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

/// The losses of the validation examples `valid`, and of a classifier of so many labels its measures.
fn measured(
    job: &Job<'_>,
    adapter: &Adapter,
    valid: &[Encoded],
    labels: Option<usize>,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<(Vec<ExampleLoss>, Option<ClassFigures>)> {
    let Some(labels) = labels else { return Ok((evaluate(job.decoder, Some(adapter), valid, progress)?, None)) };
    let classified = classify(job.decoder, adapter, valid, progress)?;
    Ok((classified.iter().map(Classified::loss).collect(), Some(figures(&classified, labels))))
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
        let progress = &mut |done| watch(Event::Evaluating { step, done, total });
        let labels = job.start.classifier.as_ref().map(|classifier| classifier.labels.len());
        let measured = interrupt::cancellable(|| measured(job, &adapter, valid, labels, progress));
        let Some((losses, classes)) = measured.transpose()? else { return Ok(false) };
        // The validation data are others than those the run began with: the adapter that it began with is evaluated too.
        let before = match self.evaluations.losses_before.is_empty() && step > 0 {
            true => {
                let start = job.start.attach(job.decoder.config(), job.decoder.device())?;
                let progress = &mut |done| watch(Event::Evaluating { step, done, total });
                let before = interrupt::cancellable(|| evaluate(job.decoder, Some(&start), valid, progress));
                let Some(before) = before.transpose()? else { return Ok(false) };
                Some(before)
            }
            false => None,
        };
        let exact_match = match job.exact_match {
            Some(measure) => match interrupt::cancellable(|| measure.share(&adapter)) {
                Some(share) => Some(share?),
                None => return Ok(false),
            },
            None => None,
        };
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
