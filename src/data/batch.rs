//! The order of examples, micro-batches by count or by length, and the validation split.

use std::collections::HashSet;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

use super::encoded::Encoded;
use crate::error::{Error, Place, Result, counted};

/// The order of an epoch: a permutation of `0..count` that `seed` and `epoch` (from 0) decide, on every machine
/// and in every version.
pub fn order(count: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut generator = ChaCha12Rng::seed_from_u64(seed);
    generator.set_stream(epoch);
    let mut order: Vec<usize> = (0..count).collect();
    // Fisher and Yates, with Lemire's multiply-and-shift for the draw below `bound`: its bias is under
    // `bound / 2^64`.
    for last in (1..count).rev() {
        let bound = last as u128 + 1;
        let drawn = (u128::from(generator.next_u64()) * bound) >> 64;
        order.swap(last, drawn as usize);
    }
    order
}

/// Micro-batches of `micro_batch_seqs` sequences in the given order; the last one may be smaller.
pub fn batches(order: &[usize], micro_batch_seqs: usize) -> Vec<Vec<usize>> {
    order.chunks(micro_batch_seqs.max(1)).map(<[usize]>::to_vec).collect()
}

/// Micro-batches filled in the given order up to `max_tokens` tokens, at least one sequence each. `lengths` are
/// the lengths of all sequences, by index.
pub fn packed_batches(order: &[usize], lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for &index in order {
        let length = lengths.get(index).copied().unwrap_or_default();
        match batches.last_mut() {
            Some(batch) if length <= room => batch.push(index),
            _ => {
                batches.push(vec![index]);
                room = max_tokens.max(length);
            }
        }
        room -= length;
    }
    batches
}

/// Sets aside a `fraction` of the examples for validation, drawn by `seed`: `(train, valid)`, each in the
/// original order and neither empty.
pub fn split_valid<T>(examples: Vec<T>, fraction: f64, seed: u64) -> Result<(Vec<T>, Vec<T>)> {
    let count = examples.len();
    if !(fraction > 0.0 && fraction < 1.0) || count < 2 {
        let message = format!(
            "is {fraction} of {}; expected a share above 0 and below 1 of at least 2",
            counted(count, "example")
        );
        return Err(Error::input(Place::setting("data.valid_fraction"), message));
    }
    let wanted = ((count as f64 * fraction).round() as usize).clamp(1, count - 1);
    // A stream of its own: the split must not follow the order of any epoch.
    let chosen: HashSet<usize> = order(count, seed, u64::MAX).into_iter().take(wanted).collect();
    let (mut train, mut valid) = (Vec::with_capacity(count - wanted), Vec::with_capacity(wanted));
    for (index, example) in examples.into_iter().enumerate() {
        if chosen.contains(&index) { &mut valid } else { &mut train }.push(example);
    }
    Ok((train, valid))
}

/// The number of validation sequences that are also training sequences, token for token.
pub fn seen_in_training(train: &[Encoded], valid: &[Encoded]) -> usize {
    let seen: HashSet<&[u32]> = train.iter().map(|sequence| sequence.ids.as_slice()).collect();
    valid.iter().filter(|sequence| seen.contains(sequence.ids.as_slice())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_a_permutation_that_seed_and_epoch_decide() {
        let first = order(1000, 7, 0);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<_>>());
        assert_eq!(first, order(1000, 7, 0));
        assert_ne!(first, order(1000, 7, 1));
        assert_ne!(first, order(1000, 8, 0));
        assert!(order(0, 7, 0).is_empty());
    }

    #[test]
    fn every_position_is_equally_likely() {
        // 3,000 permutations of 5: each of the 25 cells is binomial(3000, 1/5), standard deviation 21.9.
        let mut counts = [[0i32; 5]; 5];
        for seed in 0..3000 {
            for (place, item) in order(5, seed, 0).into_iter().enumerate() {
                counts[place][item] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|count| (count - 600).abs() < 110), "{counts:?}");
    }

    #[test]
    fn the_last_partial_batch_counts() {
        assert_eq!(batches(&[3, 1, 2, 0, 4], 2), [vec![3, 1], vec![2, 0], vec![4]]);
        assert!(batches(&[], 2).is_empty());
    }

    #[test]
    fn packing_fills_in_order_and_loses_nothing() {
        let lengths = [4, 3, 9, 1, 2];
        assert_eq!(packed_batches(&[0, 1, 2, 3, 4], &lengths, 8), [vec![0, 1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn a_split_is_disjoint_complete_and_repeatable() {
        let (train, valid) = split_valid((0..50).collect(), 0.1, 3).expect("split");
        assert_eq!((train.len(), valid.len()), (45, 5));
        let mut all: Vec<i32> = train.iter().chain(&valid).copied().collect();
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        assert_eq!(split_valid((0..50).collect(), 0.1, 3).expect("split"), (train, valid));
        assert!(split_valid(vec![1], 0.5, 0).is_err());
        assert!(split_valid(vec![1, 2, 3], f64::NAN, 0).is_err());
    }
}
