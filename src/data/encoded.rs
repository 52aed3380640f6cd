//! An encoded example: token ids and the mask of what is trained.

/// An encoded example.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Same length as `ids`: whether loss is taken on this token. Derived from positions, never from ids.
    pub trained: Vec<bool>,
    /// Turns of the assistant that are not trained: the template shows them differently in the whole conversation.
    pub untrained_turns: usize,
    /// How often an epoch of training shows the example, 1 unless its source has another weight.
    pub weight: f64,
}

impl Encoded {
    /// The token ids, and which of them are trained on, as `Batch::join` takes them.
    pub fn parts(&self) -> (&[u32], &[bool]) {
        (&self.ids, &self.trained)
    }

    /// No tokens yet.
    pub(super) fn new() -> Self {
        Self { ids: Vec::new(), trained: Vec::new(), untrained_turns: 0, weight: 1.0 }
    }

    /// Appends tokens, all of them trained or none.
    pub(super) fn push(&mut self, ids: &[u32], trained: bool) {
        self.ids.extend_from_slice(ids);
        self.trained.resize(self.ids.len(), trained);
    }

    /// Tokens that loss is taken on. The first token of a sequence has nothing before it to be predicted from.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|trained| **trained).count()
    }
}
