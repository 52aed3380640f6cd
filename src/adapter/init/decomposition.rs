//! First values that are a part of the weight. Factors are `A` `[rank, in]` and `B` `[out, rank]`, row-major.

use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::random::uniform;
use crate::adapter::host::HostPair;
use crate::adapter::svd::{Columns, orthonormal, truncated};

/// Directions beyond the rank that the search keeps, so that those within it come out sooner (Halko et al. 2011, section 4.2).
const MORE_DIRECTIONS: usize = 8;
/// The end of a search: it makes at most so many passes, and stops where one adds less than a share to the squared singular values.
pub(super) struct Search {
    passes: usize,
    negligible: f64,
}

/// For values to begin with (PEFT's `pissa_niter_16`).
pub(super) const NEAR: Search = Search { passes: 16, negligible: 1e-7 };
/// For values that have to be those of another decomposition: the rounding of f32 ends the search.
pub(super) const EXACT: Search = Search { passes: 64, negligible: 1e-12 };
/// Columns of the weight whose sums one task takes.
const COLUMNS: usize = 64;

/// `A = √(S/s)·Vᵀ` and `B = U·√(S/s)` of the `rank` largest singular values of a weight `[out, in]`, so that `s · B · A` is the
/// best approximation of that rank (Meng et al. 2024, "PiSSA"; PEFT's `pissa_init`). Found by subspace iteration.
pub(super) fn pissa(
    weight: &[f32],
    input: usize,
    rank: usize,
    scale: f32,
    search: Search,
    generator: &mut ChaCha8Rng,
) -> [Vec<f32>; 2] {
    let output = weight.len() / input;
    let mut directions = (rank + MORE_DIRECTIONS).min(output).min(input);
    let mut right: Vec<f32> = (0..input * directions).map(|_| uniform(generator, 1.0)).collect();
    let mut found = 0.0;
    let mut left = Vec::new();
    for _ in 0..search.passes {
        let (basis, _) = orthonormal(columns_of(&times(weight, input, &right, directions), directions));
        directions = basis.len();
        left = transposed(&basis, output);
        right = transposed_times(weight, input, &left, directions);
        let before = std::mem::replace(&mut found, right.iter().map(|value| f64::from(*value).powi(2)).sum());
        if found - before <= search.negligible * found {
            break;
        }
    }
    // The weight is nearly `left · rightᵀ`, which has few columns.
    let a = columns_of(&right, directions).concat().into_iter().map(|value| value as f32).collect();
    let product = HostPair { a, b: left, rank: directions, input, output, scale: 1.0, ..HostPair::default() };
    let HostPair { mut a, mut b, .. } = truncated(&product, rank);
    for (k, a) in a.chunks_mut(input).enumerate() {
        // `truncated` leaves the singular value with `U`.
        let of_u = || (0..output).map(|row| row * rank + k);
        let value = of_u().map(|index| f64::from(b[index]).powi(2)).sum::<f64>().sqrt();
        let root = (value / f64::from(scale)).sqrt();
        let share = if value > 0.0 { root / value } else { 0.0 };
        a.iter_mut().for_each(|number| *number = (f64::from(*number) * root) as f32);
        of_u().for_each(|index| b[index] = (f64::from(b[index]) * share) as f32);
    }
    [a, b]
}

/// `B = Q` and `A = R` of the weight's QR decomposition, their first `rank` columns and rows (PEFT's `olora_init`).
pub(super) fn olora(weight: &[f32], input: usize, rank: usize) -> [Vec<f32>; 2] {
    let output = weight.len() / input;
    let first =
        (0..rank).map(|column| weight.iter().skip(column).step_by(input).map(|value| f64::from(*value)).collect());
    let (mut basis, _) = orthonormal(first.collect());
    // Columns that depend on each other span less: the factors are zero there.
    basis.resize(rank, vec![0.0; output]);
    let q = transposed(&basis, output);
    let r = columns_of(&transposed_times(weight, input, &q, rank), rank);
    [r.concat().into_iter().map(|value| value as f32).collect(), q]
}

/// `W · X` for `W` `[out, in]` and `X` `[in, width]`, all row-major.
fn times(weight: &[f32], input: usize, right: &[f32], width: usize) -> Vec<f32> {
    let mut product = vec![0f32; weight.len() / input * width];
    product.par_chunks_mut(width.max(1)).zip(weight.par_chunks(input)).for_each(|(sums, row)| {
        for (factor, values) in row.iter().zip(right.chunks_exact(width)) {
            add_scaled(sums, *factor, values);
        }
    });
    product
}

/// `Wᵀ · X` for `W` `[out, in]` and `X` `[out, width]`, all row-major. Every sum is taken in the order of the rows.
fn transposed_times(weight: &[f32], input: usize, left: &[f32], width: usize) -> Vec<f32> {
    let mut product = vec![0f32; input * width];
    product.par_chunks_mut((COLUMNS * width).max(1)).enumerate().for_each(|(block, sums)| {
        for (row, values) in weight.chunks_exact(input).zip(left.chunks_exact(width)) {
            for (sums, factor) in sums.chunks_exact_mut(width).zip(&row[block * COLUMNS..]) {
                add_scaled(sums, *factor, values);
            }
        }
    });
    product
}

fn add_scaled(sums: &mut [f32], factor: f32, values: &[f32]) {
    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += factor * value);
}

/// The columns of a row-major matrix of this width.
fn columns_of(values: &[f32], width: usize) -> Columns {
    (0..width)
        .map(|column| values.iter().skip(column).step_by(width).map(|value| f64::from(*value)).collect())
        .collect()
}

/// The matrix with these columns of a height, row-major.
fn transposed(columns: &Columns, height: usize) -> Vec<f32> {
    (0..height).flat_map(|row| columns.iter().map(move |column| column[row] as f32)).collect()
}
