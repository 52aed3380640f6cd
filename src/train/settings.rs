//! The settings of training. Units are in the names (`warmup_steps`).
//!
//! A step is one update of the adapter: `accumulate_steps` micro-batches of `micro_batch_seqs` sequences.

use super::label_weights::LabelWeights;
use super::objective::ObjectiveKind;
use super::optimiser::OptimiserKind;
use super::schedule::{Schedule, ScheduleKind};
use super::score::EvalOn;
use crate::model::decoder::Recompute;
use crate::settings::{Describe, Limit, above, any, below, between, defaults, optional, section};

/// The largest seed: every whole number up to here survives a trip through JSON.
const MAX_SEED: u64 = 1 << 53;
/// More steps or epochs than anyone waits for, and still far from any overflow.
const MAX_STEPS: u64 = 1_000_000_000;

section! {
    /// How the adapter is trained.
    TrainSettings {
        /// The value that is minimised. `classify` needs texts with labels, all others but `sft` preferences: pairs of a chosen and a
        /// rejected answer, or for `kto` answers with labels.
        objective: ObjectiveKind = Take(ObjectiveKind::Sft), any();
        /// The strength of the tie to the reference in `dpo`, `ipo` and `kto` (0.1 where it is not given), the weight of the odds ratio in `orpo`
        /// (0.1), the scale of the rewards in `simpo` (2).
        beta: Option<f64> = Take(None), optional(above(0.0, 1e3));
        /// Under `dpo` and `simpo`: the probability that a preference in the data is wrong (conservative DPO, Mitchell 2023).
        preference_smoothing: f64 = Take(0.0), below(0.0, 0.5);
        /// Under `dpo` and `ipo`: the weight of the mean loss of a token of the chosen answers, which is added (Pang et al. 2024).
        rpo_alpha: f64 = Take(0.0), between(0.0..=1e3);
        /// Under `dpo`: log-probabilities are divided by the tokens of their answer; `beta` is then to be some ten times greater.
        length_normalised: bool = Take(false), any();
        /// Under `simpo`: the margin between the rewards of chosen and rejected answers that is aimed at (half of `beta` where it is
        /// not given).
        target_margin: Option<f64> = Take(None), optional(between(0.0..=1e3));
        /// Under `kto`: the weight of desirable answers (1 where it is not given).
        desirable_weight: Option<f64> = Take(None), optional(above(0.0, 1e3));
        /// Under `kto`: the weight of undesirable answers (1 where it is not given).
        undesirable_weight: Option<f64> = Take(None), optional(above(0.0, 1e3));
        /// Under `classify`: the weight of each label in the loss, scaled so that those of the training examples have the mean 1.
        /// `balanced` gives every label the same share.
        label_weights: LabelWeights = Take(LabelWeights::Equal), any_above_zero();
        /// Passes over the training examples.
        epochs: u64 = Take(1), between(1..=MAX_STEPS);
        /// Stop after this many steps, even within an epoch.
        max_steps: Option<u64> = Take(None), optional(between(1..=MAX_STEPS));
        /// Sequences in one forward and backward pass; a pair of preferences counts once.
        micro_batch_seqs: usize = Take(4), between(1..=65_536);
        /// Micro-batches whose gradients make one step; their sum is divided once, by the trained tokens.
        accumulate_steps: usize = Take(1), between(1..=65_536);
        /// The peak learning rate.
        learning_rate: f64 = Take(2e-4), above(0.0, 10.0);
        /// The rate of `B` over `learning_rate`, which is then the rate of `A` alone (LoRA+, Hayou et al. 2024, who advise 16
        /// with a lower `learning_rate`).
        b_rate_ratio: f64 = Take(1.0), above(0.0, 1e4);
        /// The learning rate after the warm-up.
        schedule: ScheduleKind = Take(ScheduleKind::Linear), any();
        /// Steps over which the learning rate rises from 0 to its peak.
        warmup_steps: u64 = Take(0), between(0..=MAX_STEPS);
        /// Instead of `warmup_steps`: this share of the run's steps, rounded up.
        warmup_share: Option<f64> = Take(None), optional(between(0.0..=1.0));
        /// The share of the run's steps at its end in which the schedule `warmup-stable-decay` falls to 0.
        decay_share: f64 = Take(0.2), between(0.0..=1.0);
        /// The rule that turns gradients into updates.
        optimiser: OptimiserKind = Take(OptimiserKind::AdamW), any();
        /// The decoupled weight decay of every optimiser: `p ← p·(1 − rate·weight_decay)` before the update.
        weight_decay: f64 = Take(0.0), between(0.0..=1.0);
        /// The gradient is scaled down to this global norm; 0 turns clipping off.
        max_grad_norm: f64 = Take(1.0), between(0.0..=1e6);
        /// The decay of the mean of gradients in AdamW; in Lion, that of the average whose sign is taken.
        beta1: f64 = Take(0.9), below(0.0, 1.0);
        /// The decay of the mean of squared gradients in AdamW (0.999 where it is not given); in Lion, that of the mean of
        /// gradients (0.99).
        beta2: Option<f64> = Take(None), optional(below(0.0, 1.0));
        /// The share of every target that is spread evenly over the vocabulary while training (label smoothing, Szegedy et al.
        /// 2016). The training loss that is reported contains it, the validation loss does not.
        label_smoothing: f64 = Take(0.0), below(0.0, 1.0);
        /// The strength of uniform noise on the embeddings while training: `±neftune_alpha / √(tokens · width)` of each sequence
        /// (NEFTune, Jain et al. 2024, who used 5 to 15); 0 turns it off.
        neftune_alpha: f64 = Take(0.0), between(0.0..=1e3);
        /// Steps between two evaluations of the validation examples, or without any between two saves of the adapter; there is
        /// always one at the end.
        eval_steps: u64 = Take(50), between(1..=MAX_STEPS);
        /// Steps between two checkpoints, from which `--resume` goes on; none by default. `checkpoint_minutes` counts beside it.
        checkpoint_steps: Option<u64> = Take(None), optional(between(1..=MAX_STEPS));
        /// Minutes after which there is a checkpoint, at the end of the step: the most work that a crash can cost. 0 for none.
        checkpoint_minutes: f64 = Take(2.0), between(0.0..=10_080.0);
        /// The checkpoints that are kept; an older one serves where the newest is damaged.
        keep_checkpoints: usize = Take(2), between(1..=1_000_000);
        /// Steps in a row whose loss or gradient is not finite, after which the run ends. Such a step changes nothing.
        max_bad_steps: u64 = Take(3), between(1..=MAX_STEPS);
        /// The measure of the validation examples that chooses the best adapter and stops early. `exact_match` answers
        /// `eval.exact_match_examples` prompts greedily at every evaluation, which takes its time.
        eval_on: EvalOn = Take(EvalOn::Loss), any();
        /// The activations that are computed again in the backward pass to save memory.
        recompute: Recompute = Take(Recompute::None), any();
        /// Decides the adapter's first values, the order of examples, dropout and the held-out share.
        seed: u64 = Take(0), between(0..=MAX_SEED);
        /// Stop when the validation loss no longer falls, or what `eval_on` names no longer rises.
        early_stopping: Option<EarlyStopping> = Take(None), any();
    }
}

section! {
    /// When to stop because the validation loss no longer falls.
    EarlyStopping {
        /// Stop after this many evaluations without improvement.
        patience_evals: u64 = Take(3), between(1..=MAX_STEPS);
        /// The validation loss must fall by more than this to count as an improvement; under `eval_on = "exact_match"` or
        /// `"accuracy"`, the share must rise by more.
        min_delta: f64 = Take(0.0), between(0.0..=1e6);
    }
}

/// Every weight above 0.
fn any_above_zero() -> Limit<LabelWeights> {
    Limit::new(LabelWeights::expected(), |weights: &LabelWeights| match weights {
        LabelWeights::Equal | LabelWeights::Balanced => true,
        LabelWeights::Given(given) => given.iter().all(|(_, weight)| *weight > 0.0 && weight.is_finite()),
    })
}

impl TrainSettings {
    /// `beta2`, or the default of the optimiser.
    pub fn beta2(&self) -> f64 {
        self.beta2.unwrap_or(match self.optimiser {
            OptimiserKind::AdamW | OptimiserKind::Adafactor => 0.999,
            OptimiserKind::Lion => 0.99,
        })
    }

    /// The steps of the warm-up of a run of `total_steps`, as asked.
    pub fn warmup_steps(&self, total_steps: u64) -> u64 {
        self.warmup_share.map_or(self.warmup_steps, |share| (share * total_steps as f64).ceil() as u64)
    }

    /// The learning rates of a run of `total_steps`.
    pub fn schedule(&self, total_steps: u64) -> Schedule {
        let warmup_steps = self.warmup_steps(total_steps);
        let decay_steps = (self.decay_share * total_steps as f64).ceil() as u64;
        Schedule { kind: self.schedule, peak: self.learning_rate, warmup_steps, decay_steps, total_steps }
    }
}

impl Default for TrainSettings {
    fn default() -> Self {
        defaults()
    }
}
