//! The methods that combine the factors of adapters value by value.

use rand::Rng;
use rand_chacha::ChaCha12Rng;

use super::{Majority, Method};
use crate::adapter::host::HostPair;

/// A method with its settings and its source of chance.
pub(super) struct Mixture {
    pub method: Method,
    pub density: f64,
    pub majority: Majority,
    pub random: ChaCha12Rng,
}

impl Mixture {
    /// One pair from pairs of equal sizes, each with its weight.
    pub fn of(&mut self, parts: &[(f64, &HostPair)]) -> HostPair {
        let (rank, input, output) = parts.first().map_or((0, 0, 0), |(_, pair)| (pair.rank, pair.input, pair.output));
        let weights: Vec<f64> = parts.iter().map(|(weight, pair)| weight * f64::from(pair.scale)).collect();
        // The sign goes to one factor: in both it would cancel.
        let of_a: Vec<f32> = weights.iter().map(|weight| (weight.abs().sqrt().copysign(*weight)) as f32).collect();
        let of_b: Vec<f32> = weights.iter().map(|weight| weight.abs().sqrt() as f32).collect();
        let a = self.mixed(parts.iter().map(|(_, pair)| pair.a.clone()).collect(), &of_a);
        let b = self.mixed(parts.iter().map(|(_, pair)| pair.b.clone()).collect(), &of_b);
        HostPair { a, b, rank, input, output, scale: 1.0, ..HostPair::default() }
    }

    fn mixed(&mut self, mut tensors: Vec<Vec<f32>>, weights: &[f32]) -> Vec<f32> {
        for tensor in &mut tensors {
            match self.method {
                Method::Ties | Method::MagnitudePrune => keep_largest(tensor, self.density),
                Method::Dare | Method::DareTies => self.keep_random(tensor),
                Method::Linear | Method::Cat | Method::Svd => {}
            }
        }
        let votes = matches!(self.method, Method::Ties | Method::DareTies);
        let count = tensors.first().map_or(0, Vec::len);
        let column = |index: usize| tensors.iter().map(move |tensor| tensor[index]).zip(weights.iter().copied());
        let sum = |index| column(index).map(|(value, weight)| value * weight).sum();
        let elected = |index| mean_of_majority(column(index), self.majority);
        (0..count).map(|index| if votes { elected(index) } else { sum(index) }).collect()
    }

    /// Drops values with the probability `1 - density`, and divides the others by `density`.
    fn keep_random(&mut self, tensor: &mut [f32]) {
        if self.density >= 1.0 {
            return;
        }
        let below = (self.density * 2f64.powi(64)) as u64;
        for value in tensor {
            *value = if self.random.next_u64() < below { *value / self.density as f32 } else { 0.0 };
        }
    }
}

/// Sets all but the `density · n` largest values, by magnitude, to zero.
fn keep_largest(tensor: &mut [f32], density: f64) {
    let kept = (density * tensor.len() as f64) as usize;
    if kept >= tensor.len() {
        return;
    }
    let mut order: Vec<usize> = (0..tensor.len()).collect();
    let by_magnitude = |a: &usize, b: &usize| tensor[*b].abs().total_cmp(&tensor[*a].abs()).then(a.cmp(b));
    order.select_nth_unstable_by(kept, by_magnitude);
    for index in &order[kept..] {
        tensor[*index] = 0.0;
    }
}

/// The weighted values with the majority's sign, averaged over their number. A vote without a winner goes to plus.
fn mean_of_majority(values: impl Iterator<Item = (f32, f32)> + Clone, majority: Majority) -> f32 {
    let vote = |value: f32| match majority {
        Majority::Total => value,
        Majority::Frequency if value == 0.0 => 0.0,
        Majority::Frequency => value.signum(),
    };
    let wins_plus = values.clone().map(|(value, _)| vote(value)).sum::<f32>() >= 0.0;
    let elected = values.filter(|(value, _)| if wins_plus { *value > 0.0 } else { *value < 0.0 });
    let (sum, count) = elected.fold((0.0, 0u32), |(sum, count), (value, weight)| (sum + value * weight, count + 1));
    sum / count.max(1) as f32
}
