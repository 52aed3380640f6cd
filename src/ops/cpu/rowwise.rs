//! Work that goes row by row: split over threads in fixed pieces, read and written in the activations' format.

use std::mem::MaybeUninit;

use burn::tensor::DType;
use burn_flex::FlexTensor;
use half::bf16;

use super::autograd::{dims, f32s, from_bf16, from_f32};
use super::pool;
use super::rows::narrow;

/// Rows that one task takes.
const ROWS_PER_TASK: usize = 32;

/// Calls `work(row, row's values, scratch)` for every row of `data`; scratch has `scratch` values.
pub fn for_each_row<T: Send>(
    data: &mut [T],
    width: usize,
    scratch: usize,
    work: impl Fn(usize, &mut [T], &mut [f32]) + Sync,
) {
    pool::for_each_chunk(data, (width * ROWS_PER_TASK).max(1), |task, rows| {
        let mut scratch = vec![0f32; scratch];
        for (index, row) in rows.chunks_exact_mut(width).enumerate() {
            work(task * ROWS_PER_TASK + index, row, &mut scratch);
        }
    });
}

/// A tensor `[rows, width]` of `dtype` whose rows `work(row, out, scratch)` computes in f32, all of each; scratch has
/// `width` values.
pub fn map_rows(
    dtype: DType,
    rows: usize,
    width: usize,
    work: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) -> FlexTensor {
    match dtype {
        DType::BF16 => from_bf16(
            fill_rows(rows, width, 2 * width, |row, out, scratch| {
                let (computed, scratch) = scratch.split_at_mut(width);
                work(row, computed, scratch);
                narrow(computed, out);
            }),
            rows,
            width,
        ),
        _ => from_f32(fill_rows(rows, width, width, work), rows, width),
    }
}

/// [`for_each_row`] on fresh memory: each row is cleared just before `work` gets it, by the thread that does.
fn fill_rows<T: bytemuck::Zeroable + Send>(
    rows: usize,
    width: usize,
    scratch: usize,
    work: impl Fn(usize, &mut [T], &mut [f32]) + Sync,
) -> Vec<T> {
    let count = rows * width;
    let mut values = Vec::with_capacity(count);
    for_each_row(
        &mut values.spare_capacity_mut()[..count],
        width,
        scratch,
        |row, out: &mut [MaybeUninit<T>], scratch| {
            out.fill_with(MaybeUninit::zeroed);
            // SAFETY: all zero is a valid `T`.
            work(row, unsafe { out.assume_init_mut() }, scratch);
        },
    );
    // SAFETY: every row was cleared.
    unsafe { values.set_len(count) };
    values
}

/// The tensor rounded to bf16.
pub fn narrowed(tensor: &FlexTensor) -> FlexTensor {
    let [count, width] = dims(tensor);
    let source = f32s(tensor);
    let work = |row: usize, out: &mut [bf16], _: &mut [f32]| narrow(&source[row * width..][..width], out);
    from_bf16(fill_rows(count, width, 0, work), count, width)
}
