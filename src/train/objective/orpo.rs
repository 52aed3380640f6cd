//! Odds ratio preference optimisation, without a reference (Hong et al. 2024, equations 6 and 7).
//!
//! `L = NLL(y_w) − β·ln σ(ln odds(y_w|x) − ln odds(y_l|x))` with `odds(y|x) = p/(1 − p)` and `ln p` the mean log-probability of
//! a token of the answer. `NLL` is the mean loss of a trained token of the chosen answers, over the tokens of the step; the
//! prompt has no part in it. The reward of an answer is `β·ln p`.

use super::pairs::{PairShare, log_sigmoid, mean_over_pairs, sigmoid};
use super::{Objective, SequenceLoss, Share, StepSize};

/// Odds ratio preference optimisation.
#[derive(Debug, Clone, Copy)]
pub struct Orpo {
    /// The weight of the odds ratio; the paper's `λ`.
    pub beta: f64,
}

impl Objective for Orpo {
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share {
        let beta = self.beta;
        mean_over_pairs(losses, step, 1.0, |chosen, rejected| {
            let log_p = [chosen, rejected].map(SequenceLoss::mean_log_probability);
            let [of_chosen, of_rejected] = log_p.map(|log_p| log_p - log_one_minus_exp(log_p));
            let log_odds_ratio = of_chosen - of_rejected;
            // d ln odds / d ln p = 1 / (1 − p).
            let slope = -beta * sigmoid(-log_odds_ratio);
            let by_log_p = log_p.map(|log_p| slope / -log_p.exp_m1());
            PairShare {
                loss: -beta * log_sigmoid(log_odds_ratio),
                weights: [-by_log_p[0] / chosen.tokens as f64, by_log_p[1] / rejected.tokens as f64],
                rewards: log_p.map(|log_p| beta * log_p),
            }
        })
    }
}

/// `ln(1 − eˣ)` for `x < 0`, exact near both ends (Mächler 2012).
fn log_one_minus_exp(x: f64) -> f64 {
    if x < -std::f64::consts::LN_2 { (-x.exp()).ln_1p() } else { (-x.exp_m1()).ln() }
}

#[cfg(test)]
mod tests {
    use super::super::pairs::tests::{check_gradient, losses};
    use super::*;

    #[test]
    fn weights_are_the_derivatives() {
        check_gradient(&Orpo { beta: 0.3 });
    }

    #[test]
    fn without_the_odds_ratio_it_is_the_loss_of_the_chosen_answers() {
        let losses = losses();
        let size = StepSize { chosen_tokens: 9, ..StepSize::of_example(&losses, 0.0) };
        let share = Orpo { beta: 0.0 }.share(&losses, &size);
        assert!((share.value - 9.5 / 9.0).abs() < 1e-12);
        assert_eq!(share.weights, [1.0 / 9.0, 0.0, 1.0 / 9.0, 0.0]);
        assert!((log_one_minus_exp(-1e-12) - 1e-12f64.ln()).abs() < 1e-9);
    }
}
