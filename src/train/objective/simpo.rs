//! Simple preference optimisation, without a reference (Meng et al. 2024, equation 6).
//!
//! `L = −ln σ(β·ln p(y_w|x) − β·ln p(y_l|x) − γ)` with `ln p` the mean log-probability of a token of the answer, and `γ` the
//! margin that the chosen answer is to have; with label smoothing `ε` as in DPO. The reward of an answer is `β·ln p`.

use super::pairs::{PairShare, mean_over_pairs, smoothed_log_loss};
use super::{Objective, SequenceLoss, Share, StepSize};

/// Simple preference optimisation.
#[derive(Debug, Clone, Copy)]
pub struct SimPo {
    /// The scale of the rewards.
    pub beta: f64,
    /// The margin of the rewards that is aimed at, `γ`.
    pub margin: f64,
    /// The probability that a preference is wrong.
    pub smoothing: f64,
}

impl Objective for SimPo {
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share {
        let Self { beta, margin, smoothing } = *self;
        mean_over_pairs(losses, step, 0.0, |chosen, rejected| {
            let rewards = [chosen, rejected].map(|answer| beta * answer.mean_log_probability());
            let (loss, slope) = smoothed_log_loss(rewards[0] - rewards[1] - margin, smoothing);
            let weights = [-beta * slope / chosen.tokens as f64, beta * slope / rejected.tokens as f64];
            PairShare { loss, weights, rewards }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::tests::check_gradient;
    use super::*;

    #[test]
    fn weights_are_the_derivatives() {
        check_gradient(&SimPo { beta: 2.0, margin: 1.0, smoothing: 0.0 });
        check_gradient(&SimPo { beta: 0.5, margin: 0.1, smoothing: 0.1 });
    }
}
