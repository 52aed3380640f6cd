//! The definition of correct for the norms, in plain tensor code that Burn differentiates.

use burn::tensor::{DType, Tensor, TensorData};

use super::{QkNorm, Span};
use crate::ops::attention::Geometry;
use crate::ops::attention::reference::{join, split};

/// See [`rms_norm`](super::rms_norm).
pub fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let weight = Tensor::<1>::from_data(TensorData::from(weight), &x.device()).unsqueeze();
    let x = x.cast(DType::F32);
    let scale = (x.clone() * x.clone()).mean_dim(1).add_scalar(eps).sqrt().recip();
    (x * scale * weight).cast(dtype)
}

/// See [`layer_norm`](super::layer_norm).
pub fn layer_norm(x: Tensor<2>, weight: &[f32], bias: Option<&[f32]>, eps: f64) -> Tensor<2> {
    let (dtype, device) = (x.dtype(), x.device());
    let row = |values: &[f32]| Tensor::<1>::from_data(TensorData::from(values), &device).unsqueeze::<2>();
    let x = x.cast(DType::F32);
    let centred = x.clone() - x.mean_dim(1);
    let scale = (centred.clone() * centred.clone()).mean_dim(1).add_scalar(eps).sqrt().recip();
    let y = centred * scale * row(weight);
    match bias {
        Some(bias) => y + row(bias),
        None => y,
    }
    .cast(dtype)
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
