//! AdamW with PyTorch's semantics: decay beside the update, ε outside the root.

use burn::tensor::Tensor;

use super::{Rule, Update};

/// PyTorch's default for ε.
const EPSILON: f64 = 1e-8;

/// `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`, `p ← p(1 − rate·λ) − rate · m̂ / (√v̂ + ε)` with `m̂ = m / (1 − β₁ᵗ)` and
/// `v̂ = v / (1 − β₂ᵗ)` (Loshchilov and Hutter 2019, algorithm 2).
pub(super) fn apply(rule: &Rule, update: Update<'_>) -> (Tensor<1>, Vec<Tensor<1>>) {
    let Rule { beta1, beta2, .. } = *rule;
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    if !crate::ops::is_processor(&update.gradient.device()) {
        return on_gpu(rule, update);
    }
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

/// The same in one kernel.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn on_gpu(rule: &Rule, update: Update<'_>) -> (Tensor<1>, Vec<Tensor<1>>) {
    use crate::ops::cube::adamw::{AdamW, adamw};

    let Rule { beta1, beta2, .. } = *rule;
    let Update { rate, number, parameter, gradient, moments, .. } = update;
    let moments = <[_; 2]>::try_from(moments).expect("two moments");
    let correction = |beta: f64| 1.0 - beta.powf(number as f64);
    let numbers = AdamW {
        mean_kept: beta1 as f32,
        mean_added: (1.0 - beta1) as f32,
        square_kept: beta2 as f32,
        square_added: (1.0 - beta2) as f32,
        kept: (1.0 - rate * rule.weight_decay) as f32,
        rate: (rate / correction(beta1)) as f32,
        root_factor: correction(beta2).sqrt().recip() as f32,
        epsilon: EPSILON as f32,
    };
    let [updated, mean, mean_square] = adamw(numbers, parameter, gradient, moments);
    (updated, vec![mean, mean_square])
}
