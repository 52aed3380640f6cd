//! The decoder: embedding, layers, norm, head. Frozen; what is trainable comes in with the [`Pass`].

use burn::optim::GradientsParams;
use burn::tensor::{DType, Device, Tensor, TensorData};

use super::batch::Batch;
use super::config::{EmbeddingMultiplier, ModelConfig};
use crate::nn::{Adapter, Layer, Noise, Norm, Pass, Projection};
use crate::ops::attention::Cache;
use crate::ops::backward_from::backward_from;
use crate::ops::cross_entropy::{Prediction, capped, cross_entropy, predictions};
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::linear;
use crate::settings::choice;

choice! {
    /// The activations that are computed again in the backward pass.
    Recompute {
        /// Nothing: every activation is kept.
        None = "none",
        /// Each layer again from its input, when its gradient is due.
        Block = "block",
    }
}

/// A decoder on a device.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(super) config: ModelConfig,
    pub(super) device: Device,
    /// Number format of the activations: f32 or bf16.
    pub(super) compute: DType,
    pub(crate) embedding: FrozenWeight,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    pub(crate) head: Projection,
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

    /// The device of its weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of sites: projections that can be adapted, the head last.
    pub fn sites(&self) -> usize {
        self.head.site + 1
    }

    /// The sites of a layer.
    fn sites_of(&self, layer: usize) -> std::ops::Range<usize> {
        let start = |layer: usize| self.layers.get(layer).map_or(self.head.site, Layer::first_site);
        start(layer)..start(layer + 1)
    }

    /// Hidden states before the final norm, `[tokens, hidden]`.
    fn hidden(&self, ids: &[u32], lengths: &[usize], pass: &Pass<'_>) -> Tensor<2> {
        let x = self.embed(ids, lengths, pass);
        self.layers.iter().fold(x, |x, layer| layer.forward(x, lengths, pass))
    }

    /// `[tokens, hidden]`. The noise of training is added to the rows themselves, before a family's multiplier.
    pub(super) fn embed(&self, ids: &[u32], lengths: &[usize], pass: &Pass<'_>) -> Tensor<2> {
        let mut rows = self.embedding.rows(ids, &self.device);
        let shape = rows.dims();
        if let Some(noise) = pass.noise.and_then(|noise| noise.of_embeddings(lengths, shape[1])) {
            let device = rows.device();
            rows = rows + Tensor::from_data(TensorData::new(noise, shape), &device);
        }
        match self.embedding_multiplier() {
            Some(multiplier) => rows.mul_scalar(multiplier),
            None => rows,
        }
        .cast(self.compute)
    }

    /// The factor on the rows of the embedding.
    pub(crate) fn embedding_multiplier(&self) -> Option<f32> {
        match self.config.embedding_multiplier {
            EmbeddingMultiplier::One => None,
            EmbeddingMultiplier::Exact(multiplier) => Some(multiplier as f32),
            EmbeddingMultiplier::Rounded(multiplier) if self.compute == DType::BF16 => {
                Some(half::bf16::from_f64(multiplier).to_f32())
            }
            EmbeddingMultiplier::Rounded(multiplier) => Some(multiplier as f32),
        }
    }

    /// The input of the head: the last hidden states, normalised. A factor on the logits is taken here, since the head
    /// is linear.
    fn normed(&self, x: Tensor<2>) -> Tensor<2> {
        let x = self.norm.forward(x);
        match self.config.logit_multiplier {
            Some(multiplier) => x.mul_scalar(multiplier),
            None => x,
        }
    }

    /// Loss of each of the batch's trained tokens, `[trained tokens, 1]`, from the hidden states before the final norm, with
    /// the label smoothing of training.
    fn token_losses(&self, x: Tensor<2>, batch: &Batch, pass: &Pass<'_>) -> Tensor<2> {
        let smoothing = pass.noise.map_or(0.0, |noise| noise.label_smoothing);
        cross_entropy(self.normed(x), &self.head.in_pass(pass), &batch.targets(), self.logit_softcap(), smoothing)
    }

    fn logit_softcap(&self) -> Option<f32> {
        self.config.logit_softcap.map(|cap| cap as f32)
    }

    /// Logits of hidden states before the final norm, `[tokens, vocabulary]`.
    pub(super) fn head_logits(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        capped(linear(self.normed(x), &[self.head.in_pass(pass)], None), self.logit_softcap())
    }

    /// The prediction of each trained token of the batch, in order.
    pub fn predictions(&self, batch: &Batch, adapter: Option<&Adapter>) -> Vec<Prediction> {
        let pass = Pass { adapter, ..Pass::default() };
        let x = self.hidden(&batch.ids, &batch.lengths, &pass);
        predictions(self.normed(x), &self.head.in_pass(&pass), &batch.targets(), self.logit_softcap())
    }

    /// Logits of every position, `[tokens, vocabulary]`: for comparisons, not for training.
    pub fn logits(&self, ids: &[u32], lengths: &[usize], adapter: Option<&Adapter>) -> Tensor<2> {
        let pass = Pass { adapter, ..Pass::default() };
        let x = self.hidden(ids, lengths, &pass);
        self.head_logits(x, &pass)
    }

    /// The mean over a sequence of the hidden states after the final norm, `[hidden]`.
    pub fn mean_hidden(&self, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
        let x = self.hidden(ids, &[ids.len()], &Pass { adapter, ..Pass::default() });
        self.norm.forward(x).cast(DType::F32).mean_dim(0).into_data().iter::<f32>().collect()
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
        adapter: Option<&Adapter>,
    ) -> Vec<Vec<f32>> {
        let pass = Pass { adapter, ..Pass::default() };
        let lengths: Vec<usize> = new.iter().map(|ids| ids.len()).collect();
        let x = self.next_hidden(new, sequences, &pass);
        let ends = lengths.iter().scan(0, |end, length| {
            *end += length;
            Some(*end - 1)
        });
        let last = Tensor::cat(ends.map(|row| x.clone().narrow(0, row, 1)).collect(), 0);
        let logits = self.head_logits(last, &pass).cast(DType::F32).into_data();
        let values: Vec<f32> = logits.iter::<f32>().collect();
        values.chunks_exact(self.config.vocab_size).map(<[f32]>::to_vec).collect()
    }

    /// Feeds new tokens of one sequence (at least one); the prediction of each `(row of the new tokens, token id)`.
    pub fn next_predictions(
        &self,
        new: &[u32],
        targets: &[(u32, u32)],
        sequence: &mut Sequence,
        adapter: Option<&Adapter>,
    ) -> Vec<Prediction> {
        let pass = Pass { adapter, ..Pass::default() };
        let x = self.next_hidden(&[new], &mut [sequence], &pass);
        if targets.is_empty() {
            return Vec::new();
        }
        predictions(self.normed(x), &self.head.in_pass(&pass), targets, self.logit_softcap())
    }

    /// Hidden states of new tokens before the final norm, `[tokens, hidden]`; their keys and values join the past.
    fn next_hidden(&self, new: &[&[u32]], sequences: &mut [&mut Sequence], pass: &Pass<'_>) -> Tensor<2> {
        let lengths: Vec<usize> = new.iter().map(|ids| ids.len()).collect();
        let mut x = self.embed(&new.concat(), &lengths, pass);
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
        adapter: &Adapter,
        mut noise: Noise,
        recompute: Recompute,
        weigh: &mut Weigh<'_>,
    ) -> LossAndGradients {
        if noise.tokens.is_empty() {
            noise.tokens = (0..batch.ids.len() as u64).collect();
        }
        let pass = Pass { adapter: Some(adapter), noise: Some(&noise), ..Pass::default() };
        match recompute {
            Recompute::None => {
                let losses = self.token_losses(self.hidden(&batch.ids, &batch.lengths, &pass), batch, &pass);
                let (losses, gradients) = weighed(losses, weigh);
                LossAndGradients { losses, gradients: GradientsParams::from_grads(gradients, adapter) }
            }
            Recompute::Block => self.by_block(batch, adapter, &pass, weigh),
        }
    }

    /// Runs the layers without a tape, keeping their inputs; then, from the last to the first, each again with one.
    ///
    /// Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    fn by_block(&self, batch: &Batch, adapter: &Adapter, pass: &Pass<'_>, weigh: &mut Weigh<'_>) -> LossAndGradients {
        let frozen = burn::module::Module::valid(adapter);
        let untracked = Pass { adapter: Some(&frozen), ..*pass };
        let lowest = self.lowest_adapted_layer(adapter);
        let mut x = self.embed(&batch.ids, &batch.lengths, pass);
        let mut inputs = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            if index >= lowest {
                inputs.push(x.clone());
            }
            x = layer.forward(x, &batch.lengths, &untracked);
        }
        let mut gradients = GradientsParams::new();
        let end = x.autodiff().require_grad();
        let losses = self.token_losses(end.clone(), batch, pass);
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
            collect(&mut gradients, &mut tape, adapter, self.sites_of(index));
        }
        LossAndGradients { losses, gradients }
    }

    /// The first layer that is adapted; the number of layers if only the head is.
    fn lowest_adapted_layer(&self, adapter: &Adapter) -> usize {
        let first = adapter.by_site.iter().position(Option::is_some).unwrap_or(self.head.site);
        (0..self.layers.len()).find(|&layer| first < self.sites_of(layer).end).unwrap_or(self.layers.len())
    }
}

/// Moves the gradients of the deltas at `sites` from a tape.
fn collect(
    gradients: &mut GradientsParams,
    tape: &mut burn::tensor::Gradients,
    adapter: &Adapter,
    sites: std::ops::Range<usize>,
) {
    for delta in sites.filter_map(|site| adapter.at(site)) {
        for parameter in delta.parameters() {
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
