//! Differentially private training: its settings, the guarantee that they give, and the noise that keeps it.

pub mod accountant;
pub mod mechanism;

use std::fmt;

use serde::Serialize;

pub use mechanism::{Key, Mechanism};

use crate::error::{Error, Place, Result, counted};
use crate::settings::{above, between, optional, section};
use accountant::{Steps, noise_multiplier_for};

section! {
    /// Differentially private training (DP-SGD), which bounds what the adapter can tell about any single training example
    /// ([privacy.md](privacy.md)). Without this section there is none.
    PrivacySettings {
        /// The bound ε, for the whole run, which decides the noise. Either this or `noise_multiplier`.
        target_epsilon: Option<f64> = Take(None), optional(above(0.0, 1e3));
        /// The standard deviation of the noise on the sum of a step's gradients, over `clip_norm`.
        noise_multiplier: Option<f64> = Take(None), optional(above(0.0, 1e3));
        /// The probability δ with which the bound may not hold: below 1 over the number of training examples.
        delta: f64 = Refuse, above(0.0, 0.1);
        /// The gradient of each example is scaled down to this norm. It takes the place of `train.max_grad_norm`.
        clip_norm: f64 = Take(1.0), above(0.0, 1e6);
        /// The run is refused where the noise of all its steps has more than so many times the length that the sum of all gradients could have.
        max_noise_to_signal: f64 = Take(1.0), between(0.01..=1e6);
    }
}

/// The guarantee of a run: adding or removing one training example changes the probability of any adapter by a factor of at most `e^ε`, but
/// for a probability of `δ`. It holds for every adapter and checkpoint of the run, however many steps it has come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Guarantee {
    /// ε.
    pub epsilon: f64,
    /// δ.
    pub delta: f64,
    /// The standard deviation of the noise over the clipping norm.
    pub noise_multiplier: f64,
    /// The largest norm of the gradient of an example.
    pub clip_norm: f64,
    /// The probability with which a step has an example.
    pub sample_rate: f64,
    /// The steps that are accounted for: all that the run may have.
    pub steps: u64,
    /// The expected number of examples of a step.
    pub batch_examples: usize,
    /// The training examples, whose number is taken as public.
    pub examples: usize,
    /// The accountant.
    pub accountant: &'static str,
    /// The thing whose presence is protected.
    pub unit: &'static str,
    /// The expected length of a step's noise over the greatest possible length of the sum of its gradients, `σ·√d / B` for `d` trained
    /// values.
    pub noise_to_signal_step: f64,
    /// The same for all steps together, of which noise adds up by the root of their number: `σ·√d / (B·√steps)`.
    pub noise_to_signal_run: f64,
}

/// The size of a private run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RunSize {
    /// Training examples.
    pub examples: usize,
    /// The expected number of examples of a step.
    pub batch_examples: usize,
    /// Steps.
    pub steps: u64,
    /// Trained values.
    pub parameters: usize,
}

impl Guarantee {
    /// The guarantee that `settings` give a run of this size.
    ///
    /// # Errors
    /// Input: more examples in a step than there are; a `delta` that allows to publish an example; a target that no noise reaches; a run that
    /// is all noise.
    pub fn of(settings: &PrivacySettings, size: RunSize) -> Result<Self> {
        let RunSize { examples, batch_examples, steps, parameters } = size;
        let PrivacySettings { target_epsilon, noise_multiplier, delta, clip_norm, max_noise_to_signal } = *settings;
        if batch_examples > examples {
            let message = format!(
                "× `train.accumulate_steps` is {batch_examples}, and there are {}",
                counted(examples, "training example")
            );
            return Err(Error::input(Place::setting("train.micro_batch_seqs"), message)
                .hint("a private step draws some of the examples: take fewer"));
        }
        if delta * examples as f64 >= 1.0 {
            let message =
                format!("is {delta}: with {examples} training examples it allows that one of them is published");
            return Err(Error::input(Place::setting("privacy.delta"), message).hint(format!(
                "expected less than 1/{examples} = {:.1e}, better a tenth of it",
                1.0 / examples as f64
            )));
        }
        let sample_rate = batch_examples as f64 / examples as f64;
        let noise_multiplier = match (noise_multiplier, target_epsilon) {
            (Some(noise), _) => noise,
            (None, target) => {
                let target = target.unwrap_or_default();
                noise_multiplier_for(target, delta, sample_rate, steps).ok_or_else(|| {
                    let message = format!("is {target}, which no noise reaches in {}", counted(steps, "step"));
                    Error::input(Place::setting("privacy.target_epsilon"), message)
                        .hint("raise it, or `privacy.delta`, or train for fewer steps")
                })?
            }
        };
        let (epsilon, _) = Steps { sample_rate, noise_multiplier, count: steps }.epsilon(delta);
        let noise_to_signal_step = noise_multiplier * (parameters as f64).sqrt() / batch_examples as f64;
        let noise_to_signal_run = noise_to_signal_step / (steps.max(1) as f64).sqrt();
        let guarantee = Self {
            epsilon,
            delta,
            noise_multiplier,
            clip_norm,
            sample_rate,
            steps,
            batch_examples,
            examples,
            accountant: "rdp",
            unit: "one training example",
            noise_to_signal_step,
            noise_to_signal_run,
        };
        if noise_to_signal_run > max_noise_to_signal {
            let message = format!(
                "leaves nothing to learn from: over {} the noise is {noise_to_signal_run:.2} times as long as the sum of all gradients \
                 could be (ε = {epsilon:.3}, noise multiplier {noise_multiplier:.3}, {parameters} trained values, {batch_examples} examples a \
                 step)",
                counted(steps, "step")
            );
            return Err(Error::input(Place::setting("privacy"), message).hint(
                "private training wants thousands of examples, hundreds of them a step (`train.accumulate_steps`), and a small adapter \
                 (`adapter.rank`, `adapter.targets`); `privacy.max_noise_to_signal` sets the limit",
            ));
        }
        Ok(guarantee)
    }

    /// The ratio of noise and signal, in words.
    pub fn ratio(&self) -> String {
        format!(
            "the noise of a step is {:.2} times as long as the sum of its gradients can be, that of all steps {:.2} times",
            self.noise_to_signal_step, self.noise_to_signal_run
        )
    }
}

impl fmt::Display for Guarantee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { epsilon, delta, noise_multiplier, clip_norm, sample_rate, steps, .. } = self;
        write!(
            f,
            "(ε = {epsilon:.3}, δ = {delta:e})-differentially private for {}: noise multiplier {noise_multiplier:.4}, clipping norm \
             {clip_norm}, sampling rate {sample_rate:.5}, at most {}",
            self.unit,
            counted(*steps, "step")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> PrivacySettings {
        PrivacySettings {
            target_epsilon: None,
            noise_multiplier: Some(1.5),
            delta: 1e-5,
            clip_norm: 1.0,
            max_noise_to_signal: 1.0,
        }
    }

    #[test]
    fn a_guarantee_has_the_figures_of_its_run() {
        let size = RunSize { examples: 1000, batch_examples: 64, steps: 300, parameters: 900_000 };
        let guarantee = Guarantee::of(&PrivacySettings { delta: 1e-4, max_noise_to_signal: 2.0, ..settings() }, size);
        let guarantee = guarantee.expect("possible");
        // The third row of the accountant's test.
        assert!((guarantee.epsilon - 3.628_084_418).abs() < 1e-6, "{guarantee}");
        let expected = 1.5 * 900_000f64.sqrt() / 64.0;
        assert!((guarantee.noise_to_signal_step - expected).abs() < 1e-9);
        assert!((guarantee.noise_to_signal_run - expected / 300f64.sqrt()).abs() < 1e-9);
        let text = guarantee.to_string();
        assert!(text.starts_with("(ε = 3.628, δ = 1e-4)-differentially private for one training example"), "{text}");
    }

    #[test]
    fn a_target_decides_the_noise() {
        let size = RunSize { examples: 10_000, batch_examples: 160, steps: 600, parameters: 10_000 };
        let target = PrivacySettings { target_epsilon: Some(8.0), noise_multiplier: None, ..settings() };
        let guarantee = Guarantee::of(&target, size).expect("possible");
        assert!((guarantee.noise_multiplier - 0.659_484_863_281_25).abs() < 1e-9 && guarantee.epsilon <= 8.0);
    }

    #[test]
    fn hopeless_runs_are_refused_with_the_reason() {
        let size = RunSize { examples: 500, batch_examples: 64, steps: 80, parameters: 920_000 };
        let refused = |settings: PrivacySettings, size| {
            let error = Guarantee::of(&settings, size).expect_err("refused");
            assert_eq!(error.exit_code(), 2);
            error.to_string()
        };
        let text = refused(settings(), size);
        assert!(text.contains("over 80 steps the noise is 2.51 times as long as the sum of all gradients"), "{text}");
        let text = refused(PrivacySettings { delta: 0.002, ..settings() }, size);
        assert!(
            text.contains("is 0.002: with 500 training examples it allows that one of them is published"),
            "{text}"
        );
        let text = refused(settings(), RunSize { examples: 50, ..size });
        assert!(text.contains("is 64, and there are 50 training examples"), "{text}");
        let target = PrivacySettings { target_epsilon: Some(1e-6), noise_multiplier: None, ..settings() };
        assert!(refused(target, size).contains("is 0.000001, which no noise reaches in 80 steps"));
    }
}
