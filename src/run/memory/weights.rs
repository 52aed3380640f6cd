//! The memory of the base's weights, and what a step reads of them from the disk.

use crate::model::load::LoadOptions;
use crate::model::{BaseFiles, ModelConfig};

/// Memory that one access to a mapped file brings in around it: Linux maps sixteen pages at once.
const AROUND_AN_ACCESS: u64 = 64 << 10;

/// Bytes of the weights of a base, by the way that they stay in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WeightBytes {
    /// Made while loading, or needed for good: never returned.
    pub owned: u64,
    /// Of each layer, read where they lie in the mapped file.
    pub layers: Vec<u64>,
    /// Of the head, read where it lies.
    pub head: u64,
    /// Of an embedding that is not the head, read where it lies, a row for each token.
    pub embedding: u64,
    /// The largest tensor that lies in memory as it is stored, beside its loaded form.
    pub loading: u64,
    /// The largest tensor, as it is stored.
    pub largest: u64,
}

impl WeightBytes {
    /// Those of `base` as `options` say.
    pub fn of(base: &BaseFiles, options: &LoadOptions) -> Self {
        let config = base.config();
        let (mut owned, mut head, mut embedding, mut loading, mut largest) = (0, 0, 0, 0, 0);
        let mut layers = vec![0; config.layers];
        for name in base.tensor_names() {
            let (bytes, mapped) = (options.bytes_of(base, name) as u64, options.mapped_bytes_of(base, name) as u64);
            owned += bytes - mapped;
            let is_embedding = name == config.embedding_name() && !config.tied_head;
            match layer_of(config, name) {
                Some(layer) => layers[layer] += mapped,
                None if is_embedding => embedding += mapped,
                None => head += mapped,
            }
            let stored = base.stored_bytes(name) as u64;
            largest = largest.max(stored);
            if mapped == 0 || is_embedding {
                loading = loading.max(stored);
            }
        }
        Self { owned, layers, head, embedding, loading, largest }
    }

    /// Whether there are layers that can be read as they are needed.
    pub fn can_stream(&self) -> bool {
        self.layers.iter().any(|bytes| *bytes > 0)
    }

    /// Bytes in memory throughout, where all layers stay there.
    pub fn resident(&self) -> u64 {
        self.owned + self.layers.iter().sum::<u64>() + self.head
    }

    /// Bytes in memory at most, where layers are read as they are needed: beside the rest a layer or the head, and the layer that is
    /// being read.
    pub fn streamed(&self) -> u64 {
        let layer = self.layers.iter().copied().max().unwrap_or(0);
        self.owned + layer + layer.max(self.head)
    }

    /// Bytes read from the disk in a step that goes through the layers so many times, where gradients reach down to layer `lowest`.
    pub fn read_a_step(&self, lowest: usize, passes: u64) -> u64 {
        let (below, above) = self.layers.split_at(lowest.min(self.layers.len()));
        passes * (below.iter().sum::<u64>() + 2 * above.iter().sum::<u64>() + self.head)
    }

    /// Bytes that the rows of `tokens` tokens of the embedding take.
    pub fn embedded(&self, tokens: u64) -> u64 {
        self.embedding.min(tokens * AROUND_AN_ACCESS)
    }
}

/// The layer that a tensor belongs to.
fn layer_of(config: &ModelConfig, name: &str) -> Option<usize> {
    let rest = name.strip_prefix(config.names.layers)?.strip_prefix('.')?;
    rest.split('.').next()?.parse().ok().filter(|layer| *layer < config.layers)
}
