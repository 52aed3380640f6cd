//! Lion: the sign of an average of gradients.

use burn::tensor::Tensor;

use super::{Rule, Update};

/// `p ← p(1 − rate·λ) − rate · sign(β₁m + (1 − β₁)g)`, then `m ← β₂m + (1 − β₂)g` (Chen et al. 2023, "Symbolic Discovery of
/// Optimization Algorithms", program 1).
pub(super) fn apply(rule: &Rule, update: Update<'_>) -> (Tensor<1>, Vec<Tensor<1>>) {
    let Rule { beta1, beta2, .. } = *rule;
    let decayed = update.decayed(rule.weight_decay);
    let Update { rate, gradient, moments, .. } = update;
    let [mean] = <[_; 1]>::try_from(moments).expect("one moment");
    let direction = mean.clone().mul_scalar(beta1).add(gradient.clone().mul_scalar(1.0 - beta1)).sign();
    let mean = mean.mul_scalar(beta2).add(gradient.mul_scalar(1.0 - beta2));
    (decayed - direction.mul_scalar(rate), vec![mean])
}
