//! The loop: epochs of shuffled sequences, evaluation, early stopping, the best adapter kept, the state saved.

use std::borrow::Cow;
use std::time::Instant;

use super::batching::{Batching, Layout};
use super::best::BestSoFar;
use super::checkpoint::{Progress, State};
use super::event::Event;
use super::parallel::Ranks;
use super::peak_memory::peak_bytes;
use super::privacy::Mechanism;
use super::reference::References;
use super::score::ExactMatch;
use super::settings::TrainSettings;
use super::step::{AdapterTrainer, Known, Step, StepReport};
use crate::adapter::host::HostAdapter;
use crate::data::{Augmenter, Encoded};
use crate::error::{Error, Result};
use crate::eval::loss::ExampleLoss;
use crate::model::{Batch, Decoder};

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
    /// Answers validation prompts at each evaluation, where exact answers choose the best adapter.
    pub exact_match: Option<&'a dyn ExactMatch>,
    /// How to train.
    pub settings: &'a TrainSettings,
    /// How sequences become steps.
    pub batching: Batching,
    /// How a step goes through the model.
    pub layout: Layout,
    /// The private part of the steps; `None` to train without. It draws the examples of a step in the place of `batching`.
    pub privacy: Option<&'a Mechanism>,
    /// The state to go on from; `None` to begin.
    pub state: Option<&'a State>,
    /// The processes that share the work; each of them calls [`fit`] with the same job.
    pub ranks: &'a dyn Ranks,
}

impl Job<'_> {
    /// Indices of the training sequences of an epoch: by step, by micro-batch.
    fn steps(&self, epoch: u64) -> Vec<Vec<Vec<usize>>> {
        match self.privacy {
            Some(privacy) => privacy.steps(self.train.len(), epoch),
            None => self.batching.steps(self.train, epoch),
        }
    }
}

/// The outcome of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The best adapter: lowest validation loss, or the last without validation data.
    pub adapter: HostAdapter,
    /// Steps done.
    pub steps: u64,
    /// Of these, the ones whose loss or gradient was not finite: they changed nothing.
    pub bad_steps: u64,
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

/// Trains `job.start`, or goes on from `job.state`, and returns the best adapter. `watch` sees every [`Event`]; its error ends the
/// run. Once `stop` says so on one of the ranks, the run ends after the step, or within it if the process was interrupted; its state is reported
/// first. A run that goes on from that state ends as if it had not been stopped.
///
/// Without validation data, the adapter is reported every `eval_steps` steps, and before too many bad steps end the run.
///
/// # Errors
/// No sequence with a trained token; a state that does not fit; too many bad steps in a row; what `watch` returns.
pub fn fit(job: &Job<'_>, stop: impl Fn() -> bool, mut watch: impl FnMut(Event<'_>) -> Result<()>) -> Result<Outcome> {
    let mut run = Run::begin(job)?;
    let (total_steps, steps_done) = (run.total_steps, run.progress.step);
    watch(Event::Begin { total_steps, steps_done, parameters: run.trainer.adapter.parameters() })?;
    if run.best.evaluations.last_step.is_some() {
        watch(Event::Best { step: run.best.evaluations.best_step, adapter: &run.best.adapter })?;
    }
    let interrupted = run.go_on(&stop, &mut watch)?;
    let Run { best: BestSoFar { adapter, evaluations }, progress, .. } = run;
    Ok(Outcome {
        adapter,
        steps: progress.step,
        bad_steps: progress.bad_steps,
        best_step: evaluations.best_step,
        valid_before: evaluations.losses_before,
        valid_after: evaluations.losses,
        valid_last: evaluations.last_loss,
        stopped_early: !interrupted && progress.step < total_steps,
        interrupted,
        tokens_per_second: if progress.seconds > 0.0 { progress.tokens as f64 / progress.seconds } else { 0.0 },
    })
}

/// A run that is under way.
struct Run<'a> {
    job: &'a Job<'a>,
    total_steps: u64,
    trainer: AdapterTrainer,
    best: BestSoFar,
    progress: Progress,
    references: References<'a>,
    /// The steps of the epoch: their micro-batches.
    steps_of_epoch: Vec<Vec<Vec<usize>>>,
    /// The last state that was reported.
    saved: Reported,
}

/// A state that was reported: when, and how far it was.
struct Reported {
    at: Instant,
    step: u64,
    evaluated: Option<u64>,
}

impl<'a> Run<'a> {
    fn begin(job: &'a Job<'a>) -> Result<Self> {
        let total_steps = job.batching.total_steps(job.settings, job.train)?;
        let device = job.decoder.device().clone().autodiff();
        let start = job.state.map_or(job.start, |state| &state.adapter);
        let adapter = start.attach(job.decoder.config(), &device)?;
        let mut trainer = job.layout.trainer(adapter, job.settings);
        trainer.privacy = job.privacy.cloned();
        let (mut best, mut progress) = (BestSoFar::new(job.start), Progress::default());
        if let Some(state) = job.state {
            trainer.optimiser.restore(&trainer.adapter, &state.optimiser)?;
            (best, progress) = (state.best.clone(), state.progress.clone());
        }
        let references = References::of(job.decoder, job.start, job.train, job.settings)?;
        let steps_of_epoch = job.steps(progress.epoch);
        let saved = Reported { at: Instant::now(), step: progress.step, evaluated: best.evaluations.last_step };
        Ok(Self { job, total_steps, trainer, best, progress, references, steps_of_epoch, saved })
    }

    /// Trains to the end of the run. Says whether the user ended it.
    fn go_on(&mut self, stop: &impl Fn() -> bool, watch: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<bool> {
        let settings = self.job.settings;
        loop {
            let step = self.progress.step;
            let was_evaluated = self.best.evaluations.last_step == Some(step);
            if self.is_evaluated_here()
                && !was_evaluated
                && !self.best.evaluate(self.job, step, &self.trainer, watch)?
            {
                break;
            }
            let has_stopped = self.best.has_stopped(settings.early_stopping.as_ref());
            if has_stopped && step < self.total_steps {
                let evaluations_without_improvement = self.best.evaluations.without_improvement;
                watch(Event::Stopped { step, evaluations_without_improvement })?;
            }
            if has_stopped || step >= self.total_steps {
                self.report_state(watch)?;
                return Ok(false);
            }
            if self.is_due() {
                self.report_state(watch)?;
            }
            if !self.step(stop, watch)? {
                break;
            }
        }
        self.report_state(watch)?;
        if self.job.valid.is_empty() && self.progress.step > self.best.evaluations.best_step {
            self.best.keep(self.job, self.progress.step, &self.trainer, watch)?;
        }
        Ok(true)
    }

    /// Whether the adapter of this step is evaluated, or without validation data kept.
    fn is_evaluated_here(&self) -> bool {
        match self.progress.step {
            0 => !self.job.valid.is_empty(),
            step => step % self.job.settings.eval_steps == 0 || step >= self.total_steps,
        }
    }

    /// Makes the next step. `false` if the user asked to stop first: then nothing has changed.
    fn step(&mut self, stop: &impl Fn() -> bool, watch: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<bool> {
        let Job { decoder, train, augment, settings, layout, ranks, .. } = *self.job;
        while self.progress.steps_of_epoch >= self.steps_of_epoch.len() {
            self.progress.epoch += 1;
            self.progress.steps_of_epoch = 0;
            self.steps_of_epoch = self.job.steps(self.progress.epoch);
        }
        let began = Instant::now();
        let step = self.progress.step;
        let learning_rate = settings.schedule(self.total_steps).rate(step);
        let parts = layout.part.split(&self.steps_of_epoch[self.progress.steps_of_epoch], train);
        let of_epoch = |part: &Vec<usize>| of_epoch(part, train, augment, self.progress.epoch);
        let examples: Vec<Vec<Cow<'_, Encoded>>> = parts.iter().map(of_epoch).collect();
        let join = |examples: &Vec<Cow<'_, Encoded>>| Batch::join(examples.iter().flat_map(|one| one.sequences()));
        let batches: Vec<Batch> = examples.iter().map(join).collect();
        let Self { trainer, references, .. } = self;
        ranks.begin_step(step + 1);
        let known = references.known(ranks, &trainer.adapter, &parts, &examples, stop())?;
        // Every rank comes to the sum of the step, be it to say that it stops.
        let is_stopped = known.is_none();
        let known = Known { sequences: numbers(&parts, &examples), ..known.unwrap_or_default() };
        let seed = seed_of(settings.seed, step);
        let step_of_ranks = Step { decoder, micro_batches: &batches, known: &known, rate: learning_rate, seed };
        let report = trainer.step_among(ranks, &step_of_ranks, is_stopped);
        if report.is_cancelled {
            return Ok(false);
        }
        let is_bad = !report.is_finite();
        let mut bad_sequences = Vec::new();
        if is_bad {
            let sequences = parts.concat();
            // Of a pair, either sequence may be the bad one.
            let of_each = batches.iter().map(|batch| batch.lengths.len()).sum::<usize>() / sequences.len().max(1);
            let places = report.not_finite.iter().filter_map(|&place| sequences.get(place / of_each));
            bad_sequences = places.copied().collect();
            bad_sequences.dedup();
            if bad_sequences.is_empty() {
                bad_sequences = sequences;
            }
        }
        let seconds = began.elapsed().as_secs_f64();
        let progress = &mut self.progress;
        let epoch = progress.epoch;
        progress.step += 1;
        progress.steps_of_epoch += 1;
        progress.bad_steps += u64::from(is_bad);
        progress.bad_steps_in_a_row = if is_bad { progress.bad_steps_in_a_row + 1 } else { 0 };
        progress.tokens += report.tokens;
        progress.seconds += seconds;
        watch(Event::Step {
            step: step + 1,
            epoch,
            learning_rate,
            report: &report,
            bad_sequences: &bad_sequences,
            seconds,
            peak_bytes: peak_bytes(),
        })?;
        if self.progress.bad_steps_in_a_row >= settings.max_bad_steps {
            // The adapter is the one of the last good step.
            self.report_state(watch)?;
            let good_steps = self.progress.step - self.progress.bad_steps;
            if self.job.valid.is_empty() && good_steps > 0 {
                self.best.keep(self.job, self.progress.step, &self.trainer, watch)?;
            }
            return Err(diverged(&self.progress, &report));
        }
        Ok(true)
    }

    /// Whether the state is to be saved before the next step.
    fn is_due(&self) -> bool {
        let settings = self.job.settings;
        let step = self.progress.step;
        let by_steps =
            settings.checkpoint_steps.is_some_and(|steps| step.is_multiple_of(steps)) && step != self.saved.step;
        let minutes = self.saved.at.elapsed().as_secs_f64() / 60.0;
        by_steps || (settings.checkpoint_minutes > 0.0 && minutes >= settings.checkpoint_minutes)
    }

    /// Reports the state, unless the last one was the same. Every rank has the same state: the first saves it.
    fn report_state(&mut self, watch: &mut dyn FnMut(Event<'_>) -> Result<()>) -> Result<()> {
        if !self.job.ranks.is_first() {
            return Ok(());
        }
        let (step, evaluated) = (self.progress.step, self.best.evaluations.last_step);
        let is_first = self.job.state.is_none() && step == 0;
        if !is_first && (self.saved.step, self.saved.evaluated) == (step, evaluated) {
            return Ok(());
        }
        let state = State {
            progress: self.progress.clone(),
            adapter: self.job.start.with_values(self.job.decoder.config(), &self.trainer.adapter),
            optimiser: self.trainer.optimiser.state(),
            best: self.best.clone(),
        };
        watch(Event::Checkpoint { state: &state })?;
        self.saved = Reported { at: Instant::now(), step, evaluated };
        Ok(())
    }
}

/// The seed of the noise in a step, counted from 0.
fn seed_of(seed: u64, step: u64) -> u64 {
    seed.wrapping_add((step + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The numbers of the sequences of a step: those of an example are the same wherever it lies.
fn numbers(parts: &[Vec<usize>], examples: &[Vec<Cow<'_, Encoded>>]) -> Vec<u64> {
    let pairs = parts.iter().flatten().zip(examples.iter().flatten());
    // An example has one sequence or two.
    pairs.flat_map(|(index, example)| (2 * *index as u64..).take(example.sequences().count())).collect()
}

/// The sequences of an epoch at these indices.
fn of_epoch<'a>(
    indices: &[usize],
    sequences: &'a [Encoded],
    augment: Option<&Augmenter<'_>>,
    epoch: u64,
) -> Vec<Cow<'a, Encoded>> {
    let changed = |index: usize| augment.and_then(|augment| augment.sequence(epoch, index));
    indices.iter().map(|&index| changed(index).map_or(Cow::Borrowed(&sequences[index]), Cow::Owned)).collect()
}

/// The error of a run whose last steps were bad.
fn diverged(progress: &Progress, report: &StepReport) -> Error {
    let message = format!("the loss is {} and the gradient's norm {}", report.loss, report.grad_norm);
    let message = match progress.bad_steps_in_a_row {
        1 => message,
        steps => format!("{message}; the last {steps} steps, which changed nothing, were like this"),
    };
    let kept = if progress.step == progress.bad_steps { "" } else { "; the best adapter up to here is kept" };
    Error::failed(format!("step {}", progress.step), message)
        .hint(format!("a lower train.learning_rate or a warm-up may help{kept}"))
}
