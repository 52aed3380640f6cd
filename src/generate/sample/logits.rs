//! Loops over the logits of a whole vocabulary: none of them sorts it.

#[cfg(feature = "cpu")]
use crate::ops::cpu::math::exp;
use crate::ops::vectorised;

#[cfg(not(feature = "cpu"))]
fn exp(x: f32) -> f32 {
    x.exp()
}

const LANES: usize = 64;

vectorised! {
    /// The greatest of some values without NaN; negative infinity if there are none.
    pub(super) fn greatest(values: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (whole, rest) = values.as_chunks::<LANES>();
        for values in whole {
            for lane in 0..LANES {
                lanes[lane] = if values[lane] > lanes[lane] { values[lane] } else { lanes[lane] };
            }
        }
        rest.iter().chain(&lanes).fold(f32::NEG_INFINITY, |most, &value| if value > most { value } else { most })
    }
}

vectorised! {
    /// Whether a value is NaN or positive infinity.
    fn has_unusable(values: &[f32]) -> bool {
        let mut unusable = 0u32;
        for value in values {
            unusable |= u32::from(value.is_nan() | (*value == f32::INFINITY));
        }
        unusable != 0
    }
}

/// Index of the first value that is NaN or positive infinity.
pub(super) fn first_unusable(values: &[f32]) -> Option<usize> {
    let is_unusable = |value: &f32| value.is_nan() || *value == f32::INFINITY;
    if has_unusable(values) { values.iter().position(is_unusable) } else { None }
}

vectorised! {
    /// `exp((logit − greatest) / temperature)` of every logit: probabilities up to a factor, the greatest's being 1.
    fn fill_weights(logits: &[f32], greatest: f32, inverse_temperature: f32, weights: &mut [f32]) {
        for (weight, logit) in weights.iter_mut().zip(logits) {
            *weight = exp((logit - greatest) * inverse_temperature);
        }
    }
}

/// `exp((logit − greatest) / temperature)` of every logit.
pub(super) fn weights(logits: &[f32], greatest: f32, temperature: f64) -> Vec<f32> {
    let mut weights = vec![0f32; logits.len()];
    fill_weights(logits, greatest, (1.0 / temperature) as f32, &mut weights);
    weights
}

/// `ln Σ exp(logit)`.
pub(super) fn log_sum(logits: &[f32]) -> f64 {
    let greatest = greatest(logits);
    let sum: f64 = weights(logits, greatest, 1.0).chunks(LANES).map(|part| f64::from(part.iter().sum::<f32>())).sum();
    f64::from(greatest) + sum.ln()
}

/// The `count`-th greatest value; `count` is from 1 to the number of values.
///
/// One pass keeps the values above a bound that rises as more of them are found; parts of the vocabulary whose greatest
/// value lies below it are skipped.
pub(super) fn nth_greatest(values: &[f32], count: usize) -> f32 {
    let descending = |left: &f32, right: &f32| right.total_cmp(left);
    let room = (2 * count).max(256);
    let (mut kept, mut bound) = (Vec::with_capacity(room + LANES), f32::NEG_INFINITY);
    for part in values.chunks(LANES) {
        if kept.len() >= count && greatest(part) <= bound {
            continue;
        }
        kept.extend(part.iter().copied().filter(|value| *value > bound || bound == f32::NEG_INFINITY));
        if kept.len() >= room {
            let (_, nth, _) = kept.select_nth_unstable_by(count - 1, descending);
            bound = *nth;
            kept.truncate(count);
        }
    }
    let (_, nth, _) = kept.select_nth_unstable_by(count - 1, descending);
    *nth
}

/// Indices and values of the `count` greatest, the greatest first, ties by index.
pub(super) fn greatest_indices(values: &[f32], count: usize) -> Vec<(u32, f32)> {
    let count = count.min(values.len());
    if count == 0 {
        return Vec::new();
    }
    let bound = nth_greatest(values, count);
    let mut found: Vec<(u32, f32)> =
        (0u32..).zip(values).filter(|(_, value)| **value >= bound).map(|(index, value)| (index, *value)).collect();
    found.sort_by(|(_, left), (_, right)| right.total_cmp(left));
    found.truncate(count);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_greatest_is_that_of_a_sorted_list() {
        for length in [1usize, 5, 63, 64, 65, 1000, 5000] {
            let values: Vec<f32> = (0..length).map(|index| ((index * 7919) % 1013) as f32 - 500.0).collect();
            let mut sorted = values.clone();
            sorted.sort_by(|left, right| right.total_cmp(left));
            for count in [1, 2, 40, 300, length].into_iter().filter(|count| *count <= length) {
                assert_eq!(nth_greatest(&values, count), sorted[count - 1], "{count} of {length}");
                let found = greatest_indices(&values, count);
                assert!(found.iter().map(|(_, value)| value).eq(&sorted[..count]), "{count} of {length}");
                assert!(found.iter().all(|(index, value)| values[*index as usize] == *value));
            }
        }
        assert_eq!(nth_greatest(&[f32::NEG_INFINITY; 700], 600), f32::NEG_INFINITY);
        assert_eq!(greatest_indices(&[2.0, 3.0, 3.0, 1.0], 2), [(1, 3.0), (2, 3.0)]);
    }
}
