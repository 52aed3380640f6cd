//! The order of examples, and micro-batches by count or by length.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;

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
/// micro-batch that it leaves the least room in, or begins a new one. Of more than `PACKING_WINDOW` open ones the fullest is
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

/// The order of an epoch in which an example comes as often as its weight says: the whole part of the weight every time,
/// and the rest as a share of the epochs. Of the examples with a rest, `seed` and `epoch` draw those that come once more; their
/// number is the same in every epoch. With weights of 1 it is [`order`].
pub fn weighted_order(weights: &[f64], seed: u64, epoch: u64) -> Vec<usize> {
    let mut times: Vec<usize> = weights.iter().map(|weight| *weight as usize).collect();
    if weights.iter().any(|weight| weight.fract() > 0.0) {
        // Systematic sampling: along a line on which each example takes up its rest, one comes at every whole number. Whole
        // numbers of 2⁻³² make the sum the same in every order.
        const ONE: u64 = 1 << 32;
        let mut along = ONE / 2;
        // A stream of its own, which no order of an epoch has.
        for index in order(weights.len(), seed, u64::MAX - 3 - epoch) {
            let end = along + (weights[index].fract() * ONE as f64) as u64;
            times[index] += (end / ONE - along / ONE) as usize;
            along = end;
        }
    }
    let drawn: Vec<usize> =
        times.iter().enumerate().flat_map(|(index, times)| std::iter::repeat_n(index, *times)).collect();
    order(drawn.len(), seed, epoch).into_iter().map(|at| drawn[at]).collect()
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
    fn weights_decide_how_often_an_example_comes() {
        assert_eq!(weighted_order(&[1.0; 100], 7, 3), order(100, 7, 3));
        let weights: Vec<f64> = (0..400).map(|index| [1.0, 2.0, 0.25, 1.5][index % 4]).collect();
        let mut counts = vec![0usize; 400];
        for epoch in 0..8 {
            let order = weighted_order(&weights, 5, epoch);
            assert_eq!(order.len(), 475, "epoch {epoch}");
            assert_eq!(order, weighted_order(&weights, 5, epoch));
            order.into_iter().for_each(|index| counts[index] += 1);
        }
        let of = |kind: usize| counts.iter().skip(kind).step_by(4);
        assert!(of(0).all(|count| *count == 8) && of(1).all(|count| *count == 16));
        // 100 examples of which 25 are drawn, eight times: 200 draws, and each epoch others.
        assert!((180..=220).contains(&of(2).sum::<usize>()) && of(2).filter(|count| **count > 0).count() > 75);
        assert!(of(3).all(|count| (8..=16).contains(count)) && (1180..=1220).contains(&of(3).sum::<usize>()));
    }
}
