//! The definition of correct for the norms, in plain tensor code that Burn differentiates.

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{QkNorm, Span};
use crate::ops::attention::Geometry;
use crate::ops::attention::reference::{join, split};

/// See [`rms_norm`](super::rms_norm).
pub fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f64) -> Tensor<2> {
    let weight = row(weight, &x.device());
    trained_rms_norm(x, weight, eps)
}

/// See [`trained_rms_norm`](super::trained_rms_norm).
pub fn trained_rms_norm(x: Tensor<2>, weight: Tensor<2>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let scale = (x.clone() * x.clone()).mean_dim(1).add_scalar(eps).sqrt().recip();
    (x * scale * weight).cast(dtype)
}

/// See [`layer_norm`](super::layer_norm).
pub fn layer_norm(x: Tensor<2>, weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Tensor<2> {
    let device = x.device();
    trained_layer_norm(x, row(weight, &device), bias.map(|bias| row(bias, &device)), eps)
}

/// See [`trained_layer_norm`](super::trained_layer_norm).
pub fn trained_layer_norm(x: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<2>>, eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(1);
    let scale = (centred.clone() * centred.clone()).mean_dim(1).add_scalar(eps).sqrt().recip();
    let y = centred * scale * weight;
    match bias {
        Some(bias) => y + bias,
        None => y,
    }
    .cast(dtype)
}

/// Values as a row, `[1, width]`.
fn row(values: &[f32], device: &Device) -> Tensor<2> {
    Tensor::<1>::from_data(TensorData::from(values), device).unsqueeze()
}

/// See [`qk_norm`](super::qk_norm).
pub fn qk_norm(qkv: Tensor<2>, norm: &QkNorm, geometry: &Geometry) -> Tensor<2> {
    qk_norm_by(rms_norm, qkv, norm, geometry)
}

/// [`qk_norm`] by this form of [`rms_norm`](super::rms_norm).
pub(in crate::ops) fn qk_norm_by(
    rms_norm: fn(Tensor<2>, &[f32], f64) -> Tensor<2>,
    qkv: Tensor<2>,
    norm: &QkNorm,
    geometry: &Geometry,
) -> Tensor<2> {
    let (q, k, v) = split(qkv, geometry);
    let normed = |x: Tensor<2>, weight: &[f32]| {
        let [tokens, width] = x.dims();
        let rows = match norm.span {
            Span::PerHead => x.reshape([tokens * width / geometry.head_dim, geometry.head_dim]),
            Span::AllHeads => x,
        };
        rms_norm(rows, weight, norm.eps).reshape([tokens, width])
    };
    join(normed(q, &norm.q), normed(k, &norm.k), v, geometry)
}
