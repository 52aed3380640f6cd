//! The change of a weight by a pair, on the host.

use rayon::prelude::*;

use crate::adapter::host::HostPair;

/// `W' = W + scale · B · A`, with magnitudes `m ⊙ W' / ‖W'‖` by row, in f32. `weight`: `[out, in]`, row-major.
pub(super) fn adapt(weight: &mut [f32], pair: &HostPair) {
    if pair.input == 0 || pair.rank == 0 {
        return;
    }
    let rows = weight.par_chunks_mut(pair.input).enumerate();
    rows.for_each_init(|| vec![0.0; pair.input], |product, (index, row)| adapt_with(row, pair, index, product));
}

/// Changes row `index` of a weight as its pair says.
pub(super) fn adapt_row(row: &mut [f32], pair: &HostPair, index: usize) {
    adapt_with(row, pair, index, &mut vec![0.0; pair.input]);
}

fn adapt_with(row: &mut [f32], pair: &HostPair, index: usize, product: &mut [f32]) {
    product.fill(0.0);
    for (b, a_row) in pair.terms_of_row(index) {
        product.iter_mut().zip(a_row).for_each(|(sum, a)| *sum += b * a);
    }
    row.iter_mut().zip(product.iter()).for_each(|(weight, change)| *weight += pair.scale * change);
    if let Some(magnitude) = &pair.magnitude {
        let norm = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
        let factor = row_factor(magnitude, index, norm);
        row.iter_mut().for_each(|weight| *weight = (f64::from(*weight) * factor) as f32);
    }
}

/// The factor that gives a row of this norm its magnitude; zero where the norm is.
pub(super) fn row_factor(magnitude: &[f32], index: usize, norm: f64) -> f64 {
    let magnitude = magnitude.get(index).copied().map_or(0.0, f64::from);
    if norm > 0.0 { magnitude / norm } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_product_by_hand() {
        let pair = HostPair {
            a: vec![1.0, 2.0, 3.0, 0.0, 1.0, -1.0],
            b: vec![1.0, 0.0, 0.0, 2.0, 1.0, 1.0, 0.0, 0.0],
            rank: 2,
            input: 3,
            output: 4,
            scale: 0.5,
            ..HostPair::default()
        };
        let mut weight = vec![10.0; 12];
        adapt(&mut weight, &pair);
        let expected = [10.5, 11.0, 11.5, 10.0, 11.0, 9.0, 10.5, 11.5, 11.0, 10.0, 10.0, 10.0];
        assert_eq!(weight, expected);
        // With the pair itself subtracted nothing changes; with a magnitude of 0 a row vanishes.
        let subtracted = Some(std::sync::Arc::new([pair.a.clone(), pair.b.clone()]));
        let pair = HostPair { subtracted, magnitude: Some(vec![300f32.sqrt(), 0.0, 1.0, 600f32.sqrt()]), ..pair };
        let mut weight = vec![10.0; 12];
        adapt(&mut weight, &pair);
        for (row, expected) in weight.chunks(3).zip([10.0, 0.0, 1.0 / 3f32.sqrt(), 200f32.sqrt()]) {
            assert!(row.iter().all(|value| (value - expected).abs() < 1e-5), "{row:?}, not {expected}");
        }
    }
}
