//! One update of the adapter: micro-batches, one division by the trained tokens, clipping, the optimiser.

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::Tensor;

use super::objective::{Objective, StepSize, by_sequence, weigh};
use super::optimiser::Optimiser;
use super::settings::TrainSettings;
use crate::model::decoder::Recompute;
use crate::model::{Batch, Decoder};
use crate::nn::{Adapter, Delta, Noise};
use crate::ops::squares::sum_of_squares;

/// An adapter and its optimiser.
pub struct AdapterTrainer {
    /// The adapter, on an autodiff device.
    pub adapter: Adapter,
    /// Its optimiser.
    pub optimiser: Optimiser,
    /// Global norm that gradients are scaled down to; 0 for none.
    max_grad_norm: f64,
    /// The noise of every step, but for its seed and place.
    noise: Noise,
    objective: Box<dyn Objective>,
    recompute: Recompute,
}

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The value of the objective before the update; for supervised fine-tuning, the mean over the trained tokens.
    pub loss: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Tokens that loss was taken on.
    pub trained_tokens: usize,
    /// The sequences whose own loss is not finite, by their place in the step.
    pub not_finite: Vec<usize>,
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
        recompute: Recompute,
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
            recompute,
        }
    }

    /// One update from the objective over all `micro_batches`. `seed` decides the noise, which
    /// belongs to the tokens of the step: it is the same however they are cut into micro-batches.
    ///
    /// A loss or a gradient that is not finite is reported and changes nothing.
    pub fn step(&mut self, decoder: &Decoder, micro_batches: &[Batch], rate: f64, seed: u64) -> StepReport {
        let size = StepSize::of(micro_batches);
        let StepSize { tokens, trained_tokens, .. } = size;
        let mut report = StepReport { loss: 0.0, grad_norm: 0.0, tokens, trained_tokens, not_finite: Vec::new() };
        if trained_tokens == 0 {
            return report;
        }
        let mut sum = GradientsAccumulator::new();
        let (mut first_token, mut first_sequence) = (0, 0);
        for batch in micro_batches {
            let noise = Noise { seed, first_token, ..self.noise };
            first_token += batch.ids.len();
            if batch.trained_tokens() > 0 {
                let result = decoder.loss_and_gradients(batch, &self.adapter, noise, self.recompute, &mut |losses| {
                    let sums = by_sequence(batch, losses);
                    let is_bad = |index: &usize| !sums[*index].sum.is_finite();
                    report.not_finite.extend((0..sums.len()).filter(is_bad).map(|index| first_sequence + index));
                    let (value, weights) = weigh(&*self.objective, &sums, &size);
                    report.loss += value;
                    weights
                });
                sum.accumulate(&self.adapter, result.gradients);
            }
            first_sequence += batch.lengths.len();
        }
        let gradients = sum.grads();
        report.grad_norm = global_norm(&self.adapter, &gradients);
        if report.is_finite() {
            let gradients = self.clipped(gradients, report.grad_norm);
            self.adapter = self.optimiser.step(rate, self.adapter.clone(), gradients);
        }
        report
    }

    /// `torch.nn.utils.clip_grad_norm_`: scaled by `max / (norm + 1e-6)` where that is below 1.
    fn clipped(&self, mut gradients: GradientsParams, norm: f64) -> GradientsParams {
        let factor = self.max_grad_norm / (norm + 1e-6);
        if self.max_grad_norm == 0.0 || factor >= 1.0 {
            return gradients;
        }
        for parameter in self.adapter.deltas.iter().flat_map(Delta::parameters) {
            if let Some(gradient) = gradients.remove::<2>(parameter.id) {
                gradients.register(parameter.id, gradient.mul_scalar(factor));
            }
        }
        gradients
    }
}

/// `sqrt(Σ g²)` over every parameter.
fn global_norm(adapter: &Adapter, gradients: &GradientsParams) -> f64 {
    struct Vectors<'a> {
        gradients: &'a GradientsParams,
        found: Vec<Tensor<1>>,
    }
    impl ModuleVisitor for Vectors<'_> {
        fn visit_float<const D: usize>(&mut self, parameter: &Param<Tensor<D>>) {
            if let Some(gradient) = self.gradients.get::<D>(parameter.id) {
                let values = gradient.shape().num_elements();
                self.found.push(gradient.reshape([values]));
            }
        }
    }
    let mut visitor = Vectors { gradients, found: Vec::new() };
    adapter.visit(&mut visitor);
    sum_of_squares(visitor.found).sqrt()
}
