//! AdamW with PyTorch's semantics: decay beside the update, ε outside the root.

use burn::tensor::Tensor;

use super::{Rule, Update};

/// PyTorch's default for ε.
const EPSILON: f32 = 1e-8;

/// `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`, `p ← p(1 − rate·λ) − rate · m̂ / (√v̂ + ε)` with `m̂ = m / (1 − β₁ᵗ)` and
/// `v̂ = v / (1 − β₂ᵗ)` (Loshchilov and Hutter 2019, algorithm 2).
pub(super) fn apply(rule: &Rule, update: Update<'_>) -> (Tensor<1>, Vec<Tensor<1>>) {
    let Rule { beta1, beta2, .. } = *rule;
    let decayed = update.decayed(rule.weight_decay);
    let Update { rate, number, gradient, moments, .. } = update;
    let [mean, mean_square] = <[_; 2]>::try_from(moments).expect("two moments");
    let mean = mean.mul_scalar(beta1).add(gradient.clone().mul_scalar(1.0 - beta1));
    let mean_square = mean_square.mul_scalar(beta2).add(gradient.square().mul_scalar(1.0 - beta2));
    let power = |beta: f32| beta.powi(i32::try_from(number).unwrap_or(i32::MAX));
    let corrected_mean = mean.clone().div_scalar(1.0 - power(beta1));
    let corrected_square = mean_square.clone().div_scalar(1.0 - power(beta2));
    let change = corrected_mean.div(corrected_square.sqrt().add_scalar(EPSILON));
    (decayed - change.mul_scalar(rate), vec![mean, mean_square])
}
