//! Supervised fine-tuning: the mean loss of the trained tokens of a step.
//!
//! `L = Σ −ln p(token) / N` over the `N` trained tokens of all micro-batches: every token weighs the same, however the step is
//! cut.

use super::{Objective, Rewards, SequenceLoss, Share, StepSize};

/// Supervised fine-tuning.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sft;

impl Objective for Sft {
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share {
        let tokens = step.trained_tokens as f64;
        let sum: f64 = losses.iter().map(|loss| loss.sum).sum();
        Share { value: sum / tokens, weights: vec![1.0 / tokens; losses.len()], rewards: Rewards::default() }
    }
}
