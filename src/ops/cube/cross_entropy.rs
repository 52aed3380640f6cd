//! The loss of each target from its logits, and the gradient of the logits: one pass over a row each.

use burn::tensor::{self, DType};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::{cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use super::autograd::{apply, dims, empty};
use super::reduce::{UNITS, maximum, one_for_each, sum, workgroup};
use super::rows::{numbers, selected};
use crate::ops::cross_entropy::{Targets, capped};
use crate::ops::linear::{Projected, reference::project};

/// See [`cross_entropy`](crate::ops::cross_entropy::cross_entropy()).
pub fn cross_entropy(
    hidden: tensor::Tensor<2>,
    head: &Projected<'_>,
    targets: &Targets,
    softcap: Option<f32>,
    smoothing: f32,
) -> tensor::Tensor<2> {
    let (rows, ids): (Vec<u32>, Vec<u32>) = targets.iter().copied().unzip();
    let logits = project(selected(hidden, &rows), head, &rows);
    losses(capped(logits, softcap), &ids, smoothing)
}

/// The loss of each row with label smoothing ε = `smoothing`: `ln Σ_v exp(z_v) − (1 − ε)·z_target − ε·mean_v(z_v)`.
///
/// # Shapes
/// - `logits`: `[targets, vocabulary]`
/// - `targets`: a token id for each row
/// - output: `[targets, 1]` in f32
fn losses(logits: tensor::Tensor<2>, targets: &[u32], smoothing: f32) -> tensor::Tensor<2> {
    let targets = numbers(targets, &logits.device().inner());
    apply(logits, |logits| {
        let [rows, _] = dims(&logits);
        let (losses, sums) = (empty(&logits, [rows, 1], DType::F32), empty(&logits, [rows], DType::F32));
        // SAFETY: the kernel stays within the rows of `logits`; the ids of tokens are below its columns.
        unsafe {
            forward::launch_unchecked(
                &losses.client,
                one_for_each(rows),
                workgroup(),
                logits.clone().into_tensor_arg(),
                targets.clone().into_tensor_arg(),
                losses.clone().into_tensor_arg(),
                sums.clone().into_tensor_arg(),
                smoothing,
                dtype_to_storage_type(logits.dtype),
            );
        }
        (losses, move |gradient| backward(&logits, &targets, &sums, gradient, smoothing))
    })
}

fn backward(
    logits: &CubeTensor,
    targets: &CubeTensor,
    sums: &CubeTensor,
    gradient: CubeTensor,
    smoothing: f32,
) -> CubeTensor {
    let [rows, vocabulary] = dims(logits);
    assert_eq!((dims(&gradient), gradient.dtype), ([rows, 1], DType::F32));
    let result = empty(logits, [rows, vocabulary], logits.dtype);
    // SAFETY: as in the forward pass.
    unsafe {
        logit_gradient::launch_unchecked(
            &result.client,
            one_for_each(rows),
            workgroup(),
            logits.clone().into_tensor_arg(),
            targets.clone().into_tensor_arg(),
            sums.clone().into_tensor_arg(),
            gradient.into_tensor_arg(),
            result.clone().into_tensor_arg(),
            smoothing,
            dtype_to_storage_type(logits.dtype),
        );
    }
    result
}

/// `sums` gets `ln Σ exp(z)` of each row.
#[cube(launch_unchecked)]
fn forward<F: Float>(
    logits: &Tensor<F>,
    targets: &Tensor<u32>,
    losses: &mut Tensor<f32>,
    sums: &mut Tensor<f32>,
    smoothing: f32,
    #[define(F)] _dtype: ElemType,
) {
    let (row, unit, vocabulary) = (CUBE_POS, UNIT_POS as usize, logits.shape(1));
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    if row < logits.shape(0) {
        let first = row * vocabulary;
        // Below any logit.
        let mut largest = f32::new(-3.0e38);
        let mut total = 0.0f32;
        let mut token = unit;
        while token < vocabulary {
            let logit = f32::cast_from(logits[first + token]);
            largest = max(largest, logit);
            total += logit;
            token += UNITS;
        }
        let largest = maximum(largest, &mut shared);
        let mean = sum(total, &mut shared) / f32::cast_from(vocabulary as u32);
        let mut exponentials = 0.0f32;
        token = unit;
        while token < vocabulary {
            exponentials += (f32::cast_from(logits[first + token]) - largest).exp();
            token += UNITS;
        }
        let logarithm = sum(exponentials, &mut shared).ln() + largest;
        if unit == 0 {
            let target = f32::cast_from(logits[first + targets[row] as usize]);
            sums[row] = logarithm;
            losses[row] = logarithm - (1.0 - smoothing) * target - smoothing * mean;
        }
    }
}

/// `g·(softmax(z) − (1 − ε)·[v = target] − ε/V)`.
#[cube(launch_unchecked)]
fn logit_gradient<F: Float>(
    logits: &Tensor<F>,
    targets: &Tensor<u32>,
    sums: &Tensor<f32>,
    gradient: &Tensor<f32>,
    result: &mut Tensor<F>,
    smoothing: f32,
    #[define(F)] _dtype: ElemType,
) {
    let (row, vocabulary) = (CUBE_POS, logits.shape(1));
    if row < logits.shape(0) {
        let (first, target) = (row * vocabulary, targets[row] as usize);
        let spread = smoothing / f32::cast_from(vocabulary as u32);
        let mut token = UNIT_POS as usize;
        while token < vocabulary {
            let mut difference = (f32::cast_from(logits[first + token]) - sums[row]).exp() - spread;
            if token == target {
                difference -= 1.0 - smoothing;
            }
            result[first + token] = F::cast_from(gradient[row] * difference);
            token += UNITS;
        }
    }
}
