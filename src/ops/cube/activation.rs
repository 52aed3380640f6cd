//! The gated activations: one pass forward, one backward.
#![allow(unstable_name_collisions, reason = "the error function is CubeCL's: floats have none on the stable compiler")]

use burn::tensor;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::{cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use super::autograd::{apply, dims, empty};
use super::reduce::{units_for, workgroup};
use crate::ops::activation::Activation;

/// `√(2/π)`, of GELU's approximation.
const ROOT: f32 = 0.797_884_6;
/// The factor of the cube in GELU's approximation.
const CUBIC: f32 = 0.044_715;

/// See [`gated`](crate::ops::activation::gated).
pub fn gated(gate_up: tensor::Tensor<2>, activation: Activation) -> tensor::Tensor<2> {
    apply(gate_up, |gate_up| {
        let [rows, columns] = dims(&gate_up);
        let y = empty(&gate_up, [rows, columns / 2], gate_up.dtype);
        // SAFETY: the kernel stays within the values of `y`, which has half of the columns.
        unsafe {
            forward::launch_unchecked(
                &y.client,
                units_for(rows * columns / 2),
                workgroup(),
                gate_up.clone().into_tensor_arg(),
                y.clone().into_tensor_arg(),
                activation,
                dtype_to_storage_type(y.dtype),
            );
        }
        (y, move |gradient| backward(&gate_up, gradient, activation))
    })
}

fn backward(gate_up: &CubeTensor, gradient: CubeTensor, activation: Activation) -> CubeTensor {
    let [rows, columns] = dims(gate_up);
    assert_eq!(dims(&gradient), [rows, columns / 2]);
    let result = empty(gate_up, [rows, columns], gate_up.dtype);
    // SAFETY: as in the forward pass.
    unsafe {
        input_gradient::launch_unchecked(
            &result.client,
            units_for(rows * columns / 2),
            workgroup(),
            gate_up.clone().into_tensor_arg(),
            gradient.clone().into_tensor_arg(),
            result.clone().into_tensor_arg(),
            activation,
            [dtype_to_storage_type(gate_up.dtype), dtype_to_storage_type(gradient.dtype)],
        );
    }
    result
}

/// The share `c(x)` of an activation `x·c(x)`.
#[cube]
fn share(x: f32, #[comptime] activation: Activation) -> f32 {
    match comptime!(activation) {
        Activation::Silu => ((-x).exp() + 1.0f32).recip(),
        Activation::Gelu => ((x * comptime!(std::f32::consts::FRAC_1_SQRT_2)).erf() + 1.0f32) * 0.5f32,
        Activation::GeluTanh => ((x * ROOT + x * x * x * comptime!(ROOT * CUBIC)).tanh() + 1.0f32) * 0.5f32,
    }
}

/// The derivative of the share `c` at `x`.
#[cube]
fn slope(x: f32, c: f32, #[comptime] activation: Activation) -> f32 {
    match comptime!(activation) {
        Activation::Silu => c - c * c,
        // The density of the normal distribution.
        Activation::Gelu => (x * x * -0.5f32).exp() * comptime!(ROOT * 0.5),
        Activation::GeluTanh => (c - c * c) * (x * x * comptime!(3.0 * CUBIC) + 1.0f32) * comptime!(2.0 * ROOT),
    }
}

#[cube(launch_unchecked)]
fn forward<F: Float>(
    gate_up: &Tensor<F>,
    y: &mut Tensor<F>,
    #[comptime] activation: Activation,
    #[define(F)] _dtype: ElemType,
) {
    let width = y.shape(1);
    if ABSOLUTE_POS < y.shape(0) * width {
        let at = ABSOLUTE_POS / width * 2 * width + ABSOLUTE_POS % width;
        let (gate, up) = (f32::cast_from(gate_up[at]), f32::cast_from(gate_up[at + width]));
        y[ABSOLUTE_POS] = F::cast_from(gate * share(gate, activation) * up);
    }
}

/// The gradients of gate, `g·up·(c + gate·c')`, and of up, `g·gate·c`.
#[cube(launch_unchecked)]
fn input_gradient<F: Float, G: Float>(
    gate_up: &Tensor<F>,
    gradient: &Tensor<G>,
    result: &mut Tensor<F>,
    #[comptime] activation: Activation,
    #[define(F, G)] _dtypes: [ElemType; 2],
) {
    let width = gradient.shape(1);
    if ABSOLUTE_POS < gradient.shape(0) * width {
        let at = ABSOLUTE_POS / width * 2 * width + ABSOLUTE_POS % width;
        let (gate, up) = (f32::cast_from(gate_up[at]), f32::cast_from(gate_up[at + width]));
        let upstream = f32::cast_from(gradient[ABSOLUTE_POS]);
        let c = share(gate, activation);
        result[at] = F::cast_from(upstream * up * (c + gate * slope(gate, c, activation)));
        result[at + width] = F::cast_from(upstream * gate * c);
    }
}
