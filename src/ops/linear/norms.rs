//! The norms of the rows of an adapted weight, which is never formed.

use burn::tensor::Tensor;

use super::{Projected, linear};
use crate::ops::frozen::FrozenWeight;

/// `‖W_r + s·(B·A)_r‖` of every row `r`: the root of `‖W_r‖² + 2s·B_r·(A·Wᵀ)_r + s²·B_r·(A·Aᵀ)·B_rᵀ`. A packed weight stays packed.
///
/// # Shapes
/// - `weight`: `[out, in]`
/// - `a`: `[rank, in]`, `b`: `[out, rank]`, both in f32 and without autodiff
/// - output: `[1, out]`
pub fn row_norms(weight: &FrozenWeight, a: Tensor<2>, b: Tensor<2>, scale: f32) -> Tensor<2> {
    let frozen = Projected { weight, bias: None, low_rank: None, column_scale: None };
    let low = linear(a.clone(), &[frozen], None).transpose();
    let crossed = (b.clone() * low).sum_dim(1).mul_scalar(2.0 * scale);
    let squared = (b.clone().matmul(a.clone().matmul(a.transpose())) * b).sum_dim(1).mul_scalar(scale * scale);
    let norms = weight.squared_row_norms(&crossed.device()) + crossed + squared;
    // A row that the adapter cancels may come out below zero by rounding.
    norms.clamp_min(0.0).sqrt().transpose()
}
