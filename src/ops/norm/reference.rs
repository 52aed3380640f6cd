//! The definition of correct for [`rms_norm`](super::rms_norm).

use burn::tensor::{DType, Tensor, TensorData};

/// See [`rms_norm`](super::rms_norm).
pub fn rms_norm(x: Tensor<2>, weight: &[f32], eps: f64) -> Tensor<2> {
    let dtype = x.dtype();
    let weight = Tensor::<1>::from_data(TensorData::from(weight), &x.device()).unsqueeze();
    let x = x.cast(DType::F32);
    let scale = (x.clone() * x.clone()).mean_dim(1).add_scalar(eps).sqrt().recip();
    (x * scale * weight).cast(dtype)
}
