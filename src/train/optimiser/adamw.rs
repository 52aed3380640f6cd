//! AdamW with PyTorch's semantics: decay beside the update, ε outside the root.

use burn::tensor::Tensor;

use super::{Rule, Update};

/// PyTorch's default for ε.
const EPSILON: f64 = 1e-8;

/// `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`, `p ← p(1 − rate·λ) − rate · m̂ / (√v̂ + ε)` with `m̂ = m / (1 − β₁ᵗ)` and
/// `v̂ = v / (1 − β₂ᵗ)` (Loshchilov and Hutter 2019, algorithm 2).
pub(super) fn apply(rule: &Rule, update: Update<'_>) -> (Tensor<1>, Vec<Tensor<1>>) {
    let Rule { beta1, beta2, .. } = *rule;
    let decayed = update.decayed(rule.weight_decay);
    let Update { rate, number, gradient, moments, .. } = update;
    let [mean, mean_square] = <[_; 2]>::try_from(moments).expect("two moments");
    let mean = mean.mul_scalar(beta1).add(gradient.clone().mul_scalar(1.0 - beta1));
    let mean_square = mean_square.mul_scalar(beta2).add(gradient.square().mul_scalar(1.0 - beta2));
    // The corrections are taken in f64, as in PyTorch: near 1, the powers of β₂ in f32 are off by more than the result may be.
    let correction = |beta: f64| 1.0 - beta.powf(number as f64);
    let root = mean_square.clone().sqrt().div_scalar(correction(beta2).sqrt()).add_scalar(EPSILON);
    let change = mean.clone().div(root).mul_scalar(rate / correction(beta1));
    (decayed - change, vec![mean, mean_square])
}
