//! One update of the adapter: micro-batches, one division by the trained tokens, clipping, the optimiser.

use burn::optim::GradientsParams;

use super::batching::Layout;
use super::clip::scaled_down;
use super::objective::{Facts, Objective, Rewards, StepSize, by_sequence, weigh};
use super::optimiser::Optimiser;
use super::parallel::fixed::{PartFigures, Scale, StepSum, Verdict};
use super::parallel::{Alone, Ranks};
use super::privacy::Mechanism;
use super::settings::TrainSettings;
use crate::interrupt;
use crate::model::gradients::{Receiver, RecomputedLayers};
use crate::model::{Batch, Decoder};
use crate::nn::{Adapter, Noise, token_numbers};

/// An adapter and its optimiser.
pub struct AdapterTrainer {
    /// The adapter, on an autodiff device.
    pub adapter: Adapter,
    /// Its optimiser.
    pub optimiser: Optimiser,
    /// Global norm that gradients are scaled down to; 0 for none.
    max_grad_norm: f64,
    /// The noise of every step, but for its seed and the numbers of its tokens.
    noise: Noise,
    objective: Box<dyn Objective>,
    recomputed: RecomputedLayers,
    /// Micro-batches that go through each layer together.
    parts_a_pass: usize,
    /// Clips by example and adds noise, where the training is private.
    pub privacy: Option<Mechanism>,
}

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The value of the objective before the update; for supervised fine-tuning, the mean over the trained tokens; of a private step, the mean
    /// over its examples, 0 without any.
    pub loss: f64,
    /// Global norm before clipping; of a private step, that of the mean with its noise.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Tokens that loss was taken on.
    pub trained_tokens: usize,
    /// The rewards of its examples, before the update; none under supervised fine-tuning.
    pub rewards: Rewards,
    /// The sequences whose own loss is not finite, by their place in the step.
    pub not_finite: Vec<usize>,
    /// Whether the user asked to stop before it was computed: then it has changed nothing.
    pub is_cancelled: bool,
}

/// All that a step is computed from, beside the adapter.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// The frozen base.
    pub decoder: &'a Decoder,
    /// The parts of the step, those of other ranks included.
    pub micro_batches: &'a [Batch],
    /// The part that its objective knows beside the losses.
    pub known: &'a Known,
    /// The rate of the update.
    pub rate: f64,
    /// Decides the noise.
    pub seed: u64,
}

/// The part of a step that its objective knows beside the losses.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The facts of each sequence, by micro-batch; empty where the objective needs none.
    pub facts: Vec<Vec<Facts>>,
    /// [`StepSize::divergence`].
    pub divergence: f64,
    /// The number of each sequence of the step, which decides its noise; empty for their places in the step.
    pub sequences: Vec<u64>,
}

impl StepReport {
    /// Whether the update was made: a loss or gradient that is not finite changes nothing.
    pub fn is_finite(&self) -> bool {
        self.loss.is_finite() && self.grad_norm.is_finite()
    }
}

impl AdapterTrainer {
    /// An adapter with a fresh optimiser, to minimise `objective`. Of `settings`, those of the optimiser and of a step are read; `recompute`
    /// decides what the backward pass computes again.
    pub fn new(
        adapter: Adapter,
        objective: Box<dyn Objective>,
        settings: &TrainSettings,
        recompute: impl Into<RecomputedLayers>,
    ) -> Self {
        let optimiser = Optimiser::new(settings);
        Self {
            adapter,
            optimiser,
            max_grad_norm: settings.max_grad_norm,
            noise: Noise {
                embedding_alpha: settings.neftune_alpha as f32,
                label_smoothing: settings.label_smoothing as f32,
                ..Noise::default()
            },
            objective,
            recomputed: recompute.into(),
            parts_a_pass: 1,
            privacy: None,
        }
    }

    /// The same, with up to so many micro-batches going through each layer one after another before the next layer: a streamed decoder
    /// reads its layers once for all of them.
    pub fn with_parts_a_pass(self, parts_a_pass: usize) -> Self {
        Self { parts_a_pass, ..self }
    }

    /// One update from the objective over all `micro_batches`. `seed` decides the noise, which belongs to the tokens of a sequence: it
    /// is the same however sequences are cut into micro-batches.
    ///
    /// A loss or a gradient that is not finite is reported and changes nothing. In a private step ([`Self::privacy`]) every micro-batch is one
    /// example, and one whose gradient is not finite counts for nothing.
    pub fn step(&mut self, decoder: &Decoder, micro_batches: &[Batch], rate: f64, seed: u64) -> StepReport {
        self.step_knowing(decoder, micro_batches, &Known::default(), rate, seed)
    }

    /// [`Self::step`] for an objective that needs to know more than losses.
    pub fn step_knowing(
        &mut self,
        decoder: &Decoder,
        micro_batches: &[Batch],
        known: &Known,
        rate: f64,
        seed: u64,
    ) -> StepReport {
        self.step_among(&Alone, &Step { decoder, micro_batches, known, rate, seed }, false)
    }

    /// [`Self::step_knowing`] by several ranks, each of which computes its share of the micro-batches. A rank that was asked to stop,
    /// before (`is_stopped`) or meanwhile, cancels the step on all of them.
    pub fn step_among(&mut self, ranks: &dyn Ranks, step: &Step<'_>, is_stopped: bool) -> StepReport {
        let size = StepSize { divergence: step.known.divergence, ..StepSize::of(step.micro_batches) };
        let StepSize { tokens, trained_tokens, .. } = size;
        let mut report = StepReport {
            loss: 0.0,
            grad_norm: 0.0,
            tokens,
            trained_tokens,
            rewards: Rewards::default(),
            not_finite: Vec::new(),
            is_cancelled: false,
        };
        let mut scale = Scale::default();
        let sum = loop {
            let empty = || StepSum::new(&self.adapter, step.micro_batches.len(), size.sequences, scale, ranks);
            let computed = match is_stopped {
                true => None,
                false => interrupt::cancellable(|| self.compute(ranks, step, &size, empty())),
            };
            let mut sum = computed.unwrap_or_else(|| {
                let mut sum = empty();
                sum.cancel();
                sum
            });
            match sum.over(ranks) {
                Verdict::Good => break sum,
                Verdict::Cancelled => return StepReport { is_cancelled: true, ..report },
                Verdict::Again(larger) => scale = larger,
            }
        };
        if trained_tokens == 0 && self.privacy.is_none() {
            return report;
        }
        for PartFigures { value, rewards } in sum.figures() {
            report.loss += value;
            report.rewards.add(&rewards);
        }
        report.not_finite = sum.not_finite();
        let (gradients, norm) = sum.gradients(&self.adapter, step.decoder.device());
        let (gradients, norm) = match &self.privacy {
            Some(privacy) => {
                report.loss /= step.micro_batches.len().max(1) as f64;
                privacy.noisy(&self.adapter, gradients, step.seed, step.decoder.device())
            }
            None => (self.clipped(gradients, norm), norm),
        };
        report.grad_norm = norm;
        if report.is_finite() {
            self.adapter = self.optimiser.step(step.rate, self.adapter.clone(), gradients);
        }
        report
    }

    /// The sum over the micro-batches of this rank, added to the empty `sum`.
    fn compute(&self, ranks: &dyn Ranks, step: &Step<'_>, size: &StepSize, mut sum: StepSum) -> StepSum {
        let Step { decoder, micro_batches, known, seed, .. } = *step;
        let by_place: Vec<u64> = (0..size.sequences as u64).collect();
        let numbers = if known.sequences.is_empty() { &by_place } else { &known.sequences };
        let mut first_sequence = 0;
        let mut mine = Vec::new();
        for (index, batch) in micro_batches.iter().enumerate() {
            if batch.trained_tokens() > 0 && ranks.is_mine(index) {
                let facts = known.facts.get(index).map_or(&[][..], Vec::as_slice);
                mine.push(OwnPart { index, first_sequence, batch, facts });
            }
            first_sequence += batch.lengths.len();
        }
        // A private step clips the gradient of each part as a whole.
        let together = if self.privacy.is_some() { 1 } else { self.parts_a_pass.max(1) };
        for parts in mine.chunks(together) {
            let inputs = parts.iter().map(|part| {
                let tokens = token_numbers(&numbers[part.first_sequence..], &part.batch.lengths);
                (part.batch, Noise { seed, tokens, ..self.noise.clone() })
            });
            let mut receiver = StepReceiver { trainer: self, size, parts, sum: &mut sum };
            decoder.accumulate(inputs.collect(), &self.adapter, self.recomputed, &mut receiver);
        }
        sum
    }

    /// The gradients of this norm, scaled down to `max_grad_norm` where there is one.
    fn clipped(&self, gradients: GradientsParams, norm: f64) -> GradientsParams {
        match self.max_grad_norm {
            0.0 => gradients,
            largest => scaled_down(&self.adapter, gradients, norm, largest),
        }
    }
}

impl Layout {
    /// A trainer of `adapter` that goes through the model so.
    pub fn trainer(&self, adapter: Adapter, settings: &TrainSettings) -> AdapterTrainer {
        AdapterTrainer::new(adapter, settings.objective(), settings, RecomputedLayers(self.recomputed_layers))
            .with_parts_a_pass(self.parts_a_pass.unwrap_or(1))
    }
}

/// A part of a step that this rank computes.
struct OwnPart<'a> {
    /// Its number among the micro-batches of the step.
    index: usize,
    /// The number of its first sequence in the step.
    first_sequence: usize,
    batch: &'a Batch,
    facts: &'a [Facts],
}

/// Adds what the decoder gives of some parts to the sum of the step.
struct StepReceiver<'a> {
    trainer: &'a AdapterTrainer,
    size: &'a StepSize,
    parts: &'a [OwnPart<'a>],
    sum: &'a mut StepSum,
}

impl Receiver for StepReceiver<'_> {
    fn weigh(&mut self, part: usize, losses: &[f32]) -> Vec<f32> {
        let OwnPart { index, first_sequence, batch, facts } = self.parts[part];
        let sums = by_sequence(batch, losses, facts);
        let bad = (0..sums.len()).filter(|index| !sums[*index].sum.is_finite());
        bad.for_each(|index| self.sum.set_not_finite(first_sequence + index));
        let is_private = self.trainer.privacy.is_some();
        // A private step has the mean loss of each example.
        let size = if is_private { StepSize::of(std::slice::from_ref(batch)) } else { *self.size };
        let (share, weights) = weigh(&*self.trainer.objective, &sums, &size);
        let value = if is_private && !share.value.is_finite() { 0.0 } else { share.value };
        self.sum.set_figures(index, &PartFigures { value, rewards: share.rewards });
        weights
    }

    fn take(&mut self, _: usize, gradients: GradientsParams) {
        let gradients = match &self.trainer.privacy {
            Some(privacy) => privacy.clipped(&self.trainer.adapter, gradients),
            None => Some(gradients),
        };
        if let Some(gradients) = gradients {
            self.sum.add(&self.trainer.adapter, gradients);
        }
    }
}
