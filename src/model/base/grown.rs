//! A base whose vocabulary has grown: the embedding and the head have rows that no file holds.

use super::BaseFiles;
use crate::files::{Bytes, RawTensor};

impl BaseFiles {
    /// The same base with an embedding and a head of at least `tokens` rows. The further rows are zero: an adapter has values for
    /// them.
    pub fn with_vocabulary(mut self, tokens: usize) -> Self {
        if tokens > self.config.vocab_size {
            self.config.vocab_size = tokens;
            drop(self.tensors.splice(..self.of_decoder, self.config.tensors()));
        }
        self
    }

    /// The rows of the embedding in its file.
    pub fn stored_vocabulary(&self) -> usize {
        self.stored_vocabulary
    }

    /// Whether the tensor has rows that its file does not hold.
    pub(super) fn is_grown(&self, hf_name: &str) -> bool {
        self.stored_vocabulary < self.config.vocab_size
            && (hf_name == self.config.embedding_name() || hf_name == self.config.head_name())
    }

    /// The tensor `hf_name` with all the rows that the vocabulary has.
    pub(super) fn grown(&self, hf_name: &str, tensor: RawTensor) -> RawTensor {
        let rows = self.stored_vocabulary;
        if !self.is_grown(hf_name) || tensor.shape.first() != Some(&rows) {
            return tensor;
        }
        let row_bytes = tensor.bytes.len() / rows;
        let mut bytes = tensor.bytes.to_vec();
        // Zero in every float format, and in every block format: a block's scale is 0.
        bytes.resize(self.config.vocab_size * row_bytes, 0);
        let mut shape = tensor.shape;
        shape[0] = self.config.vocab_size;
        RawTensor { dtype: tensor.dtype, shape, bytes: Bytes::from(bytes) }
    }
}
