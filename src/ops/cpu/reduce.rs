//! Sums over tokens: the gradients of low-rank factors.

use super::pack::PlainColumns;
use super::product::{Epilogue, Rows, Target, Term, product};

/// `scale · leftᵀ · right`, `[rank, width]`: summed over the tokens in order, in f32 whatever the format of `right`.
pub fn sum_outer(left: &[f32], rank: usize, right: Rows<'_>, width: usize, tokens: usize, scale: f32) -> Vec<f32> {
    let transposed = transpose(left, tokens, rank);
    let mut sums = vec![0f32; rank * width];
    let target = Target::F32 { data: &mut sums, stride: width };
    let rows = Rows::F32 { data: &transposed, stride: tokens };
    match right {
        Rows::F32 { data, stride } => {
            let columns = PlainColumns { data, stride, depth: tokens, scale: 1.0 };
            product::<f32>(rank, width, &[Term { rows, columns: &columns }], Epilogue::default(), target);
        }
        Rows::Bf16 { data, stride } => {
            let columns = PlainColumns { data, stride, depth: tokens, scale: 1.0 };
            product::<f32>(rank, width, &[Term { rows, columns: &columns }], Epilogue::default(), target);
        }
    }
    sums.iter_mut().for_each(|sum| *sum *= scale);
    sums
}

/// `[rows, columns]` to `[columns, rows]`.
pub fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut transposed = vec![0f32; values.len()];
    for row in 0..rows {
        for column in 0..columns {
            transposed[column * rows + row] = values[row * columns + column];
        }
    }
    transposed
}
