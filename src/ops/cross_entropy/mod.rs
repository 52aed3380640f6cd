//! The language-model head and its loss in one: logits are made for trained positions only, a chunk at a time.
//!
//! `loss = Σ over (row, target) of ln Σ_v exp(logit_v) − logit_target`, summed, not averaged: the caller divides once
//! by the trained tokens of everything it accumulates.

#[cfg(feature = "cpu")]
mod cpu;
pub mod reference;

use burn::tensor::Tensor;

use super::linear::Projected;

/// Logits that the processor's kernel holds at once, in bytes.
pub const LOGITS_BYTES: usize = 48 << 20;

/// `(row of the hidden states, token id that it must predict)`.
pub type Targets = [(u32, u32)];

/// Summed loss, `[1, 1]` in f32, of `hidden` `[tokens, width]` through the head.
pub fn cross_entropy(hidden: Tensor<2>, head: &Projected<'_>, targets: &Targets) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if head.weight.matrix().is_some() {
        return cpu::cross_entropy(hidden, head, targets);
    }
    reference::cross_entropy(hidden, head, targets)
}

/// Loss of each target, in order; no gradient.
pub fn losses(hidden: Tensor<2>, head: &Projected<'_>, targets: &Targets) -> Vec<f32> {
    #[cfg(feature = "cpu")]
    if head.weight.matrix().is_some() {
        return cpu::losses(hidden, head, targets);
    }
    reference::losses(hidden, head, targets)
}
