//! The evenly spread share of label smoothing, `ε/V` of every logit: sums over the vocabulary that serve all targets.

use super::{Chunk, CrossEntropy, Pair, add_scaled};
use crate::ops::cpu::autograd::f32s;

/// The gradients of `Σ_v z_v` without a cap: what the evenly spread share of label smoothing subtracts a part of.
pub(super) struct Spread {
    /// `ε / V`.
    pub(super) share: f32,
    /// `Σ_v W_v`, `[width]`.
    pub(super) d_hidden: Vec<f32>,
    /// `s · Σ_v B_v`, `[rank]`; empty without a pair.
    pub(super) d_low: Vec<f32>,
    /// `Σ_v bias_v`.
    bias: f32,
}

impl Spread {
    /// `mean_v(z_v)` times ε, of the target `row` of a chunk.
    pub(super) fn share_of_logits(&self, chunk: &Chunk<'_>, row: usize) -> f32 {
        let hidden = &chunk.picked[row * chunk.width..][..chunk.width];
        let rank = self.d_low.len();
        self.share * (dot(hidden, &self.d_hidden) + dot(&chunk.low[row * rank..][..rank], &self.d_low) + self.bias)
    }
}

impl CrossEntropy {
    /// Whether label smoothing is done by [`Spread`]: under a cap, `softmax` does it.
    pub(super) fn spreads(&self) -> bool {
        self.smoothing > 0.0 && self.softcap.is_none()
    }

    /// `sum_of_weight`: `Σ_v W_v`.
    pub(super) fn spread(&self, sum_of_weight: &[f32], pair: Option<&Pair>) -> Spread {
        let mut d_low = vec![0f32; pair.map_or(0, |pair| pair.rank)];
        if let Some(pair) = pair {
            f32s(&pair.b).chunks_exact(pair.rank).for_each(|row| add_scaled(&mut d_low, pair.scale, row));
        }
        let bias = self.bias.iter().flat_map(|bias| bias.iter()).map(|value| f64::from(*value)).sum::<f64>() as f32;
        let share = self.smoothing / self.weight.rows() as f32;
        Spread { share, d_hidden: sum_of_weight.to_vec(), d_low, bias }
    }
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}
