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

/// `x` `[rows, width]` with the factors of these `rows` of the tensor whose tokens `dropout` knows.
pub fn dropped(x: tensor::Tensor<2>, dropout: &Dropout, rows: &[u32]) -> tensor::Tensor<2> {
    let width = x.dims()[1];
    let halves = |row: &u32| {
        let seed = dropout.of_row(*row as usize, width).seed;
        [seed as u32, (seed >> 32) as u32]
    };
    let seeds: Vec<u32> = rows.iter().flat_map(halves).collect();
    let (seeds, probability) = (numbers(&seeds, &x.device().inner()), dropout.probability);
    apply(x, |x| {
        let y = multiplied(&x, probability, &seeds);
        (y, move |gradient| multiplied(&gradient, probability, &seeds))
    })
}

/// `x` times its factors; `seeds` has the two halves of each row's.
fn multiplied(x: &CubeTensor, probability: f32, seeds: &CubeTensor) -> CubeTensor {
    let [rows, width] = dims(x);
    let y = empty(x, [rows, width], x.dtype);
    // SAFETY: the kernel stays within `x`, of which `y` has the size; `seeds` has two numbers for each of its rows.
    unsafe {
        multiply::launch_unchecked(
            &y.client,
            units_for(rows * width),
            workgroup(),
            x.clone().into_tensor_arg(),
            seeds.clone().into_tensor_arg(),
            y.clone().into_tensor_arg(),
            probability,
            1.0 / (1.0 - probability),
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
    seeds: &Tensor<u32>,
    y: &mut Tensor<F>,
    probability: f32,
    kept: f32,
    #[define(F)] _dtype: ElemType,
) {
    let width = x.shape(1);
    if ABSOLUTE_POS < x.shape(0) * width {
        let (row, column) = (ABSOLUTE_POS / width, (ABSOLUTE_POS % width) as u32);
        let (low, high) = (seeds[2 * row], seeds[2 * row + 1]);
        let seed = Wide { low, high };
        let bits = sum(seed, times(Wide { low: column, high: 0u32 }, GOLDEN_GAMMA));
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
