//! The cache of generation: the rotated keys and the values of a sequence, layer by layer.

use burn::tensor::Tensor;

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    pub(super) length: usize,
    pub(super) store: Store,
}

#[derive(Debug, Clone, Default)]
pub(super) enum Store {
    #[default]
    Empty,
    /// `[length, kv_heads · head_dim]`, grown in place.
    #[cfg(feature = "cpu")]
    Host {
        keys: Vec<f32>,
        values: Vec<f32>,
    },
    Tensors(Box<Tensors>),
}

/// `[length, kv_heads · head_dim]` each.
#[derive(Debug, Clone)]
pub(super) struct Tensors {
    pub(super) keys: Tensor<2>,
    pub(super) values: Tensor<2>,
}

impl Cache {
    /// Number of tokens whose keys and values are here.
    pub fn length(&self) -> usize {
        self.length
    }
}
