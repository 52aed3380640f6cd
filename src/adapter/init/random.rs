//! First values that depend on chance alone. Factors are `A` `[rank, in]` and `B` `[out, rank]`, row-major.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::adapter::svd::{Columns, orthonormal};

/// `A` uniform within `±1/√in`, `B` zero (PEFT's `kaiming_uniform_` with `a = √5`).
pub(super) fn kaiming(generator: &mut ChaCha8Rng, rank: usize, output: usize, input: usize) -> [Vec<f32>; 2] {
    let bound = 1.0 / (input as f32).sqrt();
    let a = (0..rank * input).map(|_| uniform(generator, bound)).collect();
    [a, vec![0.0; output * rank]]
}

/// `A` normal with a standard deviation of `1/rank`, `B` zero.
pub(super) fn gaussian(generator: &mut ChaCha8Rng, rank: usize, output: usize, input: usize) -> [Vec<f32>; 2] {
    let a = (0..rank * input).map(|_| (normal(generator) / rank as f64) as f32).collect();
    [a, vec![0.0; output * rank]]
}

/// `A` standard normal, `B` zero (PEFT's `reset_lora_parameters` of an embedding, whose factors have their names exchanged).
pub(super) fn normal_factor(generator: &mut ChaCha8Rng, rank: usize, output: usize, input: usize) -> [Vec<f32>; 2] {
    let a = (0..rank * input).map(|_| normal(generator) as f32).collect();
    [a, vec![0.0; output * rank]]
}

/// Normal combinations, a tenth as large, of one half of an orthonormal basis for the columns of `A` and of the other half for the
/// rows of `B`, so that `B · A` is zero (PEFT's `orthogonal_init`). The rank is even.
pub(super) fn orthogonal(generator: &mut ChaCha8Rng, rank: usize, output: usize, input: usize) -> [Vec<f32>; 2] {
    let random: Columns = (0..rank).map(|_| (0..rank).map(|_| normal(generator)).collect()).collect();
    let (basis, _) = orthonormal(random);
    let (of_a, of_b) = basis.split_at(rank / 2);
    let mut combined = |vectors: &[Vec<f64>], count: usize| -> Vec<Vec<f64>> {
        let mut one = || {
            let mut sum = vec![0.0; rank];
            for vector in vectors {
                let factor = normal(generator) / 10.0;
                sum.iter_mut().zip(vector).for_each(|(sum, value)| *sum += factor * value);
            }
            sum
        };
        (0..count).map(|_| one()).collect()
    };
    let (columns_of_a, rows_of_b) = (combined(of_a, input), combined(of_b, output));
    let a = (0..rank).flat_map(|row| columns_of_a.iter().map(move |column| column[row] as f32)).collect();
    [a, rows_of_b.concat().into_iter().map(|value| value as f32).collect()]
}

/// Normal with a standard deviation of 0.02, the usual `initializer_range` of transformers, by which a new head of labels begins.
pub(super) fn score(generator: &mut ChaCha8Rng, values: usize) -> Vec<f32> {
    const DEVIATION: f64 = 0.02;
    (0..values).map(|_| (DEVIATION * normal(generator)) as f32).collect()
}

/// A value from `[-bound, bound)`: a multiple of `2⁻²²·bound`, from the upper 23 bits of the next 32.
///
/// The generator and this are all that decides an adapter's first values by default, so that a seed gives the same ones on every
/// machine and in every version.
pub(super) fn uniform(generator: &mut ChaCha8Rng, bound: f32) -> f32 {
    /// 2⁻²³.
    const UNIT: f32 = 1.0 / (1 << 23) as f32;
    (generator.next_u32() >> 9) as f32 * UNIT * (2.0 * bound) - bound
}

/// A value of the standard normal distribution (Box and Muller 1958).
fn normal(generator: &mut ChaCha8Rng) -> f64 {
    /// 2⁻⁵³.
    const UNIT: f64 = 1.0 / (1u64 << 53) as f64;
    let mut share = || ((generator.next_u64() >> 11) as f64 + 0.5) * UNIT;
    let (radius, angle) = ((-2.0 * share().ln()).sqrt(), std::f64::consts::TAU * share());
    radius * angle.cos()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_seed_gives_the_same_values_for_good() {
        // What `random_range(-bound..bound)` of rand 0.10 gave, with which adapters began before.
        for (seed, bound, expected) in [
            (0, 0.125, [0x3d1e_68e8, 0x3d56_17d8, 0x3d6b_6300, 0xbc0b_95c0]),
            (1, 0.0416, [0x3b86_9e98, 0xbc04_ed38, 0x3d25_24fd, 0xbd0e_fff8]),
            (42, 1.0, [0xbf0d_454cu32, 0x3eba_42f8, 0xbf35_0ce0, 0x3f66_8a7c]),
        ] {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            assert_eq!([(); 4].map(|()| uniform(&mut generator, bound).to_bits()), expected, "{seed}");
        }
    }

    #[test]
    fn orthogonal_factors_are_large_and_their_product_is_nothing() {
        let (rank, output, input) = (6, 40, 30);
        let [a, b] = orthogonal(&mut ChaCha8Rng::seed_from_u64(3), rank, output, input);
        let spread =
            |values: &[f32]| (values.iter().map(|value| value * value).sum::<f32>() / values.len() as f32).sqrt();
        // Three of six directions, each with a deviation of 0.1: 0.1·√(3/6).
        assert!((spread(&a) - 0.0707).abs() < 0.015 && (spread(&b) - 0.0707).abs() < 0.015);
        for row in b.chunks(rank) {
            for column in 0..input {
                let product: f32 = row.iter().enumerate().map(|(k, value)| value * a[k * input + column]).sum();
                assert!(product.abs() < 1e-8, "{product}");
            }
        }
    }

    #[test]
    fn normal_values_have_mean_zero_and_deviation_one() {
        let mut generator = ChaCha8Rng::seed_from_u64(5);
        let values: Vec<f64> = (0..20_000).map(|_| normal(&mut generator)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64;
        let beyond_two = values.iter().filter(|value| value.abs() > 2.0).count() as f64 / values.len() as f64;
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.04 && (beyond_two - 0.0455).abs() < 0.006);
    }
}
