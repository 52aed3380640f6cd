//! The loop: epochs of shuffled sequences, evaluation, early stopping, the best adapter kept.

use std::borrow::Cow;
use std::time::Instant;

use super::batching::{Batching, Layout};
use super::best::BestSoFar;
use super::objective::Sft;
use super::peak_memory::peak_bytes;
use super::settings::TrainSettings;
use super::step::{AdapterTrainer, StepReport};
use crate::adapter::host::HostAdapter;
use crate::data::{Augmenter, Encoded};
use crate::error::{Error, Result};
use crate::eval::loss::ExampleLoss;
use crate::model::{Batch, Decoder};
use crate::nn::Adapter;

/// A training run: the base, the adapter to begin with, the examples, and how to train.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// The frozen base.
    pub decoder: &'a Decoder,
    /// The adapter before the first step.
    pub start: &'a HostAdapter,
    /// The training sequences.
    pub train: &'a [Encoded],
    /// The changes of the training sequences in each epoch; none to train on them as they are. Batches are made by the
    /// lengths of the sequences as they are.
    pub augment: Option<&'a Augmenter<'a>>,
    /// The validation sequences; none to keep the last adapter.
    pub valid: &'a [Encoded],
    /// How to train.
    pub settings: &'a TrainSettings,
    /// How sequences become steps.
    pub batching: Batching,
    /// How a step goes through the model.
    pub layout: Layout,
}

/// The events of a run, in order.
pub enum Event<'a> {
    /// Before the first step.
    Begin {
        /// Steps of the run, unless it stops early.
        total_steps: u64,
        /// Trainable values.
        parameters: usize,
    },
    /// After each step.
    Step {
        /// Its number, from 1.
        step: u64,
        /// The epoch, from 0.
        epoch: u64,
        /// The rate of the update.
        learning_rate: f64,
        /// Loss, gradient and tokens.
        report: StepReport,
        /// Tokens through the model, by second.
        tokens_per_second: f64,
        /// The peak of resident memory so far.
        peak_bytes: u64,
    },
    /// During an evaluation.
    Evaluating {
        /// Steps done.
        step: u64,
        /// Sequences done.
        done: usize,
        /// Sequences in all.
        total: usize,
    },
    /// After each evaluation; the first, at step 0, is of the adapter as it started.
    Evaluation {
        /// Steps done.
        step: u64,
        /// Mean over the trained tokens.
        valid_loss: f64,
        /// Those tokens.
        tokens: usize,
        /// Of these, the ones than which the model found no other token likelier.
        correct_tokens: usize,
        /// Whether no earlier loss was as low.
        is_best: bool,
        /// The adapter that was evaluated, on the decoder's device.
        adapter: &'a Adapter,
    },
    /// The adapter is the best so far (without validation data: the last): keep it.
    Best {
        /// Steps done.
        step: u64,
        /// The adapter after them.
        adapter: &'a HostAdapter,
    },
    /// Early stopping ended the run after this step.
    Stopped {
        /// Steps done.
        step: u64,
        /// Evaluations since the last improvement.
        evaluations_without_improvement: u64,
    },
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The best adapter: lowest validation loss, or the last without validation data.
    pub adapter: HostAdapter,
    /// Steps done.
    pub steps: u64,
    /// Steps that the best adapter had.
    pub best_step: u64,
    /// Loss of each validation sequence before the first step; empty without validation data.
    pub valid_before: Vec<ExampleLoss>,
    /// The same with the best adapter.
    pub valid_after: Vec<ExampleLoss>,
    /// Mean validation loss of the last evaluation; `None` without validation data.
    pub valid_last: Option<f64>,
    /// Early stopping ended it.
    pub stopped_early: bool,
    /// The user ended it.
    pub interrupted: bool,
    /// Tokens through the model in training, by second of training.
    pub tokens_per_second: f64,
}

/// Trains `job.start` and returns the best adapter. `watch` sees every [`Event`]; its error ends the run. Once `stop` says so,
/// the run ends after the step, evaluated as after its last.
///
/// Without validation data, the adapter is reported every `eval_steps` steps, and before a loss that is not finite ends
/// the run.
///
/// # Errors
/// No sequence with a trained token; a loss that is not finite; what `watch` returns.
pub fn fit(job: &Job<'_>, stop: impl Fn() -> bool, mut watch: impl FnMut(Event<'_>) -> Result<()>) -> Result<Outcome> {
    let Job { decoder, start, train, augment, valid, settings, batching, layout } = *job;
    let total_steps = batching.total_steps(settings, train)?;
    let schedule = settings.schedule(total_steps);
    let device = decoder.device().clone().autodiff();
    let adapter = start.attach(decoder.config(), &device)?;
    let mut trainer = AdapterTrainer::new(adapter, Box::new(Sft), settings, layout.recompute);
    watch(Event::Begin { total_steps, parameters: trainer.adapter.parameters() })?;
    let mut best = BestSoFar::new(start, settings.early_stopping.clone());
    if !valid.is_empty() {
        best.evaluate(job, 0, &trainer, &mut watch)?;
    }
    let (mut step, mut tokens, mut seconds) = (0, 0usize, 0f64);
    let (mut stopped_early, mut interrupted) = (false, false);
    'epochs: for epoch in 0..settings.epochs {
        for micro_batches in batching.steps(train, epoch) {
            let began = Instant::now();
            let learning_rate = schedule.rate(step);
            let parts = layout.part.split(&micro_batches, train);
            let batches: Vec<Batch> = parts.iter().map(|part| join(part, train, augment, epoch)).collect();
            let report = trainer.step(decoder, &batches, learning_rate, seed_of(settings.seed, step));
            if !report.is_finite() {
                // The adapter is the one of the step before: the last that is good.
                if valid.is_empty() && step > 0 {
                    best.keep(job, step, &trainer, &mut watch)?;
                }
                return Err(diverged(step, &report));
            }
            step += 1;
            let elapsed = began.elapsed().as_secs_f64();
            tokens += report.tokens;
            seconds += elapsed;
            let tokens_per_second = report.tokens as f64 / elapsed;
            watch(Event::Step { step, epoch, learning_rate, report, tokens_per_second, peak_bytes: peak_bytes() })?;
            interrupted = step < total_steps && stop();
            let is_last = step == total_steps || interrupted;
            if is_last || step % settings.eval_steps == 0 {
                stopped_early = best.evaluate(job, step, &trainer, &mut watch)? && !is_last;
            }
            if stopped_early {
                let evaluations_without_improvement = best.evaluations_without_improvement();
                watch(Event::Stopped { step, evaluations_without_improvement })?;
            }
            if is_last || stopped_early {
                break 'epochs;
            }
        }
    }
    Ok(Outcome {
        adapter: best.adapter,
        steps: step,
        best_step: best.step,
        valid_before: best.losses_before,
        valid_after: best.losses,
        valid_last: best.last_loss,
        stopped_early,
        interrupted,
        tokens_per_second: tokens as f64 / seconds,
    })
}

/// The seed of the noise in a step, counted from 0.
fn seed_of(seed: u64, step: u64) -> u64 {
    seed.wrapping_add((step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn join(indices: &[usize], sequences: &[Encoded], augment: Option<&Augmenter<'_>>, epoch: u64) -> Batch {
    let changed = |index: usize| augment.and_then(|augment| augment.sequence(epoch, index));
    let of_epoch = indices.iter().map(|&index| changed(index).map_or(Cow::Borrowed(&sequences[index]), Cow::Owned));
    let of_epoch: Vec<Cow<'_, Encoded>> = of_epoch.collect();
    Batch::join(of_epoch.iter().map(|sequence| sequence.parts()))
}

/// The error of a step whose loss or gradient is not finite, after `steps` good ones.
fn diverged(steps: u64, report: &StepReport) -> Error {
    let message = format!("the loss is {} and the gradient's norm {}", report.loss, report.grad_norm);
    let kept = if steps == 0 { "" } else { "; the best adapter up to here is kept" };
    Error::failed(format!("step {}", steps + 1), message)
        .hint(format!("a lower train.learning_rate or a warm-up may help{kept}"))
}
