//! Weights as the file stores them, multiplied in f32 by dot products: exact, and without a copy.

use crate::ops::cpu::math::dot;
use crate::ops::cpu::matrix::Matrix;

/// Outputs `first .. first + out.len() / rows` of every row of `x`: `out[row][output]`, `[rows, outputs]`.
///
/// A row of the weight is decoded once for all rows of `x`.
pub(super) fn outputs(matrix: &Matrix, x: &[f32], rows: usize, first: usize, decoded: &mut [f32], out: &mut [f32]) {
    let columns = matrix.columns();
    let outputs = out.len() / rows;
    for output in 0..outputs {
        let weights: &[f32] = match matrix.row_in_f32(first + output) {
            Some(weights) => weights,
            None => {
                matrix.decode(first + output, 0, decoded);
                decoded
            }
        };
        for (row, x) in x.chunks_exact(columns).enumerate() {
            out[row * outputs + output] = dot(x, weights);
        }
    }
}
