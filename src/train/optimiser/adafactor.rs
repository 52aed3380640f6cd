//! Adafactor with a given rate: of the mean squares of a matrix, those of its rows and columns are kept.
//!
//! It is computed on the host: the sums of rows and of the whole update are then taken in one order, on every device and with
//! any number of threads.

use burn::tensor::{Tensor, TensorData};

use super::{Rule, Update};

/// The value that is added to every squared gradient (ε₁).
const EPSILON: f64 = 1e-30;
/// The root mean square that an update is scaled down to (d).
const CLIP_THRESHOLD: f64 = 1.0;
/// The exponent of the decay: `β₂(t) = 1 − t^(−0.8)`.
const DECAY_EXPONENT: f64 = -0.8;

/// Shazeer and Stern 2018, algorithms 4 and 6, as transformers' `Adafactor` has them with `scale_parameter=False` and
/// `relative_step=False`: no first moment, the rate as given, weight decay decoupled.
///
/// `V = R·C / mean(R)` from the decayed means `R` of the rows and `C` of the columns of `g² + ε₁`; `u = g / √V`;
/// `p ← p(1 − rate·λ) − rate · u / max(1, rms(u) / d)`.
pub(super) fn apply(rule: &Rule, update: Update<'_>) -> (Tensor<1>, Vec<Tensor<1>>) {
    let device = update.gradient.device();
    let decayed = update.decayed(rule.weight_decay);
    let Update { rate, number, shape, gradient, moments, .. } = update;
    let gradient = host(&gradient);
    let squares: Vec<f64> = gradient.iter().map(|value| f64::from(*value).powi(2) + EPSILON).collect();
    let beta2 = 1.0 - (number as f64).powf(DECAY_EXPONENT);
    let averaged = |old: &Tensor<1>, new: Vec<f64>| -> Vec<f32> {
        let both = host(old).into_iter().zip(new);
        both.map(|(old, new)| (f64::from(old) * beta2 + new * (1.0 - beta2)) as f32).collect()
    };
    let (moments, mut change): (Vec<Vec<f32>>, Vec<f64>) = match (shape, moments.as_slice()) {
        (&[_, columns], [row_means, column_means]) => {
            let by_row = averaged(row_means, squares.chunks_exact(columns).map(mean).collect());
            let mut sums = vec![0f64; columns];
            for row in squares.chunks_exact(columns) {
                sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
            let rows = by_row.len() as f64;
            let by_column = averaged(column_means, sums.into_iter().map(|sum| sum / rows).collect());
            let mean_of_rows = by_row.iter().map(|value| f64::from(*value)).sum::<f64>() / rows;
            let inverse_root = |value: &f32| f64::from(*value).sqrt().recip();
            let column_factors: Vec<f64> = by_column.iter().map(inverse_root).collect();
            let change = by_row.iter().zip(gradient.chunks_exact(columns)).flat_map(|(row, gradient)| {
                let factor = mean_of_rows.sqrt() * inverse_root(row);
                gradient.iter().zip(&column_factors).map(move |(value, column)| f64::from(*value) * factor * column)
            });
            let change = change.collect();
            (vec![by_row, by_column], change)
        }
        (_, [means]) => {
            let means = averaged(means, squares);
            let change = gradient.iter().zip(&means).map(|(value, mean)| f64::from(*value) / f64::from(*mean).sqrt());
            let change = change.collect();
            (vec![means], change)
        }
        _ => unreachable!("a matrix has two moments, a vector one"),
    };
    let root_mean_square = mean(&change.iter().map(|value| value * value).collect::<Vec<_>>()).sqrt();
    let factor = rate / (root_mean_square / CLIP_THRESHOLD).max(1.0);
    change.iter_mut().for_each(|value| *value *= factor);
    let tensor = |values: Vec<f32>| {
        let length = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [length]), &device)
    };
    let change = tensor(change.into_iter().map(|value| value as f32).collect());
    (decayed - change, moments.into_iter().map(tensor).collect())
}

fn host(tensor: &Tensor<1>) -> Vec<f32> {
    tensor.clone().into_data().iter::<f32>().collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}
