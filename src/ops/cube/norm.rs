//! The root-mean-square norm: one pass over a row forward, one backward.

use burn::tensor::{self, DType, TensorData};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::{cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use super::autograd::{apply, dims, empty, primitive};
use super::reduce::{UNITS, one_for_each, sum, workgroup};

/// See [`rms_norm`](crate::ops::norm::rms_norm).
pub fn rms_norm(x: tensor::Tensor<2>, weight: &[f32], eps: f64) -> tensor::Tensor<2> {
    let data = TensorData::new(weight.to_vec(), [weight.len()]);
    let weight = primitive(tensor::Tensor::<1>::from_data(data, (&x.device().inner(), DType::F32)));
    apply(x, |x| {
        let (y, scales) = forward(&x, &weight, eps as f32);
        (y, move |gradient| backward(&x, &weight, &scales, gradient))
    })
}

/// The normalised rows, and the factor `1 / sqrt(mean(x²) + eps)` of each.
fn forward(x: &CubeTensor, weight: &CubeTensor, eps: f32) -> (CubeTensor, CubeTensor) {
    let [rows, width] = dims(x);
    let (y, scales) = (empty(x, [rows, width], x.dtype), empty(x, [rows], DType::F32));
    // SAFETY: the kernel stays within rows and columns of `x`, of which the others are the size.
    unsafe {
        normalise::launch_unchecked(
            &x.client,
            one_for_each(rows),
            workgroup(),
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            scales.clone().into_tensor_arg(),
            eps,
            dtype_to_storage_type(x.dtype),
        );
    }
    (y, scales)
}

fn backward(x: &CubeTensor, weight: &CubeTensor, scales: &CubeTensor, gradient: CubeTensor) -> CubeTensor {
    let [rows, width] = dims(x);
    assert_eq!(dims(&gradient), [rows, width]);
    let dx = empty(x, [rows, width], x.dtype);
    // SAFETY: as in the forward pass.
    unsafe {
        input_gradient::launch_unchecked(
            &x.client,
            one_for_each(rows),
            workgroup(),
            x.clone().into_tensor_arg(),
            weight.clone().into_tensor_arg(),
            scales.clone().into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            dx.clone().into_tensor_arg(),
            [dtype_to_storage_type(x.dtype), dtype_to_storage_type(gradient.dtype)],
        );
    }
    dx
}

#[cube(launch_unchecked)]
fn normalise<F: Float>(
    x: &Tensor<F>,
    weight: &Tensor<f32>,
    y: &mut Tensor<F>,
    scales: &mut Tensor<f32>,
    eps: f32,
    #[define(F)] _dtype: ElemType,
) {
    let (row, unit, width) = (CUBE_POS, UNIT_POS as usize, x.shape(1));
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    if row < x.shape(0) {
        let first = row * width;
        let mut squares = 0.0f32;
        let mut column = unit;
        while column < width {
            let value = f32::cast_from(x[first + column]);
            squares += value * value;
            column += UNITS;
        }
        let scale = (sum(squares, &mut shared) / f32::cast_from(width as u32) + eps).sqrt().recip();
        if unit == 0 {
            scales[row] = scale;
        }
        column = unit;
        while column < width {
            y[first + column] = F::cast_from(f32::cast_from(x[first + column]) * scale * weight[column]);
            column += UNITS;
        }
    }
}

/// `dx = s·(w∘g) − x·s³·mean(w∘g∘x)` with `s` the factor of the row.
#[cube(launch_unchecked)]
fn input_gradient<F: Float, G: Float>(
    x: &Tensor<F>,
    weight: &Tensor<f32>,
    scales: &Tensor<f32>,
    gradient: &Tensor<G>,
    dx: &mut Tensor<F>,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let (row, unit, width) = (CUBE_POS, UNIT_POS as usize, x.shape(1));
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    if row < x.shape(0) {
        let first = row * width;
        let mut products = 0.0f32;
        let mut column = unit;
        while column < width {
            let upstream = f32::cast_from(gradient[first + column]) * weight[column];
            products += upstream * f32::cast_from(x[first + column]);
            column += UNITS;
        }
        let scale = scales[row];
        let share = sum(products, &mut shared) / f32::cast_from(width as u32) * scale * scale * scale;
        column = unit;
        while column < width {
            let upstream = f32::cast_from(gradient[first + column]) * weight[column];
            dx[first + column] = F::cast_from(upstream * scale - f32::cast_from(x[first + column]) * share);
            column += UNITS;
        }
    }
}
