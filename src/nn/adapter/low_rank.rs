//! A low-rank pair: `scale · B · A` beside a frozen weight (LoRA). The forward equation stands in `ops/linear/mod.rs`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use super::select_rows;

/// One low-rank pair: the update of the weight is `scale · B · A`.
#[derive(Module, Debug)]
pub struct LowRank {
    /// `[rank, in]`, f32.
    pub a: Param<Tensor<2>>,
    /// `[out, rank]`, f32.
    pub b: Param<Tensor<2>>,
    /// `alpha / rank`, or the value that the adapter's file gives.
    pub scale: f32,
    /// Probability of dropping an input value while training.
    pub dropout: f32,
}

impl LowRank {
    /// `rows + scale · B[ids] · A`: the embeddings of the tokens `ids` where the pair changes the embedding. As in PEFT, nothing is
    /// dropped.
    ///
    /// # Shapes
    /// - `rows`, output: `[ids, width]` in f32
    pub fn embed(&self, rows: Tensor<2>, ids: &[u32]) -> Tensor<2> {
        let change = select_rows(self.b.val(), ids).matmul(self.a.val()).mul_scalar(self.scale);
        if change.is_autodiff() { rows.autodiff() + change } else { rows + change }
    }
}
