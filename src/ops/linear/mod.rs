//! Projections by frozen weights, each with an optional low-rank pair.
//!
//! `y = c ⊙ (x·Wᵀ + s·(drop(x)·Aᵀ)·Bᵀ) + b` (Hu et al. 2021, "LoRA", eq. 3; the factors `c` on the columns are those of DoRA, Liu
//! et al. 2024, eq. 5, and 1 without it), for one or several projections that share their input; the outputs lie side by side.
//! The gradient goes to `x`, `A`, `B` and `c`, never to `W`.

#[cfg(feature = "cpu")]
mod column_scale;
#[cfg(feature = "cpu")]
mod cpu;
pub(in crate::ops) mod dropout;
mod norms;
pub mod reference;

use burn::tensor::Tensor;

pub use self::dropout::{Dropout, uniform};
pub use self::norms::row_norms;
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
    /// The factor `c` on each output before the bias, `[1, out]` in f32; `None` for 1.
    pub column_scale: Option<Tensor<2>>,
}

/// Computes the input of a projection again, without a tape and to the bit, from values that are kept anyway.
pub type Again = Box<dyn Fn() -> Tensor<2> + Send>;

/// Projects `x` by every member of the group; the outputs lie side by side, plus `residual` if given.
///
/// # Shapes
/// - `x`: `[tokens, in]`
/// - `residual`, output: `[tokens, Σ out]`, the output in the number format of `x`
pub fn linear(x: Tensor<2>, group: &[Projected<'_>], residual: Option<Tensor<2>>) -> Tensor<2> {
    linear_again(x, None, group, residual)
}

/// [`linear()`] of an input that the processor's kernel need not keep for the backward pass of the low-rank pairs, because `again` makes
/// it.
///
/// # Shapes
/// Those of [`linear()`].
pub fn linear_again(
    x: Tensor<2>,
    again: Option<Again>,
    group: &[Projected<'_>],
    residual: Option<Tensor<2>>,
) -> Tensor<2> {
    #[cfg(feature = "cpu")]
    if group.iter().all(|projected| projected.weight.matrix().is_some()) {
        return match group.iter().any(|projected| projected.column_scale.is_some()) {
            true => column_scale::linear(x, again, group, residual),
            false => cpu::linear(x, again, group, residual),
        };
    }
    let _ = again;
    reference::linear(x, group, residual)
}
