//! Measures of a model's memory of its training examples: the exposure of canaries, and whether losses tell members from others.

use rayon::prelude::*;

use super::bootstrap::{Estimate, LEAST_EXAMPLES, RESAMPLES, draws, interval};

/// The exposure that a canary has on average where nothing is remembered, in bits: the mean of `−log₂ u` for uniform `u`, `1 / ln 2`.
pub const CHANCE_EXPOSURE: f64 = std::f64::consts::LOG2_E;
/// The area under the curve where nothing is remembered.
pub const CHANCE_AUC: f64 = 0.5;

/// The exposure of a secret, in bits: `log₂ |R| − log₂ rank` of the secret among the texts `R` of its form, by its loss (Carlini et
/// al. 2019, definition 5). The rank in `R` is estimated by the rank among the drawn `alternatives`, so the exposure is
/// `log₂ (n + 1) − log₂ (1 + less)` for `n` of them, of which `less` have a lower loss; equal ones count half.
pub fn exposure(loss: f64, alternatives: &[f64]) -> f64 {
    let below = |other: &f64| match other.total_cmp(&loss) {
        std::cmp::Ordering::Less => 1.0,
        std::cmp::Ordering::Equal => 0.5,
        std::cmp::Ordering::Greater => 0.0,
    };
    let rank = 1.0 + alternatives.iter().map(below).sum::<f64>();
    most_exposure(alternatives.len()) - rank.log2()
}

/// The greatest exposure that so many alternatives can show.
pub fn most_exposure(alternatives: usize) -> f64 {
    (alternatives as f64 + 1.0).log2()
}

/// The mean; 0 of none.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

/// The difference of two means, `of − against`.
pub fn difference(of: &[f64], against: &[f64], seed: u64) -> Estimate {
    estimate(of, against, seed, |of, against| mean(of) - mean(against))
}

/// The area under the curve of members against others by their scores: the probability that a member has the higher score, half of it where
/// both are equal (Mann and Whitney).
pub fn auc(members: &[f64], others: &[f64], seed: u64) -> Estimate {
    estimate(members, others, seed, area)
}

fn area(members: &[f64], others: &[f64]) -> f64 {
    let mut others = others.to_vec();
    others.sort_by(f64::total_cmp);
    let below = |score: &f64| {
        let less = others.partition_point(|other| other < score);
        let not_greater = others.partition_point(|other| other <= score);
        (less + not_greater) as f64 / 2.0
    };
    members.iter().map(below).sum::<f64>() / (members.len() * others.len()).max(1) as f64
}

/// `figure` of both groups, with its percentile interval over [`RESAMPLES`] draws from each.
fn estimate(a: &[f64], b: &[f64], seed: u64, figure: impl Fn(&[f64], &[f64]) -> f64 + Sync) -> Estimate {
    let drawn =
        |values: &[f64], resample| draws(seed, resample, values.len()).map(|index| values[index]).collect::<Vec<_>>();
    let resampled = |resample: u64| figure(&drawn(a, 2 * resample), &drawn(b, 2 * resample + 1));
    let (low, high) = interval((0..RESAMPLES as u64).into_par_iter().map(resampled).collect());
    Estimate { value: figure(a, b), low, high }
}

/// Whether an estimate lies above `chance` with its whole interval, from groups of these sizes; `None` where one of them is too small to say
/// so.
pub fn is_above(estimate: &Estimate, chance: f64, sizes: [usize; 2]) -> Option<bool> {
    sizes.iter().all(|size| *size >= LEAST_EXAMPLES).then_some(estimate.low > chance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposure_is_the_rank_in_bits() {
        let alternatives: Vec<f64> = (1..=255).map(f64::from).collect();
        assert_eq!(exposure(0.0, &alternatives), 8.0);
        assert_eq!(exposure(1000.0, &alternatives), 0.0);
        // 127 have a lower loss, so the rank is 128 of 256.
        assert_eq!(exposure(127.5, &alternatives), 1.0);
        // One equal and none lower.
        assert!((exposure(1.0, &alternatives) - (256f64 / 1.5).log2()).abs() < 1e-12);
        assert_eq!(most_exposure(255), 8.0);
    }

    #[test]
    fn the_mean_exposure_of_chance_is_that_of_uniform_ranks() {
        let alternatives: Vec<f64> = (0..999).map(f64::from).collect();
        let mean = (0..1000).map(|rank| exposure(f64::from(rank) - 0.5, &alternatives)).sum::<f64>() / 1000.0;
        assert!((mean - CHANCE_EXPOSURE).abs() < 0.02, "{mean}");
    }

    #[test]
    fn the_area_is_that_of_pairs() {
        // Of nine pairs, the member is higher in five and equal in one.
        let found = auc(&[1.0, 3.0, 5.0], &[0.0, 3.0, 4.0], 0);
        assert!((found.value - 5.5 / 9.0).abs() < 1e-12, "{found:?}");
        let scores: Vec<f64> = (0..100).map(f64::from).collect();
        let shifted: Vec<f64> = scores.iter().map(|score| score + 30.0).collect();
        let found = auc(&shifted, &scores, 0);
        // 1 − 0.7²/2 and a half of the ties.
        assert!((found.value - 0.755).abs() < 0.005 && found.low > 0.66 && found.high < 0.83, "{found:?}");
        assert!(found.low < found.value && found.value < found.high);
        let same = auc(&scores, &scores, 0);
        assert!(same.value == 0.5 && same.low < 0.45 && same.high > 0.55, "{same:?}");
        assert_eq!(is_above(&found, CHANCE_AUC, [100, 100]), Some(true));
        assert_eq!(is_above(&same, CHANCE_AUC, [100, 100]), Some(false));
        assert_eq!(is_above(&found, CHANCE_AUC, [100, 9]), None);
    }

    #[test]
    fn the_interval_of_a_difference_covers_what_it_must() {
        // Two normal samples by quantiles: the standard error of the difference is √(1/50 + 1/50) = 0.2.
        let values: Vec<f64> = (0..50).map(|index| f64::from(index) / 14.43).collect();
        let found = difference(&values.iter().map(|value| value + 1.0).collect::<Vec<_>>(), &values, 3);
        assert!((found.value - 1.0).abs() < 1e-12);
        assert!(((found.high - found.low) / 2.0 - 0.392).abs() < 0.04, "{found:?}");
    }
}
