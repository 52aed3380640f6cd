//! The cache of generation: the rotated keys and the values of a sequence, layer by layer.
//!
//! [`Cache`] holds them in one piece, for tensors on any device. On the processor the engine has them in pages (`pages`), in the
//! order in which its kernels (`attend`) read them.

#[cfg(feature = "cpu")]
mod attend;
#[cfg(all(feature = "cpu", target_arch = "x86_64"))]
mod avx512;
#[cfg(feature = "cpu")]
mod pages;

#[cfg(feature = "cpu")]
pub use attend::{PagedPiece, paged_attention};
#[cfg(feature = "cpu")]
pub use pages::{PAGE_POSITIONS, Page, PagedCache};

use burn::tensor::Tensor;

use crate::settings::choice;

choice! {
    /// The number format of keys and values in pages.
    CacheFormat {
        /// The values as they are computed.
        F32 = "f32",
        /// Half of the memory.
        Bf16 = "bf16",
        /// A little more than a quarter: codes with a scale for each 32 values of a position.
        Int8 = "int8",
    }
}

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    pub(in crate::ops::attention) length: usize,
    pub(in crate::ops::attention) store: Store,
}

#[derive(Debug, Clone, Default)]
pub(in crate::ops::attention) enum Store {
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
pub(in crate::ops::attention) struct Tensors {
    pub(in crate::ops::attention) keys: Tensor<2>,
    pub(in crate::ops::attention) values: Tensor<2>,
}

impl Cache {
    /// Number of tokens whose keys and values are here.
    pub fn length(&self) -> usize {
        self.length
    }
}
