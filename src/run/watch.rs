//! The progress of a run, as it is reported to a command.

use super::samples::StepSample;
use crate::pull;
use crate::train::Event;

/// The stages of a run, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The base is found, fetched if need be, and opened.
    OpenBase,
    /// The data files are read.
    ReadData,
    /// The examples become tokens.
    Encode,
    /// The data is looked at.
    Check,
    /// The weights are loaded.
    LoadWeights,
    /// A few steps are timed.
    Probe,
    /// The sample prompts are answered by the base.
    SampleBefore,
    /// The adapter is trained.
    Train,
    /// Base and adapter are measured on the data that training has not measured them on.
    Judge,
    /// The sample prompts are answered with the adapter.
    SampleAfter,
}

impl Stage {
    /// The stage in words.
    pub fn name(self) -> &'static str {
        match self {
            Self::OpenBase => "opening the base",
            Self::ReadData => "reading the data",
            Self::Encode => "encoding the examples",
            Self::Check => "looking at the data",
            Self::Probe => "timing a few steps",
            Self::LoadWeights => "loading the weights",
            Self::SampleBefore => "answering the sample prompts without the adapter",
            Self::Train => "training",
            Self::Judge => "measuring base and adapter for the verdict",
            Self::SampleAfter => "answering the sample prompts with the adapter",
        }
    }
}

/// The receiver of a run's progress. A method that is left out ignores what it would get; `()` ignores everything.
pub trait Watch {
    /// A stage begins.
    fn stage(&mut self, _stage: Stage) {}
    /// A download goes on.
    fn pull(&mut self, _event: pull::Event<'_>) {}
    /// The examples are being encoded: examples done, examples in all.
    fn encoding(&mut self, _done: usize, _total: usize) {}
    /// The base is being loaded: tensors done, tensors in all.
    fn loading(&mut self, _done: usize, _total: usize) {}
    /// A line for the user.
    fn notice(&mut self, _text: &str) {}
    /// The training goes on.
    fn event(&mut self, _event: &Event<'_>) {}
    /// An evaluation goes on: examples done, examples in all.
    fn evaluating(&mut self, _done: usize, _total: usize) {}
    /// Prompts are being answered: answers done, prompts in all.
    fn answering(&mut self, _done: usize, _total: usize) {}
    /// The adapter of a step has answered some prompts.
    fn samples(&mut self, _step: u64, _samples: &[StepSample]) {}
}

impl Watch for () {}
