//! The loop: epochs of shuffled sequences, evaluation, early stopping, the best adapter kept.

use std::time::Instant;

use burn::module::Module;

use super::evaluate::evaluate;
use super::memory::peak_bytes;
use super::schedule::{Schedule, ScheduleKind};
use super::step::{Optimiser, StepReport, Trainee};
use crate::adapter::host::HostAdapter;
use crate::data::{Batch, Encoded, batch};
use crate::error::{Error, Result};
use crate::eval::loss::{ExampleLoss, mean_loss};
use crate::model::Decoder;

/// Stop when the validation loss no longer falls.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EarlyStopping {
    /// Evaluations without improvement before stopping.
    pub patience_evals: u64,
    /// The loss must fall by more than this to count as an improvement.
    pub min_delta: f64,
}

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub epochs: u64,
    /// Stop after this many steps, even within an epoch.
    pub max_steps: Option<u64>,
    /// Sequences in one forward and backward pass.
    pub micro_batch_seqs: usize,
    /// Micro-batches that make one step.
    pub accumulate_steps: usize,
    /// Fill micro-batches up to `micro_batch_seqs * max_seq_tokens` tokens instead of counting sequences.
    pub packing: bool,
    pub max_seq_tokens: usize,
    pub learning_rate: f64,
    pub schedule: ScheduleKind,
    pub warmup_steps: u64,
    /// Steps between evaluations; there is always one at the end.
    pub eval_steps: u64,
    pub optimiser: Optimiser,
    pub early_stopping: Option<EarlyStopping>,
    /// Decides the order of the sequences and dropout.
    pub seed: u64,
}

impl Settings {
    /// How many steps a run over `train` has, unless it stops early.
    ///
    /// # Errors
    /// There is no step: no sequence with a trained token.
    pub fn total_steps(&self, train: &[Encoded]) -> Result<u64> {
        let steps_per_epoch = Epochs::new(self, train).steps(0).len() as u64;
        if steps_per_epoch == 0 || train.iter().all(|sequence| sequence.trained_tokens() == 0) {
            return Err(Error::input("data.train", "there is not one token to train on"));
        }
        Ok(self.epochs.saturating_mul(steps_per_epoch).min(self.max_steps.unwrap_or(u64::MAX)))
    }
}

/// What the loop tells whoever watches, in order.
pub enum Event<'a> {
    /// Before the first step.
    Begin { total_steps: u64, parameters: usize },
    /// After each step.
    Step { step: u64, epoch: u64, learning_rate: f64, report: StepReport, tokens_per_second: f64, peak_bytes: u64 },
    /// After each evaluation; the first, at step 0, is the adapter as it started.
    Evaluation { step: u64, valid_loss: f64, tokens: usize, is_best: bool },
    /// The adapter is the best so far (without validation data: the last): keep it.
    Best { step: u64, adapter: &'a HostAdapter },
    /// Early stopping ended the run after this step.
    Stopped { step: u64, evaluations_without_improvement: u64 },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The best adapter: lowest validation loss, or the last without validation data.
    pub adapter: HostAdapter,
    /// Steps done.
    pub steps: u64,
    pub best_step: u64,
    /// Loss of each validation sequence before the first step and at the best one; empty without validation data.
    pub valid_before: Vec<ExampleLoss>,
    pub valid_after: Vec<ExampleLoss>,
    pub stopped_early: bool,
    /// The user stopped it.
    pub interrupted: bool,
    /// Tokens through the model in training, by second of training.
    pub tokens_per_second: f64,
}

/// Trains `start` and returns the best adapter. `watch` sees every [`Event`]; its error ends the run. Once `stop` says so,
/// the run ends after the step, evaluated as after its last.
///
/// # Errors
/// No sequence with a trained token; a loss that is not finite; what `watch` returns.
pub fn fit(
    decoder: &Decoder,
    start: &HostAdapter,
    train: &[Encoded],
    valid: &[Encoded],
    settings: &Settings,
    stop: impl Fn() -> bool,
    mut watch: impl FnMut(Event<'_>) -> Result<()>,
) -> Result<Outcome> {
    let epochs = Epochs::new(settings, train);
    let total_steps = settings.total_steps(train)?;
    let schedule = Schedule {
        kind: settings.schedule,
        peak: settings.learning_rate,
        warmup_steps: settings.warmup_steps,
        total_steps,
    };
    let device = decoder.device().clone().autodiff();
    let mut trainee = Trainee::new(start.attach(decoder.config(), &device)?, settings.optimiser);
    watch(Event::Begin { total_steps, parameters: trainee.adapter.parameters() })?;

    let mut race = Race::new(start, settings.early_stopping);
    let mut evaluate_at =
        |step: u64, is_last: bool, trainee: &Trainee, watch: &mut dyn FnMut(Event<'_>) -> Result<()>| {
            race.enter(decoder, step, is_last, trainee, valid, watch)
        };
    if !valid.is_empty() {
        evaluate_at(0, false, &trainee, &mut watch)?;
    }
    let (mut step, mut tokens, mut seconds) = (0, 0usize, 0f64);
    let (mut stopped_early, mut interrupted) = (false, false);
    'epochs: for epoch in 0..settings.epochs {
        for micro_batches in epochs.steps(epoch) {
            let began = Instant::now();
            let learning_rate = schedule.rate(step);
            let seed = settings.seed.wrapping_add((step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let report = trainee.step(decoder, &epochs.join(&micro_batches), learning_rate, seed);
            step += 1;
            if !report.loss.is_finite() || !report.grad_norm.is_finite() {
                let message = format!("the loss is {} and the gradient's norm {}", report.loss, report.grad_norm);
                let kept = if valid.is_empty() { "" } else { "; the best adapter so far is kept" };
                return Err(Error::failed(format!("step {step}"), message)
                    .hint(format!("a lower learning_rate or a warm-up may help{kept}")));
            }
            let elapsed = began.elapsed().as_secs_f64();
            tokens += report.tokens;
            seconds += elapsed;
            let tokens_per_second = report.tokens as f64 / elapsed;
            let peak_bytes = peak_bytes();
            watch(Event::Step { step, epoch, learning_rate, report, tokens_per_second, peak_bytes })?;
            interrupted = step < total_steps && stop();
            let is_last = step == total_steps || interrupted;
            if is_last || (!valid.is_empty() && step % settings.eval_steps == 0) {
                stopped_early = evaluate_at(step, is_last, &trainee, &mut watch)?;
            }
            if is_last || stopped_early {
                break 'epochs;
            }
        }
    }
    Ok(Outcome {
        adapter: race.best,
        steps: step,
        best_step: race.best_step,
        valid_before: race.first,
        valid_after: race.best_by_example,
        stopped_early,
        interrupted,
        tokens_per_second: tokens as f64 / seconds,
    })
}

/// Which sequences make the micro-batches of each step of an epoch.
struct Epochs<'a> {
    settings: &'a Settings,
    sequences: &'a [Encoded],
    lengths: Vec<usize>,
}

impl<'a> Epochs<'a> {
    fn new(settings: &'a Settings, sequences: &'a [Encoded]) -> Self {
        Self { settings, sequences, lengths: sequences.iter().map(|sequence| sequence.ids.len()).collect() }
    }

    /// By step, by micro-batch.
    fn steps(&self, epoch: u64) -> Vec<Vec<Vec<usize>>> {
        let Settings { micro_batch_seqs, accumulate_steps, packing, max_seq_tokens, seed, .. } = *self.settings;
        let order = batch::order(self.sequences.len(), seed, epoch);
        let micro_batches = if packing {
            batch::packed_batches(&order, &self.lengths, micro_batch_seqs * max_seq_tokens)
        } else {
            batch::batches(&order, micro_batch_seqs)
        };
        micro_batches.chunks(accumulate_steps).map(<[Vec<usize>]>::to_vec).collect()
    }

    fn join(&self, micro_batches: &[Vec<usize>]) -> Vec<Batch> {
        let join = |indices: &Vec<usize>| Batch::join(indices.iter().map(|&index| &self.sequences[index]));
        micro_batches.iter().map(join).collect()
    }
}

/// Who is best so far.
struct Race {
    best: HostAdapter,
    best_step: u64,
    best_loss: Option<f64>,
    first: Vec<ExampleLoss>,
    best_by_example: Vec<ExampleLoss>,
    early_stopping: Option<EarlyStopping>,
    without_improvement: u64,
}

impl Race {
    fn new(start: &HostAdapter, early_stopping: Option<EarlyStopping>) -> Self {
        Self {
            best: start.clone(),
            best_step: 0,
            best_loss: None,
            first: Vec::new(),
            best_by_example: Vec::new(),
            early_stopping,
            without_improvement: 0,
        }
    }

    /// Evaluates the adapter of this step; whether it is time to stop before the last one.
    fn enter(
        &mut self,
        decoder: &Decoder,
        step: u64,
        is_last: bool,
        trainee: &Trainee,
        valid: &[Encoded],
        watch: &mut dyn FnMut(Event<'_>) -> Result<()>,
    ) -> Result<bool> {
        let mut improved = true;
        let mut is_best = true;
        if !valid.is_empty() {
            let losses = evaluate(decoder, Some(&trainee.adapter.valid()), valid);
            let valid_loss = mean_loss(&losses)?;
            let min_delta = self.early_stopping.map_or(0.0, |stopping| stopping.min_delta);
            is_best = self.best_loss.is_none_or(|best| valid_loss < best);
            improved = self.best_loss.is_none_or(|best| valid_loss < best - min_delta);
            if self.best_loss.is_none() {
                self.first = losses.clone();
            }
            let tokens = losses.iter().map(|loss| loss.tokens).sum();
            if is_best {
                self.best_loss = Some(valid_loss);
                self.best_by_example = losses;
            }
            watch(Event::Evaluation { step, valid_loss, tokens, is_best })?;
        }
        if is_best {
            self.best = self.best.with_values(decoder.config(), &trainee.adapter);
            self.best_step = step;
            watch(Event::Best { step, adapter: &self.best })?;
        }
        self.without_improvement = if improved { 0 } else { self.without_improvement + 1 };
        let is_enough = |stopping: EarlyStopping| self.without_improvement >= stopping.patience_evals;
        let stop = !is_last && self.early_stopping.is_some_and(is_enough);
        if stop {
            let evaluations_without_improvement = self.without_improvement;
            watch(Event::Stopped { step, evaluations_without_improvement })?;
        }
        Ok(stop)
    }
}
