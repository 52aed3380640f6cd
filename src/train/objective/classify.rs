//! Classification: the cross entropy of the labels.
//!
//! `L = Σ w(y)·(−ln p(y|x)) / N` over the `N` texts `x` with labels `y` of a step. The weights `w` have the mean 1 over the training
//! examples ([`LabelWeights`](crate::train::label_weights::LabelWeights)), so that the loss does not depend on which labels a step
//! happens to have.

use super::{Objective, Rewards, SequenceLoss, Share, StepSize};

/// Classification.
#[derive(Debug, Clone, Copy, Default)]
pub struct Classify;

impl Objective for Classify {
    fn share(&self, losses: &[SequenceLoss], step: &StepSize) -> Share {
        let weights: Vec<f64> = losses.iter().map(|loss| loss.facts.weight / step.sequences as f64).collect();
        let value = losses.iter().zip(&weights).map(|(loss, weight)| weight * loss.sum).sum();
        Share { value, weights, rewards: Rewards::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Facts;
    use super::super::pairs::tests::{check_gradient, losses};
    use super::*;

    #[test]
    fn every_text_has_the_weight_of_its_label() {
        check_gradient(&Classify);
        let loss = |sum: f64, weight: f64| SequenceLoss { sum, tokens: 1, facts: Facts { weight, ..Facts::default() } };
        let losses = [loss(2.0, 0.5), loss(3.0, 1.5)];
        let share = Classify.share(&losses, &StepSize { sequences: 4, ..StepSize::of_example(&losses, 0.0) });
        assert_eq!((share.value, share.weights), ((1.0 + 4.5) / 4.0, vec![0.125, 0.375]));
    }

    #[test]
    fn without_weights_it_is_the_mean_loss() {
        let losses = losses();
        let share = Classify.share(&losses, &StepSize::of_example(&losses, 0.0));
        assert!((share.value - losses.iter().map(|loss| loss.sum).sum::<f64>() / 4.0).abs() < 1e-12);
    }
}
