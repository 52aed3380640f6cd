//! The decoder: embedding, layers, norm, head. Frozen; what is trainable comes in with the [`Pass`].

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::batch::Batch;
use super::config::{EmbeddingMultiplier, ModelConfig};
use super::vision::Features;
use super::vision::features::tokens_of;
use crate::files::fetch::Fetcher;
use crate::nn::projection::project;
use crate::nn::{Adapter, Layer, Norm, Pass, Projection};
use crate::ops::attention::Cache;
use crate::ops::cross_entropy::{
    Prediction, Targets, capped, cross_entropy, predictions, reference, trained_cross_entropy, trained_predictions,
};
use crate::ops::frozen::FrozenWeight;
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
    /// The features of the pictures that it has been shown.
    pub(crate) features: Features,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Norm,
    pub(crate) head: Projection,
    /// Reads weights ahead, where they do not stay in memory (`stages.rs`).
    pub(super) fetcher: Option<Fetcher>,
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

impl Decoder {
    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device of its weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number of sites: projections that can be adapted, then the head, then the embedding.
    pub fn sites(&self) -> usize {
        self.embedding_site() + 1
    }

    /// The number of the embedding among the sites.
    pub fn embedding_site(&self) -> usize {
        self.head.site + 1
    }

    /// Hidden states before the final norm, `[tokens, hidden]`.
    pub(super) fn hidden(&self, ids: &[u32], lengths: &[usize], pass: &Pass<'_>) -> Tensor<2> {
        let x = self.embed(ids, lengths, pass);
        self.layers.iter().enumerate().fold(x, |x, (index, layer)| {
            let _in_use = self.stage(index, Some(index + 1));
            layer.forward(x, lengths, pass)
        })
    }

    /// `[tokens, hidden]`. The noise of training is added to the rows themselves, before a family's multiplier.
    pub(super) fn embed(&self, ids: &[u32], lengths: &[usize], pass: &Pass<'_>) -> Tensor<2> {
        let tokens = tokens_of(ids);
        let mut rows = self.embedding.rows(&tokens, &self.device);
        if let Some(adapter) = pass.adapter {
            rows = adapter.embed(self.embedding_site(), rows, &tokens, &self.embedding);
        }
        if !self.config.tied_head || self.is_streamed() {
            // Of a mapped file, only the rows of these tokens were read; the next tokens are others.
            self.embedding.release();
        }
        let shape = rows.dims();
        if let Some(noise) = pass.noise.and_then(|noise| noise.of_embeddings(lengths, shape[1])) {
            let device = rows.device();
            rows = rows + Tensor::from_data(TensorData::new(noise, shape), &device);
        }
        let rows = match self.embedding_multiplier() {
            Some(multiplier) => rows.mul_scalar(multiplier),
            None => rows,
        };
        self.features.placed(ids, rows, pass).cast(self.compute)
    }

    /// The features of the pictures that it has been shown; ids from [`FIRST_ID`](super::vision::features::FIRST_ID) on stand for
    /// their rows.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The same decoder with the features that another one shares.
    pub fn with_features(self, features: &Features) -> Self {
        Self { features: features.clone(), ..self }
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
    fn normed(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let x = self.norm.forward(x, pass);
        match self.config.logit_multiplier {
            Some(multiplier) => x.mul_scalar(multiplier),
            None => x,
        }
    }

    /// Loss of each of the batch's trained tokens, `[trained tokens, 1]`, from the hidden states before the final norm, with
    /// the label smoothing of training.
    pub(super) fn token_losses(&self, x: Tensor<2>, batch: &Batch, pass: &Pass<'_>) -> Tensor<2> {
        let smoothing = pass.noise.map_or(0.0, |noise| noise.label_smoothing);
        if let Some(score) = score_head(pass) {
            return trained_cross_entropy(self.norm.forward(x, pass), score, &batch.targets(), None, smoothing);
        }
        let (x, targets, softcap) = (self.normed(x, pass), batch.targets(), self.logit_softcap());
        match self.trained_head(pass) {
            Some(weight) => trained_cross_entropy(x, weight, &targets, softcap, smoothing),
            None => cross_entropy(x, &self.head.in_pass(pass), &targets, softcap, smoothing),
        }
    }

    /// The matrix of the head, where it is trained as a whole.
    fn trained_head(&self, pass: &Pass<'_>) -> Option<Tensor<2>> {
        pass.adapter.and_then(|adapter| adapter.weight(self.head.site))
    }

    /// The prediction of each target from the hidden states before the final norm.
    fn predicted(&self, x: Tensor<2>, targets: &Targets, pass: &Pass<'_>) -> Vec<Prediction> {
        if let Some(score) = score_head(pass) {
            return trained_predictions(self.norm.forward(x, pass), score, targets, None);
        }
        let _in_use = self.stage(self.head_stage(), Some(0));
        let (x, softcap) = (self.normed(x, pass), self.logit_softcap());
        match self.trained_head(pass) {
            Some(weight) => trained_predictions(x, weight, targets, softcap),
            None => predictions(x, &self.head.in_pass(pass), targets, softcap),
        }
    }

    fn logit_softcap(&self) -> Option<f32> {
        self.config.logit_softcap.map(|cap| cap as f32)
    }

    /// Logits of hidden states before the final norm, `[tokens, vocabulary]`.
    pub(super) fn head_logits(&self, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let _in_use = self.stage(self.head_stage(), Some(0));
        capped(project(self.normed(x, pass), &[&self.head], None, pass), self.logit_softcap())
    }

    /// The prediction of each trained token of the batch, in order.
    pub fn predictions(&self, batch: &Batch, adapter: Option<&Adapter>) -> Vec<Prediction> {
        let pass = Pass { adapter, ..Pass::default() };
        let x = self.hidden(&batch.ids, &batch.lengths, &pass);
        self.predicted(x, &batch.targets(), &pass)
    }

    /// The logarithm of the probability of each label by the score head of `adapter`, for each trained token of the batch, which stands
    /// for a label.
    pub fn label_log_probabilities(&self, batch: &Batch, adapter: &Adapter) -> Vec<Vec<f64>> {
        let pass = Pass { adapter: Some(adapter), ..Pass::default() };
        let x = self.hidden(&batch.ids, &batch.lengths, &pass);
        self.of_labels(x, &batch.targets(), &pass)
    }

    /// [`Self::label_log_probabilities`] of new tokens of one sequence (at least one), at these rows of them.
    pub fn next_label_log_probabilities(
        &self,
        new: &[u32],
        targets: &[(u32, u32)],
        sequence: &mut Sequence,
        adapter: &Adapter,
    ) -> Vec<Vec<f64>> {
        let pass = Pass { adapter: Some(adapter), ..Pass::default() };
        let x = self.next_hidden(&[new], &mut [sequence], &pass);
        if targets.is_empty() { Vec::new() } else { self.of_labels(x, targets, &pass) }
    }

    /// The logarithm of the probability of each label at each target, from the hidden states before the final norm.
    fn of_labels(&self, x: Tensor<2>, targets: &Targets, pass: &Pass<'_>) -> Vec<Vec<f64>> {
        let Some(score) = score_head(pass) else { return Vec::new() };
        let labels = score.dims()[0];
        let all = reference::trained_log_probabilities(self.norm.forward(x, pass), score, targets, None).into_data();
        let values: Vec<f64> = all.iter::<f64>().collect();
        values.chunks(labels.max(1)).map(<[f64]>::to_vec).collect()
    }

    /// Logits of every position, `[tokens, vocabulary]`: for comparisons, not for training.
    pub fn logits(&self, ids: &[u32], lengths: &[usize], adapter: Option<&Adapter>) -> Tensor<2> {
        let pass = Pass { adapter, ..Pass::default() };
        let x = self.hidden(ids, lengths, &pass);
        self.head_logits(x, &pass)
    }

    /// The mean over a sequence of the hidden states after the final norm, `[hidden]`.
    pub fn mean_hidden(&self, ids: &[u32], adapter: Option<&Adapter>) -> Vec<f32> {
        let pass = Pass { adapter, ..Pass::default() };
        let x = self.hidden(ids, &[ids.len()], &pass);
        self.norm.forward(x, &pass).cast(DType::F32).mean_dim(0).into_data().iter::<f32>().collect()
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
        self.predicted(x, targets, &pass)
    }

    /// Hidden states of new tokens before the final norm, `[tokens, hidden]`; their keys and values join the past.
    fn next_hidden(&self, new: &[&[u32]], sequences: &mut [&mut Sequence], pass: &Pass<'_>) -> Tensor<2> {
        let lengths: Vec<usize> = new.iter().map(|ids| ids.len()).collect();
        let mut x = self.embed(&new.concat(), &lengths, pass);
        for (index, layer) in self.layers.iter().enumerate() {
            let _in_use = self.stage(index, Some(index + 1));
            let mut caches: Vec<&mut Cache> =
                sequences.iter_mut().map(|sequence| &mut sequence.caches[index]).collect();
            x = layer.forward_cached(x, &lengths, &mut caches, pass);
        }
        x
    }
}

/// The head of labels, where the adapter is a classifier.
fn score_head(pass: &Pass<'_>) -> Option<Tensor<2>> {
    pass.adapter.and_then(|adapter| adapter.score.as_ref()).map(|score| score.val())
}
