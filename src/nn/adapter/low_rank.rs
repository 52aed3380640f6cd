//! A low-rank pair: `scale · B · A` beside a frozen weight (LoRA). The forward equation stands in `ops/linear/mod.rs`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

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
