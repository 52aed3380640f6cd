//! A projection by a frozen weight, and what one pass through the model carries.

use std::fmt;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use super::adapter::{Adapter, Delta};
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::{Again, Dropout, LowRankPair, Projected, linear, linear_again, uniform};

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
    /// The noise of the `rows` rows that a tower makes of a picture, whose first token in the batch has the number `token`.
    pub fn of_picture(&self, token: u64, rows: usize) -> Self {
        let first = mix(token, u64::MAX);
        Self {
            seed: self.seed,
            tokens: (0..rows as u64).map(|row| first.wrapping_add(row)).collect(),
            ..Self::default()
        }
    }

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
        let delta = pass.adapter.and_then(|adapter| adapter.at(self.site));
        let (pair, dora) = match delta {
            None | Some(Delta::Rows(_)) => (None, None),
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
        let rows = match delta {
            Some(Delta::Rows(rows)) => Some(rows.pair(&self.weight)),
            _ => None,
        };
        let column_scale = dora.map(|dora| dora.column_scale(&self.weight));
        let trains_bias = pass.adapter.is_some_and(|adapter| adapter.bias(self.site).is_some());
        let bias = self.bias.as_deref().filter(|_| !trains_bias);
        Projected { weight: &self.weight, bias, low_rank: low_rank.or(rows), column_scale }
    }

    /// `x·Wᵀ` with a trained weight, plus the bias unless that is trained too.
    ///
    /// # Shapes
    /// - `x`: `[tokens, in]`
    /// - `weight`: `[out, in]` in f32
    /// - output: `[tokens, out]` in the number format of `x`
    fn with_weight(&self, weight: Tensor<2>, x: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        let (device, format) = (x.device(), x.dtype());
        let y = x.matmul(weight.cast(format).transpose());
        match self.in_pass(pass).bias {
            Some(bias) => y + Tensor::<1>::from_data(TensorData::from(bias), &device).cast(format).unsqueeze(),
            None => y,
        }
    }
}

/// Projects `x` by several projections that share it; their outputs lie side by side.
pub fn project(x: Tensor<2>, group: &[&Projection], residual: Option<Tensor<2>>, pass: &Pass<'_>) -> Tensor<2> {
    project_again(x, None, group, residual, pass)
}

/// [`project`] of an input that need not be kept for the backward pass, because `again` makes it from values that are kept anyway.
pub fn project_again(
    x: Tensor<2>,
    again: Option<Again>,
    group: &[&Projection],
    residual: Option<Tensor<2>>,
    pass: &Pass<'_>,
) -> Tensor<2> {
    if let Some(observer) = pass.observer {
        observer.inputs(&x, &group.iter().map(|projection| projection.site).collect::<Vec<_>>());
    }
    let trained = |projection: &Projection| pass.adapter.and_then(|adapter| adapter.weight(projection.site));
    let y = match group.iter().any(|projection| trained(projection).is_some()) {
        false => {
            let group: Vec<_> = group.iter().map(|projection| projection.in_pass(pass)).collect();
            linear_again(x, again, &group, residual)
        }
        true => {
            let outputs = group.iter().map(|projection| match trained(projection) {
                Some(weight) => projection.with_weight(weight, x.clone(), pass),
                None => linear(x.clone(), &[projection.in_pass(pass)], None),
            });
            let y = Tensor::cat(outputs.collect(), 1);
            residual.into_iter().fold(y, |y, residual| y + residual)
        }
    };
    match trained_biases(group, pass) {
        Some(biases) => {
            let format = y.dtype();
            y + biases.cast(format)
        }
        None => y,
    }
}

/// The trained biases of a group, `[1, Σ out]`, 0 for a projection without; `None` if there is no such bias.
fn trained_biases(group: &[&Projection], pass: &Pass<'_>) -> Option<Tensor<2>> {
    let adapter = pass.adapter?;
    let biases: Vec<Option<Tensor<2>>> = group.iter().map(|projection| adapter.bias(projection.site)).collect();
    let device = biases.iter().flatten().next()?.device();
    let rows = group
        .iter()
        .zip(biases)
        .map(|(projection, bias)| bias.unwrap_or_else(|| Tensor::zeros([1, projection.weight.dims()[0]], &device)));
    Some(Tensor::cat(rows.collect(), 1))
}

/// A seed of its own for every (step, site); the noise on the embeddings takes a site that no model has.
fn mix(seed: u64, site: u64) -> u64 {
    (seed ^ site.wrapping_mul(0xd6e8_feb8_6659_fd93)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
}
