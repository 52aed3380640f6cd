//! The shape of an attention layer, and where its heads stand in the columns of a projection.

use std::sync::Arc;

use super::rope::Rope;

/// The order of the columns of queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvLayout {
    /// All queries, all keys, all values: `[q | k | v]`.
    SideBySide,
    /// Head by head, `[heads, 3, head_dim]`: the fused `query_key_value` of GPT-NeoX. There are as many key heads as query
    /// heads.
    ByHead,
}

/// The shape of an attention layer.
#[derive(Debug, Clone)]
pub struct Geometry {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads in a row.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// The factor on the scores, above zero: `1 / sqrt(head_dim)` unless the model says otherwise.
    pub scale: f32,
    /// Scores `s` become `cap · tanh(s / cap)` before the mask (Gemma 2).
    pub softcap: Option<f32>,
    /// A query sees at most this many positions, itself included.
    pub window: Option<usize>,
    /// The rotation of queries and keys; `None` for a layer without positions.
    pub rope: Option<Arc<Rope>>,
    /// The order of the columns.
    pub layout: QkvLayout,
}

impl Geometry {
    /// Attention with a scale of `1 / sqrt(head_dim)` over columns `[q | k | v]`, without cap, window or rotation.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            softcap: None,
            window: None,
            rope: None,
            layout: QkvLayout::SideBySide,
        }
    }

    /// Columns of queries, keys and values together.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// First key that the query at `position` sees.
    pub fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// First column of a query head.
    pub fn query_column(&self, head: usize) -> usize {
        match self.layout {
            QkvLayout::SideBySide => head * self.head_dim,
            QkvLayout::ByHead => 3 * head * self.head_dim,
        }
    }

    /// First column of a key head.
    pub fn key_column(&self, kv_head: usize) -> usize {
        match self.layout {
            QkvLayout::SideBySide => (self.heads + kv_head) * self.head_dim,
            QkvLayout::ByHead => (3 * kv_head + 1) * self.head_dim,
        }
    }

    /// First column of a value head.
    pub fn value_column(&self, kv_head: usize) -> usize {
        match self.layout {
            QkvLayout::SideBySide => (self.heads + self.kv_heads + kv_head) * self.head_dim,
            QkvLayout::ByHead => (3 * kv_head + 2) * self.head_dim,
        }
    }

    /// Checks what the kernels rely on.
    ///
    /// # Panics
    /// If the numbers contradict each other: families check configurations first.
    pub(super) fn check(&self, qkv_columns: usize) {
        assert_eq!(qkv_columns, self.qkv_width(), "columns of queries, keys and values");
        assert!(self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads), "query heads in whole groups");
        assert!(self.layout == QkvLayout::SideBySide || self.heads == self.kv_heads, "as many key heads, by head");
        assert!(self.scale > 0.0 && self.softcap.is_none_or(|cap| cap > 0.0), "a scale and a cap above zero");
        let rotated = self.rope.as_ref().map_or(0, |rope| 2 * rope.half());
        assert!(rotated <= self.head_dim, "{rotated} rotated values in a head of {}", self.head_dim);
    }
}
