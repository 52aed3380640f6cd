//! An encoded example: token ids and the mask of what is trained.

use serde::{Deserialize, Serialize};

use crate::model::vision::features::has_features;

/// An encoded example: one sequence, or two where it is a pair of preferences.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Token ids; of a pair, those of the chosen sequence and then those of the rejected one.
    pub ids: Vec<u32>,
    /// Same length as `ids`: whether loss is taken on this token. Derived from positions, never from ids.
    pub trained: Vec<bool>,
    /// Turns of the assistant that are not trained: the template shows them differently in the whole conversation.
    pub untrained_turns: usize,
    /// How often an epoch of training shows the example, 1 unless its source has another weight.
    pub weight: f64,
    /// The judgement on its answer.
    pub judged: Judged,
}

/// The judgement on the answer of an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Judged {
    /// None: the answer is learned.
    #[default]
    Not,
    /// The first answer is preferred to that of the second sequence, which begins at this index of the ids.
    Above(usize),
    /// The answer is desirable or not.
    Labelled(bool),
}

impl Encoded {
    /// Of each sequence the token ids, and which of them are trained on, as `Batch::join` takes them.
    pub fn sequences(&self) -> impl Iterator<Item = (&[u32], &[bool])> {
        let at = self.second_begins().unwrap_or(self.ids.len());
        let second = self.second_begins().map(|at| (&self.ids[at..], &self.trained[at..]));
        std::iter::once((&self.ids[..at], &self.trained[..at])).chain(second)
    }

    /// The index in the ids at which the second sequence begins; `None` without one.
    fn second_begins(&self) -> Option<usize> {
        match self.judged {
            Judged::Above(at) => Some(at),
            Judged::Not | Judged::Labelled(_) => None,
        }
    }

    /// The number of its label, where it is a text with one ([`Example::Class`](super::Example::Class)): it stands in the place of
    /// the last token.
    pub fn label(&self) -> usize {
        self.ids.last().map_or(0, |number| *number as usize)
    }

    /// The tokens of its longest sequence.
    pub fn longest_tokens(&self) -> usize {
        self.sequences().map(|(ids, _)| ids.len()).max().unwrap_or(0)
    }

    /// No tokens yet.
    pub(super) fn new() -> Self {
        Self { ids: Vec::new(), trained: Vec::new(), untrained_turns: 0, weight: 1.0, judged: Judged::Not }
    }

    /// Appends tokens, all of them trained or none.
    pub(super) fn push(&mut self, ids: &[u32], trained: bool) {
        self.ids.extend_from_slice(ids);
        self.trained.resize(self.ids.len(), trained);
    }

    /// The pair in which its sequence is preferred to that of `other`.
    pub(super) fn above(mut self, other: Self) -> Self {
        self.judged = Judged::Above(self.ids.len());
        self.ids.extend(other.ids);
        self.trained.extend(other.trained);
        self.untrained_turns += other.untrained_turns;
        self
    }

    /// Takes tokens from the left of the prompt until no sequence has more than `max`, of a pair from both alike, but for the token
    /// `begin` of the tokenizer at the start; false if the prompt is too short for that.
    pub(super) fn cut_prompt(&mut self, begin: Option<u32>, max: usize) -> bool {
        let kept = usize::from(begin.is_some() && self.ids.first().copied() == begin);
        let excess = self.longest_tokens() - max;
        let is_too_short = |(ids, trained): (&[u32], &[bool])| {
            let prompt = trained.iter().position(|trained| *trained).unwrap_or(ids.len());
            // One token must stay before the first trained one, to predict it from.
            kept + excess + usize::from(kept == 0) > prompt
        };
        if self.sequences().any(is_too_short) {
            return false;
        }
        // A picture that is cut is none.
        let is_cut = |(ids, _): (&[u32], &[bool])| has_features(&ids[kept..kept + excess]);
        if self.sequences().any(is_cut) {
            return false;
        }
        // The second sequence first: it moves with what is taken from the first.
        let begins = self.second_begins().into_iter().chain([0]);
        for first in begins {
            let cut = first + kept..first + kept + excess;
            self.ids.drain(cut.clone());
            self.trained.drain(cut);
        }
        if let Judged::Above(second) = &mut self.judged {
            *second -= excess;
        }
        true
    }

    /// Tokens that loss is taken on, of each sequence.
    pub fn trained_by_sequence(&self) -> impl Iterator<Item = usize> {
        // The first token of a sequence has nothing before it to be predicted from.
        self.sequences().map(|(_, trained)| trained.iter().skip(1).filter(|trained| **trained).count())
    }

    /// Tokens that loss is taken on.
    pub fn trained_tokens(&self) -> usize {
        self.trained_by_sequence().sum()
    }
}
