//! The progress of a run, as it is reported to a command.

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
    /// The weights are loaded.
    LoadWeights,
    /// The sample prompts are answered by the base.
    SampleBefore,
    /// The adapter is trained.
    Train,
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
            Self::LoadWeights => "loading the weights",
            Self::SampleBefore => "answering the sample prompts without the adapter",
            Self::Train => "training",
            Self::SampleAfter => "answering the sample prompts with the adapter",
        }
    }
}

/// The receiver of a run's progress.
pub trait Watch {
    /// A stage begins.
    fn stage(&mut self, stage: Stage);
    /// A download goes on.
    fn pull(&mut self, event: pull::Event<'_>);
    /// The examples are being encoded: examples done, examples in all.
    fn encoding(&mut self, done: usize, total: usize);
    /// The base is being loaded: tensors done, tensors in all.
    fn loading(&mut self, done: usize, total: usize);
    /// A line for the user.
    fn notice(&mut self, text: &str);
    /// The training goes on.
    fn event(&mut self, event: &Event<'_>);
}
