//! An update by AdamW as one kernel for each of hundreds of matrices.

use burn::tensor::{self, DType};
use burn_cubecl::cubecl;
use cubecl::prelude::*;

use super::autograd::{empty, from_primitive, primitive};
use super::reduce::{units_for, workgroup};

/// The numbers of an update by AdamW.
#[derive(Debug, Clone, Copy, CubeType, CubeLaunch)]
pub struct AdamW {
    /// The factor β₁ on the mean of gradients.
    pub mean_kept: f32,
    /// The factor on the gradient that joins it, `1 − β₁`.
    pub mean_added: f32,
    /// The factor β₂ on the mean square.
    pub square_kept: f32,
    /// The factor on the square that joins it, `1 − β₂`.
    pub square_added: f32,
    /// The factor on the parameter: `1 − rate·λ`.
    pub kept: f32,
    /// The rate over the correction of the mean.
    pub rate: f32,
    /// One over the root of the correction of the mean square.
    pub root_factor: f32,
    /// Added to the root.
    pub epsilon: f32,
}

/// The parameter, the mean and the mean square after an update.
///
/// # Shapes
/// - `parameter`, `gradient`, both `moments` (mean and mean square), each output: `[values]` in f32 on one CubeCL device
pub fn adamw(
    numbers: AdamW,
    parameter: tensor::Tensor<1>,
    gradient: tensor::Tensor<1>,
    moments: [tensor::Tensor<1>; 2],
) -> [tensor::Tensor<1>; 3] {
    let [parameter, gradient] = [parameter, gradient].map(primitive);
    let [mean, mean_square] = moments.map(primitive);
    let count = parameter.meta.shape()[0];
    for vector in [&gradient, &mean, &mean_square] {
        assert_eq!((vector.meta.shape()[0], vector.dtype), (count, DType::F32));
    }
    let updated = [(); 3].map(|()| empty(&parameter, [count], DType::F32));
    let [new_parameter, new_mean, new_mean_square] = updated.each_ref().map(|vector| vector.clone().into_tensor_arg());
    // SAFETY: the kernel stays within the vectors, which are of one length.
    unsafe {
        update::launch_unchecked(
            &parameter.client.clone(),
            units_for(count),
            workgroup(),
            parameter.into_tensor_arg(),
            gradient.into_tensor_arg(),
            mean.into_tensor_arg(),
            mean_square.into_tensor_arg(),
            new_parameter,
            new_mean,
            new_mean_square,
            AdamWLaunch::new(
                numbers.mean_kept,
                numbers.mean_added,
                numbers.square_kept,
                numbers.square_added,
                numbers.kept,
                numbers.rate,
                numbers.root_factor,
                numbers.epsilon,
            ),
        );
    }
    updated.map(from_primitive)
}

/// `m ← β₁m + (1 − β₁)g`, `v ← β₂v + (1 − β₂)g²`, `p ← kept·p − rate·m / (root_factor·√v + ε)`.
#[cube(launch_unchecked)]
fn update(
    parameter: &Tensor<f32>,
    gradient: &Tensor<f32>,
    mean: &Tensor<f32>,
    mean_square: &Tensor<f32>,
    new_parameter: &mut Tensor<f32>,
    new_mean: &mut Tensor<f32>,
    new_mean_square: &mut Tensor<f32>,
    numbers: &AdamW,
) {
    if ABSOLUTE_POS < parameter.shape(0) {
        let value = gradient[ABSOLUTE_POS];
        let first = numbers.mean_kept * mean[ABSOLUTE_POS] + numbers.mean_added * value;
        let second = numbers.square_kept * mean_square[ABSOLUTE_POS] + numbers.square_added * value * value;
        let change = numbers.rate * first / (second.sqrt() * numbers.root_factor + numbers.epsilon);
        new_mean[ABSOLUTE_POS] = first;
        new_mean_square[ABSOLUTE_POS] = second;
        new_parameter[ABSOLUTE_POS] = numbers.kept * parameter[ABSOLUTE_POS] - change;
    }
}
