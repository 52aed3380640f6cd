//! The events of a training run.

use super::checkpoint::State;
use super::preference::Preferences;
use super::step::StepReport;
use crate::adapter::host::HostAdapter;
use crate::eval::classes::ClassFigures;
use crate::nn::Adapter;

/// The events of a run, in order.
pub enum Event<'a> {
    /// Before the first step.
    Begin {
        /// Steps of the run, unless it stops early.
        total_steps: u64,
        /// Steps that an earlier process has done.
        steps_done: u64,
        /// Trainable values.
        parameters: usize,
    },
    /// After each step.
    Step {
        /// Its number, from 1.
        step: u64,
        /// The epoch, from 0.
        epoch: u64,
        /// The rate of the update.
        learning_rate: f64,
        /// Loss, gradient and tokens. Where they are not finite, the step changed nothing.
        report: &'a StepReport,
        /// The training sequences of the step that gave no finite loss; all of its sequences where only the gradient is not
        /// finite; empty for a good step.
        bad_sequences: &'a [usize],
        /// The time that the step took, in seconds.
        seconds: f64,
        /// The peak of resident memory so far.
        peak_bytes: u64,
    },
    /// During an evaluation.
    Evaluating {
        /// Steps done.
        step: u64,
        /// Examples done.
        done: usize,
        /// Examples in all.
        total: usize,
    },
    /// After each evaluation; the first, at step 0, is of the adapter as it started.
    Evaluation {
        /// Steps done.
        step: u64,
        /// Mean over the trained tokens, or of an objective over preferences its mean over the examples; infinite where the adapter gives none that is finite.
        valid_loss: f64,
        /// Those tokens.
        tokens: usize,
        /// Of these, the ones than which the model found no other token likelier.
        correct_tokens: usize,
        /// The share of prompts answered exactly, where that chooses the best adapter.
        exact_match: Option<f64>,
        /// The measures of preferences, where the objective compares answers.
        preferences: Option<&'a Preferences>,
        /// The measures of labels, where the adapter is a classifier.
        classes: Option<&'a ClassFigures>,
        /// Whether it is the best adapter so far.
        is_best: bool,
        /// The adapter that was evaluated, on the decoder's device.
        adapter: &'a Adapter,
    },
    /// The adapter is the best so far (without validation data: the last): keep it.
    Best {
        /// Steps done.
        step: u64,
        /// The adapter after them.
        adapter: &'a HostAdapter,
    },
    /// The state is to be saved: a run that goes on from it does as this one does.
    Checkpoint {
        /// The state.
        state: &'a State,
    },
    /// Early stopping ended the run after this step.
    Stopped {
        /// Steps done.
        step: u64,
        /// Evaluations since the last improvement.
        evaluations_without_improvement: u64,
    },
}
