//! The stages of a pass, one layer after another and then the head, whose weights need not stay in memory: those of a streamed decoder are
//! read from the base's files ahead of a stage, and let go after it.

use super::decoder::Decoder;
use crate::ops::frozen::FrozenWeight;

/// Weights in use. Their memory is returned when this is dropped.
pub(super) struct InUse<'a>(Vec<&'a FrozenWeight>);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|weight| weight.release());
    }
}

impl Decoder {
    /// Whether the weights of a layer are in memory only while it is needed.
    pub fn is_streamed(&self) -> bool {
        self.fetcher.is_some()
    }

    /// The number of the head among the stages.
    pub(super) fn head_stage(&self) -> usize {
        self.layers.len()
    }

    /// Begins a stage, for as long as the result is held; the weights of stage `next` are read meanwhile. `None` where all weights stay
    /// in memory.
    pub(super) fn stage(&self, stage: usize, next: Option<usize>) -> Option<InUse<'_>> {
        let fetcher = self.fetcher.as_ref()?;
        next.into_iter().flat_map(|next| self.weights_of(next)).for_each(|weight| weight.fetch(fetcher));
        Some(InUse(self.weights_of(stage)))
    }

    fn weights_of(&self, stage: usize) -> Vec<&FrozenWeight> {
        match self.layers.get(stage) {
            Some(layer) => layer.weights().collect(),
            None => vec![&self.head.weight],
        }
    }
}
