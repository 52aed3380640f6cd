//! The low-rank product on the host.

use rayon::prelude::*;

use crate::adapter::host::HostPair;

/// `W += scale * (B * A)`, in f32. `weight`: `[out, in]`, row-major.
pub(super) fn add_low_rank(weight: &mut [f32], pair: &HostPair) {
    if pair.input == 0 || pair.rank == 0 {
        return;
    }
    let rows = weight.par_chunks_mut(pair.input).zip(pair.b.par_chunks(pair.rank));
    rows.for_each_init(|| vec![0.0; pair.input], |product, (row, b_row)| add_to_row(row, b_row, pair, product));
}

/// Adds the change of row `index` to that row of the weight, as `add_low_rank` does for all rows.
pub(super) fn add_low_rank_to_row(row: &mut [f32], pair: &HostPair, index: usize) {
    let b_row = pair.b.get(index * pair.rank..(index + 1) * pair.rank).unwrap_or_default();
    add_to_row(row, b_row, pair, &mut vec![0.0; pair.input]);
}

fn add_to_row(row: &mut [f32], b_row: &[f32], pair: &HostPair, product: &mut [f32]) {
    product.fill(0.0);
    for (&b, a_row) in b_row.iter().zip(pair.a.chunks_exact(pair.input)) {
        product.iter_mut().zip(a_row).for_each(|(sum, a)| *sum += b * a);
    }
    row.iter_mut().zip(product.iter()).for_each(|(weight, change)| *weight += pair.scale * change);
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
        };
        let mut weight = vec![10.0; 12];
        add_low_rank(&mut weight, &pair);
        let expected = [10.5, 11.0, 11.5, 10.0, 11.0, 9.0, 10.5, 11.5, 11.0, 10.0, 10.0, 10.0];
        assert_eq!(weight, expected);
    }
}
