//! The norm of the gradients of an adapter, and gradients scaled down to a largest norm.

use burn::optim::GradientsParams;
use burn::tensor::TensorData;

use crate::nn::Adapter;
use crate::ops::host::on_host;

/// Added to a norm, as PyTorch and Opacus do: it keeps the quotient finite and lowers the gradients a little.
const EPSILON: f64 = 1e-6;

/// `√Σ g²` over the matrices of an adapter, in f64.
pub(super) fn norm_of(adapter: &Adapter, gradients: &GradientsParams) -> f64 {
    let gradients = adapter.matrices().filter_map(|matrix| gradients.get::<2>(matrix.id)).collect();
    let of_one = |data: TensorData| sum_of_squares(data.as_slice().expect("the gradients of an adapter are f32"));
    on_host(gradients).map(of_one).sum::<f64>().sqrt()
}

/// `Σ g²` in f64.
pub(super) fn sum_of_squares(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

/// Gradients of this norm, scaled by `largest / (norm + 1e-6)` where that is below 1: `torch.nn.utils.clip_grad_norm_`.
pub(super) fn scaled_down(
    adapter: &Adapter,
    mut gradients: GradientsParams,
    norm: f64,
    largest: f64,
) -> GradientsParams {
    let factor = largest / (norm + EPSILON);
    if factor >= 1.0 {
        return gradients;
    }
    for matrix in adapter.matrices() {
        if let Some(gradient) = gradients.remove::<2>(matrix.id) {
            gradients.register(matrix.id, gradient.mul_scalar(factor));
        }
    }
    gradients
}
