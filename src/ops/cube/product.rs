//! Products by a packed weight: a workgroup makes a tile of the output, a slice of the depth at a time, and decodes
//! the weight's part of a slice into its shared memory. Nothing decoded is ever stored elsewhere.

use burn::tensor::{DType, Shape};
use burn_cubecl::{cubecl, kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::prelude::*;

use super::nf4::{DeviceNf4, Packed};
use crate::quant::nf4;

/// Units (threads) along each side of a workgroup.
const SIDE: usize = 16;
/// Output columns of a unit, [`SIDE`] apart so that neighbours read neighbours.
const COLUMNS_EACH: usize = 4;
/// Output columns of a workgroup.
const WIDTH: usize = SIDE * COLUMNS_EACH;
/// Depth of a slice. Two slices must fit in the 16 KiB of shared memory that WebGPU promises.
const DEPTH: usize = 16;
/// Distance of a slice's rows: odd, so that units that write down a column meet different banks.
const PITCH: usize = WIDTH + 1;
/// Output rows of a unit where there are many.
const ROWS_EACH: usize = 4;

/// The right-hand side of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// `W` `[out, in]`: the way of the gradients.
    Weight,
    /// `Wᵀ`: the way of the activations.
    Transposed,
}

/// `rows · W` `[count, in]` of rows `[count, out]`, or `rows · Wᵀ` `[count, out]` of rows `[count, in]`; f32.
///
/// # Panics
/// If the rows are not f32, or not as long as that.
pub fn product(rows: CubeTensor, weight: &DeviceNf4, side: Side) -> CubeTensor {
    let rows = into_contiguous(rows);
    let [out, input] = weight.dims();
    let (depth, width) = match side {
        Side::Weight => (out, input),
        Side::Transposed => (input, out),
    };
    let count = rows.meta.shape()[0];
    assert_eq!((rows.dtype, rows.meta.shape()[1]), (DType::F32, depth));
    let client = rows.client.clone();
    let product =
        empty_device_contiguous_dtype(client.clone(), rows.device.clone(), Shape::from([count, width]), DType::F32);
    // Decoding a few tokens would waste most of a tall tile.
    let rows_each = if count > SIDE { ROWS_EACH } else { 1 };
    let groups = CubeCount::Static(width.div_ceil(WIDTH) as u32, count.div_ceil(SIDE * rows_each) as u32, 1);
    // SAFETY: the kernel guards against the edges of the sizes asserted above; what it reads of the weight is as long
    // as the weight's size and block sizes say.
    unsafe {
        tile::launch_unchecked(
            &client,
            groups,
            CubeDim::new_2d(SIDE as u32, SIDE as u32),
            rows.into_tensor_arg(),
            weight.argument(),
            product.clone().into_tensor_arg(),
            side == Side::Transposed,
            rows_each,
        );
    }
    product
}

/// A tile of `product` `[count, width]` from `rows` `[count, depth]`.
#[cube(launch_unchecked)]
fn tile(
    rows: &Tensor<f32>,
    weight: &Packed,
    product: &mut Tensor<f32>,
    #[comptime] transposed: bool,
    #[comptime] rows_each: usize,
) {
    let (x, y, unit) = (UNIT_POS_X as usize, UNIT_POS_Y as usize, UNIT_POS as usize);
    let (count, depth, width) = (rows.shape(0), rows.shape(1), product.shape(1));
    let first_row = CUBE_POS_Y as usize * comptime!(SIDE * rows_each);
    let first_column = CUBE_POS_X as usize * WIDTH;

    let mut table = Shared::<[f32]>::new_slice(16usize);
    let mut row_slice = Shared::<[f32]>::new_slice(comptime!(DEPTH * PITCH));
    let mut weight_slice = Shared::<[f32]>::new_slice(comptime!(DEPTH * PITCH));
    if unit == 0 {
        #[unroll]
        for code in 0..16usize {
            table[code] = comptime!(nf4::CODE[code]).runtime();
        }
    }
    sync_cube();

    let mut sums = Array::<f32>::new(comptime!(rows_each * COLUMNS_EACH));
    #[unroll]
    for index in 0..comptime!(rows_each * COLUMNS_EACH) {
        sums[index] = 0.0;
    }
    for slice in 0..depth.div_ceil(DEPTH) {
        let first = slice * DEPTH;
        #[unroll]
        for part in 0..rows_each {
            let index = unit + part * comptime!(SIDE * SIDE);
            let (row, at) = (index / DEPTH, index % DEPTH);
            let mut value = 0.0f32;
            if first_row + row < count && first + at < depth {
                value = rows[(first_row + row) * depth + first + at];
            }
            row_slice[at * PITCH + row] = value;
        }
        #[unroll]
        for part in 0..COLUMNS_EACH {
            let index = unit + part * comptime!(SIDE * SIDE);
            // Neighbouring units decode neighbouring values: along W's columns, which are the depth or the width.
            let (column, at) =
                if comptime!(transposed) { (index / DEPTH, index % DEPTH) } else { (index % WIDTH, index / WIDTH) };
            let (across, deep) = (first_column + column, first + at);
            let mut value = 0.0f32;
            if across < width && deep < depth {
                let flat = if comptime!(transposed) { across * depth + deep } else { deep * width + across };
                value = weight.value(flat, &table);
            }
            weight_slice[at * PITCH + column] = value;
        }
        sync_cube();
        for at in 0..DEPTH {
            #[unroll]
            for i in 0..rows_each {
                let value = row_slice[at * PITCH + y + i * SIDE];
                #[unroll]
                for j in 0..COLUMNS_EACH {
                    sums[i * COLUMNS_EACH + j] += value * weight_slice[at * PITCH + x + j * SIDE];
                }
            }
        }
        sync_cube();
    }
    #[unroll]
    for i in 0..rows_each {
        #[unroll]
        for j in 0..COLUMNS_EACH {
            let (row, column) = (first_row + y + i * SIDE, first_column + x + j * SIDE);
            if row < count && column < width {
                product[row * width + column] = sums[i * COLUMNS_EACH + j];
            }
        }
    }
}
