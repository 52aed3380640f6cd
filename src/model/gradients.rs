//! The losses of a step and their gradients: with every activation kept, or with layers computed again from their inputs.

use burn::optim::GradientsParams;
use burn::tensor::{Tensor, TensorData};

use super::batch::Batch;
use super::decoder::{Decoder, Recompute};
use crate::nn::{Adapter, Layer, Noise, Pass};
use crate::ops::backward_from::backward_from;

/// The number of layers, from the first on, whose activations are computed again in the backward pass, each from its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecomputedLayers(pub usize);

impl From<Recompute> for RecomputedLayers {
    fn from(recompute: Recompute) -> Self {
        match recompute {
            Recompute::None => Self(0),
            Recompute::Block => Self(usize::MAX),
        }
    }
}

/// Gives the loss of each trained token its weight in the value to minimise.
pub type Weigh<'a> = dyn FnMut(&[f32]) -> Vec<f32> + 'a;

/// The receiver of the losses and gradients of the parts of a step.
pub trait Receiver {
    /// The weight of each trained token's loss in the value to minimise, given the losses of a part in order.
    fn weigh(&mut self, part: usize, losses: &[f32]) -> Vec<f32>;

    /// Takes gradients of a part, in as many calls as it likes, but all of a matrix in one. Those of a step of one part come in
    /// one call.
    fn take(&mut self, part: usize, gradients: GradientsParams);
}

/// The losses of a micro-batch with the gradients of the adapter.
pub struct LossAndGradients {
    /// The loss of each trained token, in order.
    pub losses: Vec<f32>,
    /// The gradients of their weighed sum.
    pub gradients: GradientsParams,
}

/// The receiver of a single part.
struct Single<'a, 'b> {
    weigh: &'a mut Weigh<'b>,
    result: LossAndGradients,
}

impl Receiver for Single<'_, '_> {
    fn weigh(&mut self, _: usize, losses: &[f32]) -> Vec<f32> {
        self.result.losses = losses.to_vec();
        (self.weigh)(losses)
    }

    fn take(&mut self, _: usize, gradients: GradientsParams) {
        self.result.gradients = gradients;
    }
}

/// A part on its way through the layers.
struct Running<'a> {
    batch: &'a Batch,
    noise: Noise,
    /// The hidden states so far.
    x: Tensor<2>,
    /// The inputs of the layers that are computed again.
    inputs: Vec<Tensor<2>>,
    /// The gradient of the layer below which nothing is known yet, with respect to its input.
    upstream: Option<Tensor<2>>,
    /// The gradients that are not handed over yet.
    gradients: GradientsParams,
}

impl Running<'_> {
    fn pass<'b>(&'b self, adapter: &'b Adapter) -> Pass<'b> {
        Pass { adapter: Some(adapter), noise: Some(&self.noise), ..Pass::default() }
    }
}

impl Decoder {
    /// The loss of each of the batch's trained tokens, and the gradients of their sum weighed by `weigh(losses)`.
    /// `adapter` is on an autodiff device.
    pub fn loss_and_gradients(
        &self,
        batch: &Batch,
        adapter: &Adapter,
        noise: Noise,
        recompute: impl Into<RecomputedLayers>,
        weigh: &mut Weigh<'_>,
    ) -> LossAndGradients {
        let result = LossAndGradients { losses: Vec::new(), gradients: GradientsParams::new() };
        let mut single = Single { weigh, result };
        self.accumulate(vec![(batch, noise)], adapter, recompute.into(), &mut single);
        single.result
    }

    /// Hands the losses and gradients of each part of a step to `receiver`. `adapter` is on an autodiff device. A streamed decoder reads
    /// its layers twice for all parts together, and computes every layer again.
    pub fn accumulate(
        &self,
        parts: Vec<(&Batch, Noise)>,
        adapter: &Adapter,
        recomputed: RecomputedLayers,
        receiver: &mut dyn Receiver,
    ) {
        let numbered = parts.into_iter().map(|(batch, mut noise)| {
            if noise.tokens.is_empty() {
                noise.tokens = (0..batch.ids.len() as u64).collect();
            }
            (batch, noise)
        });
        let lowest = self.lowest_adapted_layer(adapter);
        let recomputed = if self.is_streamed() { self.layers.len() } else { recomputed.0.min(self.layers.len()) };
        // Layers below the first one with an adapter keep nothing anyway.
        if self.is_streamed() || recomputed > lowest {
            return self.by_block(numbered.collect(), adapter, (lowest, recomputed), receiver);
        }
        for (part, (batch, noise)) in numbered.enumerate() {
            let pass = Pass { adapter: Some(adapter), noise: Some(&noise), ..Pass::default() };
            let losses = self.token_losses(self.hidden(&batch.ids, &batch.lengths, &pass), batch, &pass);
            let gradients = weighed(losses, &mut |losses| receiver.weigh(part, losses));
            let gradients = gradients.map(|gradients| GradientsParams::from_grads(gradients, adapter));
            receiver.take(part, gradients.unwrap_or_default());
        }
    }

    /// Runs the layers up to `first_kept` without a tape, keeping their inputs from `lowest` on; the layers above and the head with
    /// one; then, from the last to the first, each of the others again with one.
    ///
    /// Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost".
    fn by_block(
        &self,
        parts: Vec<(&Batch, Noise)>,
        adapter: &Adapter,
        (lowest, first_kept): (usize, usize),
        receiver: &mut dyn Receiver,
    ) {
        let frozen = burn::module::Module::valid(adapter);
        let is_single = parts.len() == 1;
        let begun = parts.into_iter().map(|(batch, noise)| {
            let pass = Pass { adapter: Some(&frozen), noise: Some(&noise), ..Pass::default() };
            let x = self.embed(&batch.ids, &batch.lengths, &pass);
            Running { batch, noise, x, inputs: Vec::new(), upstream: None, gradients: GradientsParams::new() }
        });
        let mut parts: Vec<Running<'_>> = begun.collect();
        for (index, layer) in self.layers[..first_kept].iter().enumerate() {
            let _in_use = self.stage(index, Some(index + 1));
            for part in &mut parts {
                let y = layer.forward(part.x.clone(), &part.batch.lengths, &part.pass(&frozen));
                let x = std::mem::replace(&mut part.x, y);
                if index >= lowest {
                    part.inputs.push(x);
                }
            }
        }
        let in_use = self.stage(self.head_stage(), first_kept.checked_sub(1));
        for (index, part) in parts.iter_mut().enumerate() {
            self.top(part, adapter, &self.layers[first_kept..], &mut |losses| receiver.weigh(index, losses));
        }
        drop(in_use);
        for (index, layer) in self.layers.iter().enumerate().take(first_kept).skip(lowest).rev() {
            let _in_use = self.stage(index, index.checked_sub(1).filter(|next| *next >= lowest));
            for (number, part) in parts.iter_mut().enumerate() {
                let (Some(input), Some(known)) = (part.inputs.pop(), part.upstream.take()) else { continue };
                let input = input.autodiff().require_grad();
                let y = layer.forward(input.clone(), &part.batch.lengths, &part.pass(adapter));
                let mut tape = backward_from(y, known);
                part.upstream = input.grad_remove(&mut tape);
                if is_single {
                    collect(&mut part.gradients, &mut tape, adapter);
                } else {
                    // The matrices of a layer are on no other tape: their gradients need not wait for the end.
                    let mut of_layer = GradientsParams::new();
                    collect(&mut of_layer, &mut tape, adapter);
                    receiver.take(number, of_layer);
                }
            }
        }
        for (index, mut part) in parts.into_iter().enumerate() {
            if let (true, Some(known)) = (self.has_trained_embeddings(adapter), part.upstream.take()) {
                let embedded = self.embed(&part.batch.ids, &part.batch.lengths, &part.pass(adapter));
                // Of an adapter of the tower, a text without pictures has no parameter.
                if embedded.is_autodiff() {
                    collect(&mut part.gradients, &mut backward_from(embedded, known), adapter);
                }
            }
            receiver.take(index, part.gradients);
        }
    }

    /// Runs the last layers and the head with a tape, and back to the input of these layers.
    fn top(&self, part: &mut Running<'_>, adapter: &Adapter, layers: &[Layer], weigh: &mut Weigh<'_>) {
        let Running { batch, .. } = *part;
        let pass = part.pass(adapter);
        let end = part.x.clone().autodiff().require_grad();
        let x = layers.iter().fold(end.clone(), |x, layer| layer.forward(x, &batch.lengths, &pass));
        let Some(mut tape) = weighed(self.token_losses(x, batch, &pass), weigh) else { return };
        part.upstream = end.grad_remove(&mut tape);
        collect(&mut part.gradients, &mut tape, adapter);
    }

    /// Whether an adapter changes the embedding, or features that stand in the places of tokens.
    pub(crate) fn has_trained_embeddings(&self, adapter: &Adapter) -> bool {
        adapter.changes(self.embedding_site()) || self.features.are_changed_by(adapter)
    }

    /// The first layer that gradients have to reach: 0 where the embedding is adapted, the number of layers if only the head is.
    fn lowest_adapted_layer(&self, adapter: &Adapter) -> usize {
        if self.has_trained_embeddings(adapter) {
            return 0;
        }
        let is_changed = |layer: &Layer| layer.modules().any(|module| adapter.changes(module));
        self.layers.iter().position(is_changed).unwrap_or(self.layers.len())
    }
}

/// Moves the gradients of an adapter's matrices from a tape. A matrix that several tapes use gets their sum.
fn collect(gradients: &mut GradientsParams, tape: &mut burn::tensor::Gradients, adapter: &Adapter) {
    for matrix in adapter.matrices() {
        let Some(gradient) = matrix.val().grad_remove(tape) else { continue };
        let sum = match gradients.remove::<2>(matrix.id) {
            Some(other) => other + gradient,
            None => gradient,
        };
        gradients.register(matrix.id, sum);
    }
}

/// The gradients of the sum of `losses` weighed by `weigh(losses)`; `None` where they depend on no parameter, as those of a text without
/// pictures on an adapter of the tower.
///
/// # Shapes
/// - `losses`: `[trained tokens, 1]`
fn weighed(losses: Tensor<2>, weigh: &mut Weigh<'_>) -> Option<burn::tensor::Gradients> {
    let is_on_tape = losses.is_autodiff();
    let plain = if is_on_tape { losses.clone().inner() } else { losses.clone() };
    let values: Vec<f32> = plain.into_data().iter::<f32>().collect();
    let weights = TensorData::new(weigh(&values), losses.dims());
    is_on_tape.then(|| backward_from(losses.clone(), Tensor::from_data(weights, &losses.device().inner())))
}
