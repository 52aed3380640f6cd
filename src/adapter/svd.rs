//! The truncated singular value decomposition of a low-rank product.
//!
//! `B·A` is never formed: with orthonormal `P`, `Q` such that `B = P·R` and `Aᵀ = Q·S`, the decomposition of the small matrix
//! `R·Sᵀ` gives that of `B·A`.

use super::host::HostPair;

/// A column shorter than this share of its former length lies in the span of those before it.
const NEGLIGIBLE: f64 = 1e-12;
/// Two columns with a cosine below this are orthogonal.
const ORTHOGONAL: f64 = 1e-14;
/// Far more sweeps than any matrix needs: Jacobi's method converges quadratically.
const MAX_SWEEPS: usize = 64;

/// A matrix as its columns.
pub(super) type Columns = Vec<Vec<f64>>;

/// The best approximation of a pair's product at `rank`: `B` holds the left singular vectors times the singular values, `A` the
/// right singular vectors (as PEFT's `svd`). Beyond the rank of the product, the factors are zero.
pub(super) fn truncated(pair: &HostPair, rank: usize) -> HostPair {
    let HostPair { input, output, scale, .. } = *pair;
    let (left, right, mut small) = reduced(pair);
    let rotations = jacobi(&mut small);
    let mut order: Vec<(f64, usize)> = small.iter().map(|column| norm(column)).zip(0..).collect();
    order.sort_by(|(a, _), (b, _)| b.total_cmp(a));

    let (mut new_a, mut new_b) = (vec![0f32; rank * input], vec![0f32; output * rank]);
    for (k, (value, index)) in order.into_iter().take(rank).enumerate() {
        if value == 0.0 {
            break;
        }
        for (row, sum) in times(&left, &small[index], output).into_iter().enumerate() {
            new_b[row * rank + k] = (sum * f64::from(scale)) as f32;
        }
        for (column, sum) in times(&right, &rotations[index], input).into_iter().enumerate() {
            new_a[k * input + column] = sum as f32;
        }
    }
    HostPair { a: new_a, b: new_b, rank, input, output, scale: 1.0, ..HostPair::default() }
}

/// The singular values of `scale · B · A`, largest first: as many as the pair has ranks, or fewer where its factors span less.
pub(super) fn singular_values(pair: &HostPair) -> Vec<f64> {
    let (_, _, mut small) = reduced(pair);
    jacobi(&mut small);
    let mut values: Vec<f64> = small.iter().map(|column| norm(column) * f64::from(pair.scale).abs()).collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// Orthonormal bases `P` of `B`'s columns and `Q` of `A`'s rows, and the small matrix `R · Sᵀ`, for `B = P · R` and `Aᵀ = Q · S`.
fn reduced(pair: &HostPair) -> (Columns, Columns, Columns) {
    let HostPair { rank: inner, input, output, .. } = *pair;
    let b = (0..inner).map(|k| (0..output).map(|row| f64::from(pair.b[row * inner + k])).collect()).collect();
    let a = pair.a.chunks(input.max(1)).map(|row| row.iter().map(|value| f64::from(*value)).collect()).collect();
    let (left, in_left) = orthonormal(b);
    let (right, in_right) = orthonormal(a);
    // Column j of the small matrix: Σₖ in_left[k] · in_right[k][j].
    let small = (0..right.len())
        .map(|j| (0..left.len()).map(|i| (0..inner).map(|k| in_left[k][i] * in_right[k][j]).sum()).collect())
        .collect();
    (left, right, small)
}

/// An orthonormal basis of the columns' span, and the coordinates of each column in it (Gram and Schmidt, each projection
/// taken twice).
pub(super) fn orthonormal(columns: Columns) -> (Columns, Columns) {
    let mut basis: Columns = Vec::new();
    let mut coordinates: Columns = Vec::new();
    for mut column in columns {
        let length = norm(&column);
        let mut parts = vec![0.0; basis.len()];
        for _ in 0..2 {
            for (part, vector) in parts.iter_mut().zip(&basis) {
                let along = dot(vector, &column);
                *part += along;
                column.iter_mut().zip(vector).for_each(|(value, unit)| *value -= along * unit);
            }
        }
        let rest = norm(&column);
        if rest > NEGLIGIBLE * length {
            parts.push(rest);
            basis.push(column.into_iter().map(|value| value / rest).collect());
        }
        coordinates.push(parts);
    }
    coordinates.iter_mut().for_each(|parts| parts.resize(basis.len(), 0.0));
    (basis, coordinates)
}

/// Rotates pairs of columns until all are orthogonal, and returns the rotations: `before = after · rotationsᵀ` (one-sided Jacobi,
/// Hestenes 1958).
fn jacobi(columns: &mut Columns) -> Columns {
    let count = columns.len();
    let unit = |j: usize| (0..count).map(|i| if i == j { 1.0 } else { 0.0 }).collect();
    let mut rotations: Columns = (0..count).map(unit).collect();
    for _ in 0..MAX_SWEEPS {
        let mut is_done = true;
        for j in 1..count {
            for i in 0..j {
                let (p, q, r) =
                    (dot(&columns[i], &columns[i]), dot(&columns[j], &columns[j]), dot(&columns[i], &columns[j]));
                if r == 0.0 || r.abs() <= ORTHOGONAL * (p * q).sqrt() {
                    continue;
                }
                is_done = false;
                let slope = (q - p) / (2.0 * r);
                let tangent = slope.signum() / (slope.abs() + slope.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                rotate(columns, i, j, cosine, cosine * tangent);
                rotate(&mut rotations, i, j, cosine, cosine * tangent);
            }
        }
        if is_done {
            break;
        }
    }
    rotations
}

fn rotate(columns: &mut Columns, i: usize, j: usize, cosine: f64, sine: f64) {
    let (front, back) = columns.split_at_mut(j);
    for (x, y) in front[i].iter_mut().zip(&mut back[0]) {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    }
}

/// The sum of the columns, each times its factor; of `height` values.
fn times(columns: &Columns, factors: &[f64], height: usize) -> Vec<f64> {
    let mut sum = vec![0.0; height];
    for (column, factor) in columns.iter().zip(factors) {
        sum.iter_mut().zip(column).for_each(|(sum, value)| *sum += factor * value);
    }
    sum
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(column: &[f64]) -> f64 {
    dot(column, column).sqrt()
}
