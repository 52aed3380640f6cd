//! Dropout on the input of a low-rank pair: the hash of the processor's, in the 32-bit numbers that every device has.

use burn::tensor;
use burn_backend::cubecl::dtype_to_storage_type;
use burn_cubecl::{cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

use super::autograd::{apply, dims, empty};
use super::reduce::{units_for, workgroup};
use super::rows::numbers;
use crate::ops::linear::Dropout;
use crate::ops::linear::dropout::{FIRST_FACTOR, GOLDEN_GAMMA, SECOND_FACTOR};

/// `x` `[rows, width]` with the factors of these `rows` of the tensor that dropout counts its elements in.
pub fn dropped(x: tensor::Tensor<2>, dropout: Dropout, rows: &[u32]) -> tensor::Tensor<2> {
    let rows = numbers(rows, &x.device().inner());
    apply(x, |x| {
        let y = multiplied(&x, dropout, &rows);
        (y, move |gradient| multiplied(&gradient, dropout, &rows))
    })
}

fn multiplied(x: &CubeTensor, dropout: Dropout, rows: &CubeTensor) -> CubeTensor {
    let [count, width] = dims(x);
    let y = empty(x, [count, width], x.dtype);
    // SAFETY: the kernel stays within `x`, of which `y` has the size and `rows` the number of rows.
    unsafe {
        multiply::launch_unchecked(
            &y.client,
            units_for(count * width),
            workgroup(),
            x.clone().into_tensor_arg(),
            rows.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            dropout.seed as u32,
            (dropout.seed >> 32) as u32,
            dropout.probability,
            1.0 / (1.0 - dropout.probability),
            dtype_to_storage_type(x.dtype),
        );
    }
    y
}

/// A 64-bit number in two halves.
#[derive(CubeType, Clone, Copy)]
struct Wide {
    low: u32,
    high: u32,
}

/// `a · b` modulo 2⁶⁴, with a constant `b`.
#[cube]
fn times(a: Wide, #[comptime] b: u64) -> Wide {
    let (low, high) = (comptime!(b as u32).runtime(), comptime!((b >> 32) as u32).runtime());
    Wide { low: a.low * low, high: u32::mul_hi(a.low, low) + a.high * low + a.low * high }
}

/// `a ^ (a >> shift)` for a shift below 32.
#[cube]
fn mixed(a: Wide, #[comptime] shift: u32) -> Wide {
    Wide { low: a.low ^ ((a.low >> shift) | (a.high << comptime!(32 - shift))), high: a.high ^ (a.high >> shift) }
}

#[cube]
fn sum(a: Wide, b: Wide) -> Wide {
    let low = a.low + b.low;
    let mut carry = 0u32;
    if low < a.low {
        carry = 1u32;
    }
    Wide { low, high: a.high + b.high + carry }
}

#[cube(launch_unchecked)]
fn multiply<F: Float>(
    x: &Tensor<F>,
    rows: &Tensor<u32>,
    y: &mut Tensor<F>,
    seed_low: u32,
    seed_high: u32,
    probability: f32,
    kept: f32,
    #[define(F)] _dtype: ElemType,
) {
    let width = x.shape(1);
    if ABSOLUTE_POS < x.shape(0) * width {
        let (row, width, column) = (rows[ABSOLUTE_POS / width], width as u32, (ABSOLUTE_POS % width) as u32);
        let first = Wide { low: row * width, high: u32::mul_hi(row, width) };
        let index = sum(first, Wide { low: column, high: 0u32 });
        let seed = Wide { low: seed_low, high: seed_high };
        let bits = sum(seed, times(index, GOLDEN_GAMMA));
        let bits = times(mixed(bits, 30u32), FIRST_FACTOR);
        let bits = mixed(times(mixed(bits, 27u32), SECOND_FACTOR), 31u32);
        // The 24 highest bits, as a share of 1.
        let share = f32::cast_from(bits.high >> 8) / 16_777_216.0;
        let mut factor = kept;
        if share < probability {
            factor = 0.0f32;
        }
        y[ABSOLUTE_POS] = F::cast_from(f32::cast_from(x[ABSOLUTE_POS]) * factor);
    }
}
