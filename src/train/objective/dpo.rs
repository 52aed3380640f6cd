//! Direct preference optimisation, against a reference model (Rafailov et al. 2023, equation 7), and its variants.
//!
//! With `h = ln π(y_w|x)/π_ref(y_w|x) − ln π(y_l|x)/π_ref(y_l|x)` for the chosen answer `y_w` and the rejected `y_l`:
//!
//! - DPO: `L = −ln σ(β·h)`; with label smoothing `ε`, `−(1 − ε)·ln σ(β·h) − ε·ln σ(−β·h)` (Mitchell 2023).
//! - Length-normalised DPO: each log-ratio is divided by the tokens of its answer first (Meng et al. 2024, table 3).
//! - IPO: `L = (h − 1/(2β))²` with log-ratios by token (Azar et al. 2023, equation 17; by token as its authors do).
//! - With `rpo_alpha`, `α` times the mean loss of a token of the chosen answers is added (Pang et al. 2024).
//!
//! The reward of an answer is `β·ln π(y|x)/π_ref(y|x)`. The loss of a step is the mean over its pairs.

use super::pairs::{PairShare, mean_over_pairs, smoothed_log_loss};
use super::{Objective, SequenceLoss, Share, StepSize};

/// The loss of the difference of the two log-ratios.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PairLoss {
    /// The log-loss of a classifier.
    Sigmoid {
        /// The probability that a preference is wrong.
        smoothing: f64,
        /// Whether log-ratios are by token.
        length_normalised: bool,
    },
    /// The squared distance from `1/(2β)`, with log-ratios by token.
    Squared,
}

/// Direct preference optimisation.
#[derive(Debug, Clone, Copy)]
pub struct Dpo {
    /// The strength of the tie to the reference.
    pub beta: f64,
    /// The loss.
    pub loss: PairLoss,
    /// The weight of the loss of the chosen answers' tokens.
    pub rpo_alpha: f64,
}

impl Objective for Dpo {
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share {
        let Self { beta, loss, rpo_alpha } = *self;
        let is_by_token = !matches!(loss, PairLoss::Sigmoid { length_normalised: false, .. });
        let divisor = |sequence: &SequenceLoss| if is_by_token { sequence.tokens as f64 } else { 1.0 };
        mean_over_pairs(losses, step, rpo_alpha, |chosen, rejected| {
            let divisors = [divisor(chosen), divisor(rejected)];
            let difference = chosen.log_ratio() / divisors[0] - rejected.log_ratio() / divisors[1];
            let (loss, slope) = match loss {
                PairLoss::Sigmoid { smoothing, .. } => {
                    let (loss, slope) = smoothed_log_loss(beta * difference, smoothing);
                    (loss, beta * slope)
                }
                PairLoss::Squared => {
                    let off = difference - 1.0 / (2.0 * beta);
                    (off * off, 2.0 * off)
                }
            };
            PairShare {
                loss,
                weights: [-slope / divisors[0], slope / divisors[1]],
                rewards: [beta * chosen.log_ratio(), beta * rejected.log_ratio()],
            }
        })
    }

    fn has_reference(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::tests::{check_gradient, losses};
    use super::*;

    fn dpo(loss: PairLoss, rpo_alpha: f64) -> Dpo {
        Dpo { beta: 0.7, loss, rpo_alpha }
    }

    #[test]
    fn weights_are_the_derivatives() {
        for length_normalised in [false, true] {
            for smoothing in [0.0, 0.2] {
                check_gradient(&dpo(PairLoss::Sigmoid { smoothing, length_normalised }, 0.0));
            }
        }
        check_gradient(&dpo(PairLoss::Sigmoid { smoothing: 0.0, length_normalised: false }, 0.4));
        check_gradient(&dpo(PairLoss::Squared, 0.0));
    }

    #[test]
    fn a_model_like_its_reference_has_the_loss_of_a_coin() {
        let mut losses = losses();
        losses.iter_mut().for_each(|loss| loss.facts.reference = loss.sum);
        let size = StepSize::of_example(&losses, 0.0);
        let share = dpo(PairLoss::Sigmoid { smoothing: 0.0, length_normalised: false }, 0.0).share(&losses, &size);
        assert!((share.value - 2f64.ln()).abs() < 1e-15);
        assert_eq!((share.rewards.margin(), share.rewards.accuracy()), (Some(0.0), Some(0.5)));
    }

    #[test]
    fn rewards_compare_the_two_answers() {
        let losses = losses();
        let size = StepSize::of_example(&losses, 0.0);
        let share = dpo(PairLoss::Squared, 0.0).share(&losses, &size);
        // Log-ratios of 1.5 and −1 in the first pair, −0.5 and 0.5 in the second.
        assert!((share.rewards.margin().expect("both") - 0.7 * (1.5 + 1.0 - 0.5 - 0.5) / 2.0).abs() < 1e-12);
        assert_eq!(share.rewards.accuracy(), Some(0.5));
    }
}
