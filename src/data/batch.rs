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

/// Parts filled in the given order up to `max_tokens` tokens, at least one sequence each; the order of the sequences stays.
/// `lengths` are the lengths of all sequences, by index.
pub fn filled(order: &[usize], lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for &index in order {
        let length = lengths.get(index).copied().unwrap_or_default();
        match parts.last_mut() {
            Some(part) if length <= room => part.push(index),
            _ => {
                parts.push(vec![index]);
                room = max_tokens.max(length);
            }
        }
        room -= length;
    }
    parts
}

/// Micro-batches that are open at once while sequences are packed.
const PACKING_WINDOW: usize = 64;

/// Micro-batches of up to `max_tokens` tokens, packed by best fit: each sequence, in the given order, goes to the open
/// micro-batch that it leaves the least room in, or begins a new one. Of more than [`PACKING_WINDOW`] open ones the fullest is
/// closed. They come in the order in which they began, so that nothing but `order` decides it and no length comes first. A
/// sequence that is longer than `max_tokens` is a micro-batch of its own.
pub fn packed(order: &[usize], lengths: &[usize], max_tokens: usize) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    // Of each open micro-batch: its room, its number.
    let mut open: Vec<(usize, usize)> = Vec::new();
    for &index in order {
        let length = lengths.get(index).copied().unwrap_or_default();
        let fitting = open.iter_mut().filter(|(room, _)| *room >= length);
        if let Some((room, number)) = fitting.min_by_key(|(room, _)| *room) {
            *room -= length;
            batches[*number].push(index);
            continue;
        }
        open.push((max_tokens.saturating_sub(length), batches.len()));
        batches.push(vec![index]);
        if open.len() > PACKING_WINDOW
            && let Some(fullest) = (0..open.len()).min_by_key(|&at| open[at].0)
        {
            open.remove(fullest);
        }
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
    fn parts_are_filled_in_order() {
        let lengths = [4, 3, 9, 1, 2];
        assert_eq!(filled(&[0, 1, 2, 3, 4], &lengths, 8), [vec![0, 1], vec![2], vec![3, 4]]);
    }

    #[test]
    fn packing_takes_the_best_fit_and_loses_nothing() {
        // 3 goes beside 5 (room 3), not beside 4 (room 4); what is too long stands alone.
        let lengths = [4, 5, 3, 9, 4];
        assert_eq!(packed(&[0, 1, 2, 3, 4], &lengths, 8), [vec![0, 4], vec![1, 2], vec![3]]);
        let lengths: Vec<usize> = (0..2000).map(|index| 40 + index * 7919 % 460).collect();
        let order = order(lengths.len(), 3, 0);
        let tokens = |batch: &Vec<usize>| batch.iter().map(|&index| lengths[index]).sum::<usize>();
        let batches = packed(&order, &lengths, 1024);
        let mut all = batches.concat();
        all.sort_unstable();
        assert_eq!(all, (0..lengths.len()).collect::<Vec<_>>());
        assert!(batches.iter().all(|batch| tokens(batch) <= 1024));
        let begins: Vec<usize> = batches.iter().map(|batch| batch[0]).collect();
        assert!(begins.is_sorted_by_key(|begin| order.iter().position(|index| index == begin)));
        // No window of this size leaves more than a few per cent of the room; in order it is a fifth.
        let least = lengths.iter().sum::<usize>().div_ceil(1024);
        assert!(batches.len() <= least + least / 33, "{} micro-batches, {least} at least", batches.len());
        assert!(filled(&order, &lengths, 1024).len() > least + least / 8);
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
