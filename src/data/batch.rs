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

/// The order of an epoch in which an example comes as often as its weight says: the whole part of the weight every time,
/// and the rest as a share of the epochs. Of the examples with a rest, `seed` and `epoch` draw those that come once more; their
/// number is the same in every epoch. With weights of 1 it is [`order`].
pub fn weighted_order(weights: &[f64], seed: u64, epoch: u64) -> Vec<usize> {
    let mut times: Vec<usize> = weights.iter().map(|weight| *weight as usize).collect();
    if weights.iter().any(|weight| weight.fract() > 0.0) {
        // Systematic sampling: along a line on which each example takes up its rest, one comes at every whole number.
        // A stream of its own, which no order of an epoch has.
        let mut along = 0.5;
        for index in order(weights.len(), seed, u64::MAX - 1 - epoch) {
            let end = along + weights[index].fract();
            times[index] += (end as usize) - (along as usize);
            along = end;
        }
    }
    let drawn: Vec<usize> = times.iter().enumerate().flat_map(|(index, times)| std::iter::repeat_n(index, *times)).collect();
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
    fn packing_fills_in_order_and_loses_nothing() {
        let lengths = [4, 3, 9, 1, 2];
        assert_eq!(packed_batches(&[0, 1, 2, 3, 4], &lengths, 8), [vec![0, 1], vec![2], vec![3, 4]]);
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
