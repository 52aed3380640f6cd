//! The decoder: embedding, layers, norm, head. Frozen; what is trainable comes in with the [`Pass`].

use std::sync::Arc;

use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::config::{ModelConfig, RopeScaling};
use crate::data::Batch;
use crate::nn::{Layer, LowRanks, Noise, Pass, Projection};
use crate::ops::attention::{Cache, Geometry, Rope};
use crate::ops::backward_from::backward_from;
use crate::ops::cross_entropy::{cross_entropy, losses};
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::linear;
use crate::ops::norm::rms_norm;
use crate::settings::choice;

/// Projections of a layer, in the order of their sites.
pub const SITES_PER_LAYER: usize = 7;

choice! {
    /// The activations that are computed again in the backward pass.
    Recompute {
        /// Nothing: every activation is kept.
        None = "none",
        /// Each layer again from its input, when its gradient is due.
        Block = "block",
    }
}

/// A LLaMA-family decoder on a device.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) device: Device,
    /// Number format of the activations: f32 or bf16.
    pub(super) compute: DType,
    pub(super) embedding: FrozenWeight,
    pub(super) layers: Vec<Layer>,
    pub(super) norm: Vec<f32>,
    pub(super) head: Projection,
}

/// The past of one sequence, layer by layer.
#[derive(Debug, Clone)]
pub struct Sequence {
    caches: Vec<Cache>,
}

impl Sequence {
    /// Tokens seen so far.
    pub fn length(&self) -> usize {
        self.caches.first().map_or(0, Cache::length)
    }
}

/// Gives the loss of each trained token its weight in the value to minimise.
pub type Weigh<'a> = dyn FnMut(&[f32]) -> Vec<f32> + 'a;

/// The losses of a micro-batch with the gradients of the adapter.
pub struct LossAndGradients {
    /// The loss of each trained token, in order.
    pub losses: Vec<f32>,
    /// The gradients of their weighed sum.
    pub gradients: GradientsParams,
}

impl Decoder {
    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// `[out, in]` of the projection at a site; the last site is the head.
    pub fn site_dims(&self, site: usize) -> [usize; 2] {
        match self.layers.get(site / SITES_PER_LAYER) {
            Some(layer) => {
                let projections = [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down];
                projections[site % SITES_PER_LAYER].weight.dims()
            }
            None => self.head.weight.dims(),
        }
    }

    /// Number of projections that can be adapted.
    pub fn sites(&self) -> usize {
        self.layers.len() * SITES_PER_LAYER + 1
    }

    /// Hidden states before the final norm, `[tokens, hidden]`.
    fn hidden(&self, ids: &[u32], lengths: &[usize], pass: &Pass<'_>) -> Tensor<2> {
        let x = self.embed(ids);
        self.layers.iter().fold(x, |x, layer| layer.forward(x, lengths, pass))
    }

    fn embed(&self, ids: &[u32]) -> Tensor<2> {
        self.embedding.rows(ids, self.compute, &self.device)
    }

    fn normed(&self, x: Tensor<2>) -> Tensor<2> {
        rms_norm(x, &self.norm, self.config.norm_eps)
    }

    /// Loss of each of the batch's trained tokens, `[trained tokens, 1]`.
    fn token_losses(&self, batch: &Batch, pass: &Pass<'_>) -> Tensor<2> {
        let x = self.hidden(&batch.ids, &batch.lengths, pass);
        cross_entropy(self.normed(x), &self.head.in_pass(pass), &batch.targets(), None)
    }

    /// Loss of each trained token of the batch, in order.
    pub fn losses(&self, batch: &Batch, adapter: Option<&LowRanks>) -> Vec<f32> {
        let pass = Pass { adapter, noise: None };
        let x = self.hidden(&batch.ids, &batch.lengths, &pass);
        losses(self.normed(x), &self.head.in_pass(&pass), &batch.targets(), None)
    }

    /// Logits of every position, `[tokens, vocabulary]`: for comparisons, not for training.
    pub fn logits(&self, ids: &[u32], lengths: &[usize], adapter: Option<&LowRanks>) -> Tensor<2> {
        let pass = Pass { adapter, noise: None };
        let x = self.hidden(ids, lengths, &pass);
        linear(self.normed(x), &[self.head.in_pass(&pass)], None)
    }

    /// The past of a sequence that has not begun.
    pub fn begin(&self) -> Sequence {
        Sequence { caches: vec![Cache::default(); self.layers.len()] }
    }

    /// Feeds new tokens of several sequences (at least one each); logits after the last of each, `[vocabulary]`.
    pub fn next_logits(
        &self,
        new: &[&[u32]],
        sequences: &mut [&mut Sequence],
        adapter: Option<&LowRanks>,
    ) -> Vec<Vec<f32>> {
        let pass = Pass { adapter, noise: None };
        let lengths: Vec<usize> = new.iter().map(|ids| ids.len()).collect();
        let x = self.next_hidden(new, sequences, &pass);
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - 1)
        });
        let last = Tensor::cat(ends.map(|row| x.clone().narrow(0, row, 1)).collect(), 0);
        let logits = linear(self.normed(last), &[self.head.in_pass(&pass)], None).cast(DType::F32).into_data();
        let values: Vec<f32> = logits.iter::<f32>().collect();
        values.chunks_exact(self.config.vocab_size).map(<[f32]>::to_vec).collect()
    }

    /// Feeds new tokens of one sequence (at least one); the loss of each `(row of the new tokens, token id that it predicts)`.
    pub fn next_losses(
        &self,
        new: &[u32],
        targets: &[(u32, u32)],
        sequence: &mut Sequence,
        adapter: Option<&LowRanks>,
    ) -> Vec<f32> {
        let pass = Pass { adapter, noise: None };
        let x = self.next_hidden(&[new], &mut [sequence], &pass);
        if targets.is_empty() {
            return Vec::new();
        }
        losses(self.normed(x), &self.head.in_pass(&pass), targets, None)
    }

    /// Hidden states of new tokens before the final norm, `[tokens, hidden]`; their keys and values join the past.
    fn next_hidden(&self, new: &[&[u32]], sequences: &mut [&mut Sequence], pass: &Pass<'_>) -> Tensor<2> {
        let lengths: Vec<usize> = new.iter().map(|ids| ids.len()).collect();
        let mut x = self.embed(&new.concat());
        for (index, layer) in self.layers.iter().enumerate() {
            let mut caches: Vec<&mut Cache> =
                sequences.iter_mut().map(|sequence| &mut sequence.caches[index]).collect();
            x = layer.forward_cached(x, &lengths, &mut caches, pass);
        }
        x
    }

    /// The loss of each of the batch's trained tokens, and the gradients of their sum weighed by `weigh(losses)`.
    /// `adapter` is on an autodiff device.
    pub fn loss_and_gradients(
        &self,
        batch: &Batch,
        adapter: &LowRanks,
        noise: Noise,
        recompute: Recompute,
        weigh: &mut Weigh<'_>,
    ) -> LossAndGradients {
        let pass = Pass { adapter: Some(adapter), noise: Some(noise) };
        match recompute {
            Recompute::None => {
                let (losses, gradients) = weighed(self.token_losses(batch, &pass), weigh);
                LossAndGradients { losses, gradients: GradientsParams::from_grads(gradients, adapter) }
            }
            Recompute::Block => self.by_block(batch, adapter, &pass, weigh),
        }
    }

    /// Runs the layers without a tape, keeping their inputs; then, from the last to the first, each again with one.
    ///
    /// Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    fn by_block(&self, batch: &Batch, adapter: &LowRanks, pass: &Pass<'_>, weigh: &mut Weigh<'_>) -> LossAndGradients {
        let frozen = burn::module::Module::valid(adapter);
        let untracked = Pass { adapter: Some(&frozen), ..*pass };
        let lowest = self.lowest_adapted_layer(adapter);
        let mut x = self.embed(&batch.ids);
        let mut inputs = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            if index >= lowest {
                inputs.push(x.clone());
            }
            x = layer.forward(x, &batch.lengths, &untracked);
        }
        let mut gradients = GradientsParams::new();
        let end = x.autodiff().require_grad();
        let losses = cross_entropy(self.normed(end.clone()), &self.head.in_pass(pass), &batch.targets(), None);
        let (losses, mut tape) = weighed(losses, weigh);
        let mut upstream = end.grad_remove(&mut tape);
        collect(&mut gradients, &mut tape, adapter, self.head.site..self.head.site + 1);
        drop((end, tape));
        for (index, layer) in self.layers.iter().enumerate().skip(lowest).rev() {
            let (Some(input), Some(known)) = (inputs.pop(), upstream.take()) else { break };
            let input = input.autodiff().require_grad();
            let y = layer.forward(input.clone(), &batch.lengths, pass);
            let mut tape = backward_from(y, known);
            upstream = input.grad_remove(&mut tape);
            collect(&mut gradients, &mut tape, adapter, index * SITES_PER_LAYER..(index + 1) * SITES_PER_LAYER);
        }
        LossAndGradients { losses, gradients }
    }

    /// The first layer with a pair; the number of layers if only the head has one.
    fn lowest_adapted_layer(&self, adapter: &LowRanks) -> usize {
        let first = adapter.by_site.iter().position(Option::is_some).unwrap_or(self.head.site);
        first / SITES_PER_LAYER
    }
}

/// Moves the gradients of the pairs at `sites` from a tape.
fn collect(
    gradients: &mut GradientsParams,
    tape: &mut burn::tensor::Gradients,
    adapter: &LowRanks,
    sites: std::ops::Range<usize>,
) {
    for pair in sites.filter_map(|site| adapter.at(site)) {
        for parameter in [&pair.a, &pair.b] {
            if let Some(gradient) = parameter.val().grad_remove(tape) {
                gradients.register(parameter.id, gradient);
            }
        }
    }
}

/// The values of `losses`, and the gradients of their sum weighed by `weigh(values)`.
///
/// # Shapes
/// - `losses`: `[trained tokens, 1]`, on an autodiff device
fn weighed(losses: Tensor<2>, weigh: &mut Weigh<'_>) -> (Vec<f32>, burn::tensor::Gradients) {
    let values: Vec<f32> = losses.clone().inner().into_data().iter::<f32>().collect();
    let weights = TensorData::new(weigh(&values), losses.dims());
    let weights = Tensor::from_data(weights, &losses.device().inner());
    (values, backward_from(losses, weights))
}

/// Frequencies of the rotary embedding, as transformers computes them (f32, `modeling_rope_utils.py`).
pub(super) fn rope(config: &ModelConfig) -> Rope {
    let half = config.head_dim / 2;
    let plain = (0..half).map(|i| {
        let exponent = (2 * i) as f32 / config.head_dim as f32;
        1.0 / (config.rope_theta as f32).powf(exponent)
    });
    let frequencies: Vec<f32> = match &config.rope_scaling {
        RopeScaling::None => plain.collect(),
        RopeScaling::Linear { factor } => plain.map(|frequency| frequency / *factor as f32).collect(),
        RopeScaling::Factors(factors) => plain.zip(factors).map(|(frequency, factor)| frequency / factor).collect(),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let context = *original_max_positions as f32;
            let (factor, low, high) = (*factor as f32, *low_freq_factor as f32, *high_freq_factor as f32);
            let scale = |frequency: f32| {
                let wavelength = 2.0 * std::f32::consts::PI / frequency;
                if wavelength < context / high {
                    frequency
                } else if wavelength > context / low {
                    frequency / factor
                } else {
                    let smooth = (context / wavelength - low) / (high - low);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            };
            plain.map(scale).collect()
        }
    };
    Rope::new(frequencies)
}

/// Attention's shape in a layer.
pub(super) fn geometry(config: &ModelConfig, rope: &Arc<Rope>, layer: usize) -> Geometry {
    Geometry {
        window: config.window_of(layer),
        rope: Some(rope.clone()),
        ..Geometry::new(config.heads, config.kv_heads, config.head_dim)
    }
}

impl FrozenWeight {
    /// Rows `ids` as a tensor of `dtype` (the embedding).
    fn rows(&self, ids: &[u32], dtype: DType, device: &Device) -> Tensor<2> {
        let width = self.dims()[1];
        let values = self.select(ids);
        Tensor::<2>::from_data(TensorData::new(values, [ids.len(), width]), device).cast(dtype)
    }
}
