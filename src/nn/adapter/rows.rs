//! Trained rows of the embedding, and of the head: those of some tokens, in the place of the frozen ones.
//!
//! `W' = W + E·(V − W_ids)`, where `E` has a column for each token with a 1 in its row: a low-rank pair of a fixed `B`. Every kernel and
//! every format of `W` can do it.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::select_rows;
use crate::ops::frozen::FrozenWeight;
use crate::ops::linear::LowRankPair;

/// Trained rows.
#[derive(Module, Debug)]
pub struct Rows {
    /// `V`: `[tokens, width]`, f32.
    pub values: Param<Tensor<2>>,
    /// The tokens.
    #[module(skip)]
    pub ids: Vec<u32>,
    /// `E`: `[vocabulary, tokens]`, f32.
    #[module(skip)]
    pub selection: Tensor<2>,
}

impl Rows {
    /// The low-rank pair that makes `W'` of `weight`.
    pub fn pair(&self, weight: &FrozenWeight) -> LowRankPair {
        let values = self.values.val();
        let frozen = weight.rows(&self.ids, &values.device());
        let (a, b) = match values.is_autodiff() {
            true => (values - frozen.autodiff(), self.selection.clone().autodiff()),
            false => (values - frozen, self.selection.clone()),
        };
        LowRankPair { a, b, scale: 1.0, dropout: None }
    }

    /// The embeddings `rows` of the tokens `ids`, which come from `weight`.
    ///
    /// # Shapes
    /// - `rows`, output: `[ids, width]` in f32
    pub fn embed(&self, rows: Tensor<2>, ids: &[u32], weight: &FrozenWeight) -> Tensor<2> {
        let LowRankPair { a, b, .. } = self.pair(weight);
        let change = select_rows(b, ids).matmul(a);
        if change.is_autodiff() { rows.autodiff() + change } else { rows + change }
    }

    /// `E` for these tokens.
    pub fn selection(ids: &[u32], vocabulary: usize, device: &Device) -> Tensor<2> {
        let mut values = vec![0.0f32; vocabulary * ids.len()];
        for (column, id) in ids.iter().enumerate() {
            if let Some(value) = values.get_mut(*id as usize * ids.len() + column) {
                *value = 1.0;
            }
        }
        let data = burn::tensor::TensorData::new(values, [vocabulary, ids.len()]);
        Tensor::from_data(data, &device.clone().inner())
    }
}
