//! The best adapter so far, by validation loss or exact answers, and early stopping.

use burn::module::Module;

use super::evaluate::evaluate;
use super::fit::{Event, Job};
use super::score::Score;
use super::settings::EarlyStopping;
use super::step::AdapterTrainer;
use crate::adapter::host::HostAdapter;
use crate::error::Result;
use crate::eval::loss::{ExampleLoss, example_number, mean_loss};

/// The best adapter so far: the one with the best validation score, or the last one without validation data.
pub(super) struct BestSoFar {
    pub(super) adapter: HostAdapter,
    pub(super) step: u64,
    score: Option<Score>,
    /// Loss of each validation sequence before the first step.
    pub(super) losses_before: Vec<ExampleLoss>,
    /// The same with the best adapter.
    pub(super) losses: Vec<ExampleLoss>,
    /// The mean loss of the last evaluation.
    pub(super) last_loss: Option<f64>,
    early_stopping: Option<EarlyStopping>,
    evaluations_without_improvement: u64,
}

impl BestSoFar {
    pub(super) fn new(start: &HostAdapter, early_stopping: Option<EarlyStopping>) -> Self {
        Self {
            adapter: start.clone(),
            step: 0,
            score: None,
            losses_before: Vec::new(),
            losses: Vec::new(),
            last_loss: None,
            early_stopping,
            evaluations_without_improvement: 0,
        }
    }

    /// Evaluates the adapter of this step, and reports it where it is the best. Says whether early stopping ends the run
    /// here.
    ///
    /// # Errors
    /// A validation loss that is not finite; what `watch` returns.
    pub(super) fn evaluate(
        &mut self,
        job: &Job<'_>,
        step: u64,
        trainer: &AdapterTrainer,
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<bool> {
        if job.valid.is_empty() {
            self.keep(job, step, trainer, watch)?;
            return Ok(false);
        }
        let adapter = trainer.adapter.valid();
        let total = job.valid.len();
        let progress = &mut |done| watch(Event::Evaluating { step, done, total });
        let losses = evaluate(job.decoder, Some(&adapter), job.valid, progress)?;
        let valid_loss = mean_loss(&losses, example_number)?;
        self.last_loss = Some(valid_loss);
        let min_delta = self.early_stopping.as_ref().map_or(0.0, |stopping| stopping.min_delta);
        let exact_match = job.exact_match.map(|measure| measure.share(&adapter)).transpose()?;
        let score = Score { exact_match, loss: valid_loss };
        let is_best = self.score.is_none_or(|best| score.is_better_than(best));
        let has_improved = self.score.is_none_or(|best| score.improves_by(best, min_delta));
        if self.score.is_none() {
            self.losses_before = losses.clone();
        }
        let tokens = losses.iter().map(|loss| loss.tokens).sum();
        let correct_tokens = losses.iter().map(|loss| loss.correct_tokens).sum();
        watch(Event::Evaluation { step, valid_loss, tokens, correct_tokens, exact_match, is_best, adapter: &adapter })?;
        if is_best {
            (self.score, self.losses) = (Some(score), losses);
            self.keep(job, step, trainer, watch)?;
        }
        self.evaluations_without_improvement = if has_improved { 0 } else { self.evaluations_without_improvement + 1 };
        let patience = self.early_stopping.as_ref().map(|stopping| stopping.patience_evals);
        Ok(patience.is_some_and(|patience| self.evaluations_without_improvement >= patience))
    }

    /// Evaluations since the last that improved the score.
    pub(super) fn evaluations_without_improvement(&self) -> u64 {
        self.evaluations_without_improvement
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
        self.step = step;
        watch(Event::Best { step, adapter: &self.adapter })
    }
}
