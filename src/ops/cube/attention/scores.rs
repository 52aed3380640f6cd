//! From scores to weights and back: scale, cap, mask and softmax in one pass over a row.

use burn::tensor::DType;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::{cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use crate::ops::attention::Geometry;
use crate::ops::cube::autograd::empty;
use crate::ops::cube::reduce::{UNITS, maximum, one_for_each, sum, workgroup};

/// The factors and bounds of a score as a kernel's constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    has_cap: bool,
    has_window: bool,
}

impl Shape {
    fn of(geometry: &Geometry) -> Self {
        Self { has_cap: geometry.softcap.is_some(), has_window: geometry.window.is_some() }
    }
}

/// `softmax(cap(scale·raw))` over the keys that each query sees, zero for the others: `[batch, length, length]` as `raw`, in
/// `dtype`.
pub(super) fn softmax(raw: CubeTensor, geometry: &Geometry, dtype: DType) -> CubeTensor {
    let [batch, length] = [raw.meta.shape()[0], raw.meta.shape()[1]];
    let weights = empty(&raw, [batch, length, length], dtype);
    // SAFETY: the kernel stays within the rows of `raw`, of which `weights` has the size.
    unsafe {
        weigh::launch_unchecked(
            &weights.client,
            one_for_each(batch * length),
            workgroup(),
            raw.into_tensor_arg(),
            weights.clone().into_tensor_arg(),
            geometry.scale,
            geometry.softcap.unwrap_or(1.0),
            geometry.window.unwrap_or(0) as u32,
            Shape::of(geometry),
            dtype_to_storage_type(dtype),
        );
    }
    weights
}

/// The gradient of `raw` from that of the weights, in the number format of the weights. `raw` is needed where there is a cap.
pub(super) fn gradient(
    weights: CubeTensor,
    d_weights: CubeTensor,
    raw: Option<CubeTensor>,
    geometry: &Geometry,
) -> CubeTensor {
    let [batch, length] = [weights.meta.shape()[0], weights.meta.shape()[1]];
    let result = empty(&weights, [batch, length, length], weights.dtype);
    let dtype = dtype_to_storage_type(weights.dtype);
    let raw = raw.unwrap_or_else(|| d_weights.clone());
    // SAFETY: the kernel stays within the rows of `weights`, of which the others have the size.
    unsafe {
        score_gradient::launch_unchecked(
            &result.client,
            one_for_each(batch * length),
            workgroup(),
            weights.into_tensor_arg(),
            d_weights.into_tensor_arg(),
            raw.into_tensor_arg(),
            result.clone().into_tensor_arg(),
            geometry.scale,
            geometry.softcap.unwrap_or(1.0),
            Shape::of(geometry),
            dtype,
        );
    }
    result
}

#[cube]
fn score(raw: f32, scale: f32, cap: f32, #[comptime] shape: Shape) -> f32 {
    let mut score = raw * scale;
    if comptime!(shape.has_cap) {
        score = (score / cap).tanh() * cap;
    }
    score
}

#[cube(launch_unchecked)]
fn weigh<F: Float>(
    raw: &Tensor<f32>,
    weights: &mut Tensor<F>,
    scale: f32,
    cap: f32,
    window: u32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let (row, unit, length) = (CUBE_POS, UNIT_POS as usize, raw.shape(1));
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    if row < raw.shape(0) * length {
        let (first, query) = (row * length, row % length);
        let mut first_key = 0usize;
        if comptime!(shape.has_window) {
            if query + 1 > window as usize {
                first_key = query + 1 - window as usize;
            }
        }
        // Below any score.
        let mut largest = f32::new(-3.0e38);
        let mut key = first_key + unit;
        while key <= query {
            largest = max(largest, score(raw[first + key], scale, cap, shape));
            key += UNITS;
        }
        let largest = maximum(largest, &mut shared);
        let mut total = 0.0f32;
        key = first_key + unit;
        while key <= query {
            total += (score(raw[first + key], scale, cap, shape) - largest).exp();
            key += UNITS;
        }
        let share = sum(total, &mut shared).recip();
        key = unit;
        while key < length {
            let mut weight = 0.0f32;
            if key >= first_key && key <= query {
                weight = (score(raw[first + key], scale, cap, shape) - largest).exp() * share;
            }
            weights[first + key] = F::cast_from(weight);
            key += UNITS;
        }
    }
}

/// `scale · cap' · w∘(dw − Σ w∘dw)`.
#[cube(launch_unchecked)]
fn score_gradient<F: Float>(
    weights: &Tensor<F>,
    d_weights: &Tensor<f32>,
    raw: &Tensor<f32>,
    result: &mut Tensor<F>,
    scale: f32,
    cap: f32,
    #[comptime] shape: Shape,
    #[define(F)] _dtype: ElemType,
) {
    let (row, unit, length) = (CUBE_POS, UNIT_POS as usize, weights.shape(1));
    let mut shared = Shared::<[f32]>::new_slice(UNITS);
    if row < weights.shape(0) * length {
        let (first, query) = (row * length, row % length);
        let mut products = 0.0f32;
        let mut key = unit;
        while key <= query {
            products += f32::cast_from(weights[first + key]) * d_weights[first + key];
            key += UNITS;
        }
        let mean = sum(products, &mut shared);
        key = unit;
        while key < length {
            let mut gradient = 0.0f32;
            if key <= query {
                gradient = scale * f32::cast_from(weights[first + key]) * (d_weights[first + key] - mean);
                if comptime!(shape.has_cap) {
                    let share = (raw[first + key] * scale / cap).tanh();
                    gradient *= 1.0 - share * share;
                }
            }
            result[first + key] = F::cast_from(gradient);
            key += UNITS;
        }
    }
}
