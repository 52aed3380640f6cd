//! Kahneman-Tversky optimisation, over answers that are judged alone (Ethayarajh et al. 2024, equation 8).
//!
//! With `r = ln π(y|x)/π_ref(y|x)` and the reference point `z`: a desirable answer has the loss `λ_D·(1 − σ(β·(r − z)))`, an
//! undesirable one `λ_U·(1 − σ(β·(z − r)))`; the loss of a step is the mean over its answers. `z` is an estimate of the
//! divergence of the model from its reference: the mean of `ln π(y'|x)/π_ref(y'|x)` over the prompts of the step with answers
//! `y'` to other prompts, at least 0, which no gradient runs through. The reward of an answer is `β·r`.

use super::pairs::{draw_counts_half, sigmoid};
use super::{Objective, Rewards, SequenceLoss, Share, StepSize};

/// Kahneman-Tversky optimisation.
#[derive(Debug, Clone, Copy)]
pub struct Kto {
    /// The strength of the tie to the reference.
    pub beta: f64,
    /// The weight of desirable answers, `λ_D`.
    pub desirable_weight: f64,
    /// The weight of undesirable answers, `λ_U`.
    pub undesirable_weight: f64,
}

impl Objective for Kto {
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share {
        let answers = step.sequences as f64;
        let mut whole = Share { value: 0.0, weights: Vec::with_capacity(losses.len()), rewards: Rewards::default() };
        for answer in losses {
            let above = self.beta * (answer.log_ratio() - step.divergence);
            let (weight, side) = match answer.facts.is_desirable {
                true => (self.desirable_weight, 1.0),
                false => (self.undesirable_weight, -1.0),
            };
            let value = sigmoid(side * above);
            whole.value += weight * (1.0 - value) / answers;
            // The log-ratio falls with the loss.
            whole.weights.push(weight * side * self.beta * value * (1.0 - value) / answers);
            let reward = self.beta * answer.log_ratio();
            let correct = draw_counts_half(side * above);
            whole.rewards.add(&match answer.facts.is_desirable {
                true => Rewards { preferred_sum: reward, preferred: 1, correct, examples: 1, ..Rewards::default() },
                false => Rewards { other_sum: reward, other: 1, correct, examples: 1, ..Rewards::default() },
            });
        }
        whole
    }

    fn has_reference(&self) -> bool {
        true
    }

    fn needs_divergence(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::tests::{check_gradient, losses};
    use super::*;

    const KTO: Kto = Kto { beta: 0.8, desirable_weight: 1.5, undesirable_weight: 0.7 };

    #[test]
    fn weights_are_the_derivatives() {
        check_gradient(&KTO);
    }

    #[test]
    fn answers_are_judged_against_the_reference_point() {
        let losses = losses();
        // Log-ratios of 1.5 and 0.5 where the answer is desirable, −1 and −0.5 where it is not.
        let share = KTO.share(&losses, &StepSize::of_example(&losses, 0.6));
        assert_eq!(share.rewards.accuracy(), Some(0.75), "0.5 lies below the reference point");
        assert!((share.rewards.margin().expect("both") - 0.8 * (1.0 + 0.75)).abs() < 1e-12);
    }
}
