//! The parts that objectives over pairs share: the sum over the pairs of a micro-batch, and the losses of one difference.

use super::{Rewards, SequenceLoss, Share, StepSize};

/// The share of one pair, before the division by the pairs of the step.
pub(super) struct PairShare {
    /// Its loss.
    pub(super) loss: f64,
    /// The derivatives of the loss by the loss sums of the chosen and of the rejected answer.
    pub(super) weights: [f64; 2],
    /// The rewards of the two.
    pub(super) rewards: [f64; 2],
}

/// The mean over the pairs of the step of `share`, which gets the chosen and the rejected sequence of a pair; and
/// `likelihood_weight` times the mean loss of a trained token of the chosen answers.
pub(super) fn mean_over_pairs(
    losses: &[SequenceLoss],
    step: &StepSize,
    likelihood_weight: f64,
    share: impl Fn(&SequenceLoss, &SequenceLoss) -> PairShare,
) -> Share {
    let pairs = (step.sequences / 2) as f64;
    let per_token = likelihood_weight / step.chosen_tokens as f64;
    let mut whole = Share { value: 0.0, weights: Vec::with_capacity(losses.len()), rewards: Rewards::default() };
    for [chosen, rejected] in losses.as_chunks::<2>().0 {
        let PairShare { loss, weights, rewards } = share(chosen, rejected);
        whole.value += loss / pairs;
        whole.weights.extend(weights.map(|weight| weight / pairs));
        if likelihood_weight > 0.0 {
            whole.value += per_token * chosen.sum;
            let last = whole.weights.len() - 2;
            whole.weights[last] += per_token;
        }
        whole.rewards.add(&Rewards {
            preferred_sum: rewards[0],
            preferred: 1,
            other_sum: rewards[1],
            other: 1,
            correct: draw_counts_half(rewards[0] - rewards[1]),
            examples: 1,
        });
    }
    whole
}

/// 1 for a positive difference, 0 for a negative one, one half for none.
pub fn draw_counts_half(difference: f64) -> f64 {
    match difference {
        0.0 => 0.5,
        difference => f64::from(u8::from(difference > 0.0)),
    }
}

/// `ln σ(x)`.
pub(super) fn log_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

/// `σ(x)`.
pub(super) fn sigmoid(x: f64) -> f64 {
    log_sigmoid(x).exp()
}

/// `−(1 − ε)·ln σ(x) − ε·ln σ(−x)` and its derivative by `x`: the loss of a preference that is wrong with probability `ε`
/// (conservative DPO, Mitchell 2023).
pub(super) fn smoothed_log_loss(x: f64, smoothing: f64) -> (f64, f64) {
    let loss = -(1.0 - smoothing) * log_sigmoid(x) - smoothing * log_sigmoid(-x);
    (loss, smoothing * sigmoid(x) - (1.0 - smoothing) * sigmoid(-x))
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Facts, Objective};
    use super::*;

    /// Two pairs, with labels for objectives over single answers.
    pub(in super::super) fn losses() -> Vec<SequenceLoss> {
        let loss = |sum: f64, tokens: usize, reference: f64, is_desirable: bool| {
            let facts = Facts { reference, is_desirable, ..Facts::default() };
            SequenceLoss { sum, tokens, facts }
        };
        vec![loss(6.0, 4, 7.5, true), loss(9.0, 3, 8.0, false), loss(3.5, 5, 3.0, false), loss(2.0, 2, 2.5, true)]
    }

    /// The weights of `objective` against differences of its value.
    pub(in super::super) fn check_gradient(objective: &dyn Objective) {
        let losses = losses();
        let step = StepSize { tokens: 40, trained_tokens: 28, chosen_tokens: 18, sequences: 8, divergence: 0.3 };
        let share = objective.share(&losses, &step);
        assert_eq!(share.weights.len(), losses.len());
        for (index, weight) in share.weights.iter().enumerate() {
            const BY: f64 = 1e-5;
            let moved = |by: f64| {
                let mut losses = losses.clone();
                losses[index].sum += by;
                objective.share(&losses, &step).value
            };
            let slope = (moved(BY) - moved(-BY)) / (2.0 * BY);
            assert!((slope - weight).abs() < 1e-8, "sequence {index}: {weight}, and the slope is {slope}");
        }
    }

    #[test]
    fn the_sigmoid_is_right_far_out() {
        assert_eq!(log_sigmoid(-800.0), -800.0);
        assert_eq!((log_sigmoid(800.0), sigmoid(800.0), sigmoid(-800.0)), (0.0, 1.0, 0.0));
        assert!((sigmoid(0.7) - 1.0 / (1.0 + (-0.7f64).exp())).abs() < 1e-15);
        assert_eq!([0.1, 0.0, -0.1].map(draw_counts_half), [1.0, 0.5, 0.0]);
    }
}
