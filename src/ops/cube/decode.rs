//! A packed weight decoded whole, for products of many rows on matrix units: decoding takes a small part of their time, and
//! the memory is free again after each.

use burn::tensor::{self, DType, Shape};
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::{cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use super::autograd::from_primitive;
use super::nf4::{DeviceNf4, Packed};
use super::reduce::{units_for, workgroup};
use crate::quant::nf4;

/// The weight `[out, in]` in `dtype`, on the device of `like`.
pub(super) fn decoded(weight: &DeviceNf4, like: &CubeTensor, dtype: DType) -> tensor::Tensor<2> {
    let [out, input] = weight.dims();
    let shape = Shape::from([out, input]);
    let result = empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape, dtype);
    // SAFETY: the kernel stays within the values of `result`, of which the packed weight has as many.
    unsafe {
        decode::launch_unchecked(
            &result.client,
            units_for(out * input),
            workgroup(),
            weight.argument(),
            result.clone().into_tensor_arg(),
            dtype_to_storage_type(dtype),
        );
    }
    from_primitive(result)
}

#[cube(launch_unchecked)]
fn decode<F: Float>(weight: &Packed, result: &mut Tensor<F>, #[define(F)] _dtype: ElemType) {
    let mut table = Shared::<[f32]>::new_slice(16usize);
    if UNIT_POS == 0 {
        #[unroll]
        for code in 0..16usize {
            table[code] = comptime!(nf4::CODE[code]).runtime();
        }
    }
    sync_cube();
    if ABSOLUTE_POS < result.shape(0) * result.shape(1) {
        result[ABSOLUTE_POS] = F::cast_from(weight.value(ABSOLUTE_POS, &table));
    }
}
