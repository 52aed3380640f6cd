//! Integers packed for the way between ranks: of the 64 bits of a sum of gradients, some forty say something.
//!
//! Values go in blocks of [`BLOCK`]. Every value of a block has as many bits as the longest of that block on any rank, which the
//! ranks agree on beforehand, so that a packed block has the same length everywhere. Of a block's 64 rows of [`LANES`] values, the bits
//! run down the columns: a vector register packs a row at once.

use std::ops::Range;

use crate::ops::vectorised;

/// Values of a row.
const LANES: usize = 8;
/// Values of a block: its packed rows are whole, whatever the number of bits.
pub(super) const BLOCK: usize = 64 * LANES;

vectorised! {
    /// The bits of the longest value of each block, its sign included; 0 for a block of zeros.
    pub(super) fn widths(values: &[i64]) -> Vec<u8> {
        let mut widths = Vec::with_capacity(values.len().div_ceil(BLOCK));
        for block in values.chunks(BLOCK) {
            let mut bits = 0;
            for value in block {
                bits |= (value << 1) ^ (value >> 63);
            }
            widths.push((64 - bits.leading_zeros()) as u8);
        }
        widths
    }
}

/// The bits that the sums of the values of so many ranks need.
pub(super) fn widths_of_sums(widths: &[u8], ranks: usize) -> Vec<u8> {
    let more = ranks.next_power_of_two().trailing_zeros() as u8;
    widths.iter().map(|&width| if width == 0 { 0 } else { (width + more).min(64) }).collect()
}

/// The words of packed blocks with these widths.
pub(super) fn words(widths: &[u8]) -> usize {
    widths.iter().map(|&width| LANES * usize::from(width)).sum()
}

/// The blocks that each of the ranks adds up.
pub(super) fn shares(blocks: usize, ranks: usize) -> Vec<Range<usize>> {
    (0..ranks).map(|rank| rank * blocks / ranks..(rank + 1) * blocks / ranks).collect()
}

/// The values of these blocks, of `values` values in all.
pub(super) fn values_of(blocks: &Range<usize>, values: usize) -> Range<usize> {
    (blocks.start * BLOCK).min(values)..(blocks.end * BLOCK).min(values)
}

vectorised! {
    /// The words of `values`, whose blocks have these widths.
    pub(super) fn pack(values: &[i64], widths: &[u8]) -> Vec<u64> {
        let mut packed = vec![0; words(widths)];
        let mut rest = &mut packed[..];
        for (values, &width) in values.chunks(BLOCK).zip(widths) {
            let block;
            (block, rest) = rest.split_at_mut(LANES * usize::from(width));
            match values.as_array() {
                Some(values) => pack_block(values, u32::from(width), block),
                None => pack_block(&padded(values), u32::from(width), block),
            }
        }
        packed
    }
}

vectorised! {
    /// Adds the values in `packed`, whose blocks have these widths, to `values`.
    pub(super) fn add(packed: &[u64], widths: &[u8], values: &mut [i64]) {
        let mut rest = packed;
        for (values, &width) in values.chunks_mut(BLOCK).zip(widths) {
            let block;
            (block, rest) = rest.split_at(LANES * usize::from(width));
            if let Some(values) = values.as_mut_array() {
                add_block(block, u32::from(width), values);
            } else {
                let mut sums = padded(values);
                add_block(block, u32::from(width), &mut sums);
                values.copy_from_slice(&sums[..values.len()]);
            }
        }
    }
}

/// The values of the last block, with zeros behind them.
fn padded(values: &[i64]) -> [i64; BLOCK] {
    let mut block = [0; BLOCK];
    block[..values.len()].copy_from_slice(values);
    block
}

#[inline(always)]
fn pack_block(values: &[i64; BLOCK], width: u32, packed: &mut [u64]) {
    if width == 0 {
        return;
    }
    let mask = u64::MAX >> (64 - width);
    let mut words = packed.as_chunks_mut::<LANES>().0.iter_mut();
    let (mut word, mut filled) = ([0u64; LANES], 0);
    for row in values.as_chunks::<LANES>().0 {
        for lane in 0..LANES {
            word[lane] |= (row[lane] as u64 & mask) << filled;
        }
        filled += width;
        if filled >= 64 {
            filled -= 64;
            if let Some(place) = words.next() {
                *place = word;
            }
            word = [0; LANES];
            if filled > 0 {
                for lane in 0..LANES {
                    word[lane] = (row[lane] as u64 & mask) >> (width - filled);
                }
            }
        }
    }
}

#[inline(always)]
fn add_block(packed: &[u64], width: u32, values: &mut [i64; BLOCK]) {
    if width == 0 {
        return;
    }
    let unused = 64 - width;
    let mut words = packed.as_chunks::<LANES>().0.iter();
    let mut next = || words.next().copied().unwrap_or_default();
    let (mut word, mut used) = (next(), 0);
    for row in values.as_chunks_mut::<LANES>().0 {
        let mut bits = [0u64; LANES];
        for lane in 0..LANES {
            bits[lane] = word[lane] >> used;
        }
        used += width;
        if used >= 64 {
            used -= 64;
            word = next();
            if used > 0 {
                for lane in 0..LANES {
                    bits[lane] |= word[lane] << (width - used);
                }
            }
        }
        for lane in 0..LANES {
            // Shifted up and down again, which repeats the sign.
            row[lane] = row[lane].wrapping_add((bits[lane] << unused) as i64 >> unused);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Values of at most so many bits, their sign included.
    fn values(count: usize, bits: u32, generator: &mut ChaCha8Rng) -> Vec<i64> {
        (0..count).map(|_| generator.next_u64() as i64 >> (64 - bits)).collect()
    }

    #[test]
    fn values_of_every_width_come_back() {
        let mut generator = ChaCha8Rng::seed_from_u64(1);
        for bits in 1..=64 {
            for count in [1, BLOCK - 1, BLOCK, 3 * BLOCK + 7] {
                let mut values = values(count, bits, &mut generator);
                // The two values that need all the bits.
                values[0] = i64::MIN >> (64 - bits);
                values[count / 2] = i64::MAX >> (64 - bits);
                let widths = widths(&values);
                assert!(widths.iter().all(|width| u32::from(*width) <= bits), "{bits}: {widths:?}");
                let packed = pack(&values, &widths);
                assert_eq!(packed.len(), words(&widths));
                let mut sums = vec![5; count];
                add(&packed, &widths, &mut sums);
                values.iter_mut().for_each(|value| *value = value.wrapping_add(5));
                assert!(sums == values, "{bits} bits, {count} values");
            }
        }
    }

    #[test]
    fn a_width_counts_the_sign_and_zeros_take_no_room() {
        let mut blocks = vec![0; 5 * BLOCK];
        for (block, value) in [(1, 1), (2, -1), (3, -2), (4, 1 << 40)] {
            blocks[block * BLOCK + 9] = value;
        }
        assert_eq!(widths(&blocks), [0, 2, 1, 2, 42]);
        assert_eq!(words(&[0, 2, 1, 2, 42]), 47 * BLOCK / 64);
        assert!(pack(&[0; BLOCK], &[0]).is_empty());
    }

    #[test]
    fn ranks_that_add_up_their_shares_get_the_sums() {
        let mut generator = ChaCha8Rng::seed_from_u64(2);
        let count = 5 * BLOCK + 3;
        for ranks in [2, 3, 4, 7, 8] {
            let all: Vec<Vec<i64>> = (0..ranks).map(|_| values(count, 45, &mut generator)).collect();
            let widths = all
                .iter()
                .map(|values| widths(values))
                .reduce(|a, b| a.into_iter().zip(b).map(|(a, b)| a.max(b)).collect());
            let widths = widths.expect("ranks");
            let of_sums = widths_of_sums(&widths, ranks);
            let mut sums = vec![0; count];
            for share in shares(widths.len(), ranks) {
                let place = values_of(&share, count);
                let mut own = vec![0; place.len()];
                for values in &all {
                    add(&pack(&values[place.clone()], &widths[share.clone()]), &widths[share.clone()], &mut own);
                }
                let packed = pack(&own, &of_sums[share.clone()]);
                add(&packed, &of_sums[share], &mut sums[place]);
            }
            let expected: Vec<i64> = (0..count).map(|index| all.iter().map(|values| values[index]).sum()).collect();
            assert!(sums == expected, "{ranks} ranks");
        }
    }

    #[test]
    fn the_largest_sums_have_room() {
        for ranks in [2, 3, 64] {
            for value in [i64::MIN >> 20, i64::MAX >> 20] {
                let widths_of_one = widths(&[value]);
                let sum = value * ranks as i64;
                assert!(widths_of_sums(&widths_of_one, ranks) >= widths(&[sum]), "{ranks} × {value}");
            }
        }
        assert_eq!(widths_of_sums(&[64, 0], 4), [64, 0]);
    }
}
