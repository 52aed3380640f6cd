//! Some rows of a matrix, with a backward pass that writes each gradient to its row.

use burn::tensor::{self, DType, Device, Int, Shape, TensorData};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::ops::numeric::zeros;
use burn_cubecl::{CubeBackend, cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use super::autograd::{apply, dims, empty};
use super::reduce::{units_for, workgroup};

/// Numbers below 2³² on a CubeCL device.
pub(super) fn numbers(values: &[u32], device: &Device) -> CubeTensor {
    let tensor =
        tensor::Tensor::<1, Int>::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, DType::U32));
    tensor.try_into_primitive::<CubeBackend>().expect("these kernels run on CubeCL devices")
}

/// The rows `chosen` of `x`, none of them twice.
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - output: `[chosen, width]`
pub fn selected(x: tensor::Tensor<2>, chosen: &[u32]) -> tensor::Tensor<2> {
    let count = chosen.len();
    let chosen = numbers(chosen, &x.device().inner());
    apply(x, |x| {
        let [rows, width] = dims(&x);
        let result = empty(&x, [count, width], x.dtype);
        // SAFETY: the kernel stays within the values of `result`, and the chosen rows are rows of `x`.
        unsafe {
            gather::launch_unchecked(
                &x.client,
                units_for(count * width),
                workgroup(),
                x.clone().into_tensor_arg(),
                chosen.clone().into_tensor_arg(),
                result.clone().into_tensor_arg(),
                dtype_to_storage_type(x.dtype),
            );
        }
        let backward = move |gradient: CubeTensor| {
            let result = zeros(gradient.device.clone(), Shape::from([rows, width]), gradient.dtype);
            let dtype = dtype_to_storage_type(gradient.dtype);
            // SAFETY: the kernel stays within the values of the gradient, and the chosen rows are rows of `result`.
            unsafe {
                scatter::launch_unchecked(
                    &result.client,
                    units_for(count * width),
                    workgroup(),
                    gradient.into_tensor_arg(),
                    chosen.into_tensor_arg(),
                    result.clone().into_tensor_arg(),
                    dtype,
                );
            }
            result
        };
        (result, backward)
    })
}

#[cube(launch_unchecked)]
fn gather<F: Float>(x: &Tensor<F>, chosen: &Tensor<u32>, result: &mut Tensor<F>, #[define(F)] _dtype: ElemType) {
    let width = x.shape(1);
    if ABSOLUTE_POS < chosen.shape(0) * width {
        let row = chosen[ABSOLUTE_POS / width] as usize;
        result[ABSOLUTE_POS] = x[row * width + ABSOLUTE_POS % width];
    }
}

/// Rows of `result` may lie further apart than they are wide.
#[cube(launch_unchecked)]
fn scatter<F: Float>(
    gradient: &Tensor<F>,
    chosen: &Tensor<u32>,
    result: &mut Tensor<F>,
    #[define(F)] _dtype: ElemType,
) {
    let width = gradient.shape(1);
    if ABSOLUTE_POS < chosen.shape(0) * width {
        let row = chosen[ABSOLUTE_POS / width] as usize;
        let place = row * result.stride(0) + ABSOLUTE_POS % width;
        result[place] = gradient[ABSOLUTE_POS];
    }
}
