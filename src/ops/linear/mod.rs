//! Projections by frozen weights, each with an optional low-rank pair.
//!
//! `y = x·Wᵀ + b + s·(drop(x)·Aᵀ)·Bᵀ` (Hu et al. 2021, "LoRA", eq. 3), for one or several projections that share
//! their input; the outputs lie side by side. The gradient goes to `x`, `A` and `B`, never to `W`.

#[cfg(feature = "cpu")]
mod cpu;
pub(in crate::ops) mod dropout;
pub mod reference;

use burn::tensor::Tensor;

pub use self::dropout::{Dropout, uniform};
use super::frozen::FrozenWeight;

/// A low-rank pair in use: the update of the weight is `scale · B · A`.
#[derive(Debug, Clone)]
pub struct LowRankPair {
    /// `[rank, in]`, f32.
    pub a: Tensor<2>,
    /// `[out, rank]`, f32.
    pub b: Tensor<2>,
    /// `alpha / rank`, or what the adapter's file says.
    pub scale: f32,
    /// Only while training.
    pub dropout: Option<Dropout>,
}

/// One projection of a group.
#[derive(Debug, Clone)]
pub struct Projected<'a> {
    /// `[out, in]`.
    pub weight: &'a FrozenWeight,
    /// `out` values.
    pub bias: Option<&'a [f32]>,
    /// The low-rank update of the weight, if it is adapted.
    pub low_rank: Option<LowRankPair>,
}

/// Projects `x` by every member of the group; the outputs lie side by side, plus `residual` if given.
///
/// # Shapes
/// - `x`: `[tokens, in]`
/// - `residual`, output: `[tokens, Σ out]`, the output in the number format of `x`
pub fn linear(x: Tensor<2>, group: &[Projected<'_>], residual: Option<Tensor<2>>) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if group.iter().all(|projected| projected.weight.matrix().is_some()) {
        return cpu::linear(x, group, residual);
    }
    reference::linear(x, group, residual)
}
