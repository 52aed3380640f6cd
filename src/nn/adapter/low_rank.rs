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
    /// `A₀` and `B₀` of the pair whose update is subtracted, never trained (PiSSA, OLoRA): the update of the weight then is
    /// `scale · (B · A − B₀ · A₀)`.
    #[module(skip)]
    pub subtracted: Option<[Tensor<2>; 2]>,
}

impl LowRank {
    /// The factors of the whole update: `A` and `B`, or with a subtracted pair those of `B · (A − A₀) + (B − B₀) · A₀`, which is
    /// the same: of two large products in 16 bits, the small difference would be lost.
    ///
    /// # Shapes
    /// - output: `[ranks, in]` and `[out, ranks]`
    pub fn factors(&self) -> [Tensor<2>; 2] {
        let (a, b) = (self.a.val(), self.b.val());
        let Some(subtracted) = &self.subtracted else { return [a, b] };
        let [a_0, b_0] = subtracted.clone().map(|factor| if a.is_autodiff() { factor.autodiff() } else { factor });
        [Tensor::cat(vec![a - a_0.clone(), a_0], 0), Tensor::cat(vec![b.clone(), b - b_0], 1)]
    }
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
