//! A projection by a frozen weight, and what one pass through the model carries.

use std::fmt;
use std::sync::Arc;

use burn::tensor::Tensor;

use super::adapter::{Adapter, Delta};
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::{Dropout, LowRankPair, Projected, linear, uniform};

/// The noise of a batch in training, label smoothing included. It belongs to the tokens of an example in a step, however the step is
/// cut into batches and wherever the example lies in it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Noise {
    /// Differs from step to step.
    pub seed: u64,
    /// The number of each token of the batch ([`token_numbers`]); empty for their places in the batch.
    pub tokens: Arc<[u64]>,
    /// The strength α of the noise on the embeddings; 0 for none.
    pub embedding_alpha: f32,
    /// The share of every target that is spread evenly over the vocabulary; 0 for none.
    pub label_smoothing: f32,
}

/// The numbers of the tokens of sequences of these `lengths`, by the number of the example that each is: the same for a token of
/// an example in every batch.
pub fn token_numbers(examples: &[u64], lengths: &[usize]) -> Arc<[u64]> {
    let of_example = |(example, length): (&u64, &usize)| {
        let first = example << 32;
        first..first + *length as u64
    };
    examples.iter().zip(lengths).flat_map(of_example).collect()
}

impl Noise {
    /// The noise on the embeddings of sequences of these `lengths`, `[tokens, width]`: uniform within `±α / √(length · width)`;
    /// `None` where there is none.
    ///
    /// Jain et al. 2024, "NEFTune: Noisy Embeddings Improve Instruction Finetuning".
    pub fn of_embeddings(&self, lengths: &[usize], width: usize) -> Option<Vec<f32>> {
        if self.embedding_alpha == 0.0 {
            return None;
        }
        let seed = mix(self.seed, u64::MAX);
        let bounds = lengths
            .iter()
            .flat_map(|&length| std::iter::repeat_n(self.embedding_alpha / ((length * width) as f32).sqrt(), length));
        let of_token = |(token, bound): (&u64, f32)| {
            let first = token.wrapping_mul(width as u64);
            (0..width as u64).map(move |column| bound * (2.0 * uniform(seed, first.wrapping_add(column)) - 1.0))
        };
        Some(self.tokens.iter().zip(bounds).flat_map(of_token).collect())
    }
}

/// The receiver of the inputs of the layers' projections.
pub trait Observer: fmt::Debug {
    /// Takes the input of the projections at `sites`, which share it.
    ///
    /// # Shapes
    /// - `x`: `[tokens, in]`
    fn inputs(&self, x: &Tensor<2>, sites: &[usize]);
}

/// The settings of one pass through the model.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pass<'a> {
    /// The receiver of the inputs of projections, if there is one.
    pub observer: Option<&'a dyn Observer>,
    /// The adapter that is added; `None` runs the base alone.
    pub adapter: Option<&'a Adapter>,
    /// The noise of training; `None` when not training.
    pub noise: Option<&'a Noise>,
}

/// A frozen projection at a site of the model. Whether it is adapted is a property of the pass.
#[derive(Debug, Clone)]
pub struct Projection {
    /// `[out, in]`.
    pub weight: FrozenWeight,
    /// `out` values.
    pub bias: Option<Vec<f32>>,
    /// Its number among the sites of the model.
    pub site: usize,
}

impl Projection {
    /// The projection as `ops::linear` takes it, with its low-rank pair if the pass has one for it.
    pub fn in_pass<'a>(&'a self, pass: &Pass<'_>) -> Projected<'a> {
        let (pair, dora) = match pass.adapter.and_then(|adapter| adapter.at(self.site)) {
            None => (None, None),
            Some(Delta::LowRank(pair)) => (Some(pair), None),
            Some(Delta::Dora(dora)) => (Some(&dora.pair), Some(dora)),
        };
        let low_rank = pair.map(|pair| {
            let [a, b] = pair.factors();
            let dropout = pass.noise.filter(|_| pair.dropout > 0.0).map(|noise| {
                let seed = mix(noise.seed, self.site as u64);
                Dropout { probability: pair.dropout, seed, tokens: noise.tokens.clone() }
            });
            LowRankPair { a, b, scale: pair.scale, dropout }
        });
        let column_scale = dora.map(|dora| dora.column_scale(&self.weight));
        Projected { weight: &self.weight, bias: self.bias.as_deref(), low_rank, column_scale }
    }
}

/// Projects `x` by several projections that share it; their outputs lie side by side.
pub fn project(x: Tensor<2>, group: &[&Projection], residual: Option<Tensor<2>>, pass: &Pass<'_>) -> Tensor<2> {
    if let Some(observer) = pass.observer {
        observer.inputs(&x, &group.iter().map(|projection| projection.site).collect::<Vec<_>>());
    }
    let group: Vec<_> = group.iter().map(|projection| projection.in_pass(pass)).collect();
    linear(x, &group, residual)
}

/// A seed of its own for every (step, site); the noise on the embeddings takes a site that no model has.
fn mix(seed: u64, site: u64) -> u64 {
    (seed ^ site.wrapping_mul(0xd6e8_feb8_6659_fd93)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
}
