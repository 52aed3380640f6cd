//! Work that goes row by row: split over threads in fixed pieces, read and written in the activations' format.

use burn::tensor::DType;
use burn_flex::FlexTensor;
use half::bf16;
use rayon::prelude::*;

use super::autograd::{from_bf16, from_f32};
use super::product::narrow;

/// Rows that one task takes.
const ROWS_PER_TASK: usize = 32;

/// Calls `work(row, row's values, scratch)` for every row of `data`; scratch has `scratch` values.
pub fn for_each_row<T: Send>(
    data: &mut [T],
    width: usize,
    scratch: usize,
    work: impl Fn(usize, &mut [T], &mut [f32]) + Sync,
) {
    data.par_chunks_mut((width * ROWS_PER_TASK).max(1)).enumerate().for_each(|(task, rows)| {
        let mut scratch = vec![0f32; scratch];
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            work(task * ROWS_PER_TASK + index, row, &mut scratch);
        }
    });
}

/// A tensor `[rows, width]` of `dtype` whose rows `work(row, out, scratch)` computes in f32; scratch has `width`
/// values.
pub fn map_rows(
    dtype: DType,
    rows: usize,
    width: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> FlexTensor {
    match dtype {
        DType::BF16 => {
            let mut values: Vec<bf16> = bytemuck::zeroed_vec(rows * width);
            for_each_row(&mut values, width, 2 * width, |row, out, scratch| {
                let (computed, scratch) = scratch.split_at_mut(width);
                work(row, computed, scratch);
                narrow(computed, out);
            });
            from_bf16(values, rows, width)
        }
        _ => {
            let mut values: Vec<f32> = bytemuck::zeroed_vec(rows * width);
            for_each_row(&mut values, width, width, |row, out, scratch| work(row, out, scratch));
            from_f32(values, rows, width)
        }
    }
}
