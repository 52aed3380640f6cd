//! Sums over tokens: the gradients of low-rank factors.

use super::isa::vectorised;
use super::pool;
use super::rows::{Rows, Stored};
use super::shared::SharedMut;

/// Columns and ranks of the block of sums that a loop over the tokens holds in registers.
const COLUMNS: usize = 32;
const RANKS: usize = 8;

type Block = [[f32; COLUMNS]; RANKS];

/// `scale · leftᵀ · right`, `[rank, width]`: summed over the tokens in order, in f32 for either format of `right`.
///
/// Nothing is packed: with so few rows in the result, every value is used a handful of times only.
#[derive(Clone, Copy)]
pub struct Outer<'a> {
    /// `[tokens, rank]`, with the distance between its rows.
    pub left: (&'a [f32], usize),
    /// Columns on the left.
    pub rank: usize,
    /// `[tokens, width]`.
    pub right: Rows<'a>,
    /// Columns on the right.
    pub width: usize,
    /// Multiplies every sum.
    pub scale: f32,
}

/// Several such sums at once.
pub fn sum_outers(sums: &[Outer<'_>]) -> Vec<Vec<f32>> {
    let mut results: Vec<Vec<f32>> = sums.iter().map(|outer| vec![0f32; outer.rank * outer.width]).collect();
    let targets: Vec<_> = results.iter_mut().map(|result| SharedMut::new(result)).collect();
    let blocks: Vec<(usize, usize)> = (sums.iter().enumerate())
        .flat_map(|(index, outer)| (0..outer.width).step_by(COLUMNS).map(move |first| (index, first)))
        .collect();
    pool::for_each(blocks.len(), |task| {
        let (index, first) = blocks[task];
        let (Outer { left: (left, stride), rank, right, width, scale }, target) = (sums[index], &targets[index]);
        let columns = (width - first).min(COLUMNS);
        for first_rank in (0..rank).step_by(RANKS) {
            let ranks = (rank - first_rank).min(RANKS);
            let block = outer_block(&left[first_rank..], stride, ranks, right.from_column(first), columns);
            for (row, sums) in block.iter().enumerate().take(ranks) {
                // SAFETY: these columns belong to this task alone.
                let target = unsafe { target.slice((first_rank + row) * width + first, columns) };
                for (target, sum) in target.iter_mut().zip(sums) {
                    *target = scale * sum;
                }
            }
        }
    });
    results
}

/// `leftᵀ · right` for up to 8 ranks (of rows `stride` apart) and 32 columns.
fn outer_block(left: &[f32], stride: usize, ranks: usize, right: Rows<'_>, columns: usize) -> Block {
    #[cfg(target_arch = "x86_64")]
    if columns == COLUMNS && ranks == RANKS && super::isa::Isa::current() >= super::isa::Isa::Avx512 {
        // SAFETY: AVX-512 is there.
        return unsafe { x86::checked_block(left, stride, right) };
    }
    match right {
        Rows::F32 { data, stride: apart } => portable_block(left, stride, ranks, data, apart, columns),
        Rows::Bf16 { data, stride: apart } => portable_block(left, stride, ranks, data, apart, columns),
    }
}

vectorised! {
    fn portable_block<S: Stored>(
        left: &[f32], stride: usize, ranks: usize, right: &[S], apart: usize, columns: usize,
    ) -> Block {
        let mut sums: Block = [[0.0; COLUMNS]; RANKS];
        for (factors, row) in left.chunks(stride).zip(right.chunks(apart)) {
            if factors.len() < ranks {
                break;
            }
            for (sums, factor) in sums.iter_mut().zip(&factors[..ranks]) {
                for (sum, value) in sums.iter_mut().zip(&row[..columns]) {
                    *sum += factor * value.to_f32();
                }
            }
        }
        sums
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Block, COLUMNS, RANKS};
    use crate::ops::cpu::rows::Rows;

    /// A whole block of rows on the left, `left_stride` apart, and rows on the right.
    ///
    /// # Safety
    /// AVX-512F is there.
    pub unsafe fn checked_block(left: &[f32], left_stride: usize, right: Rows<'_>) -> Block {
        let tokens = if left.len() < RANKS { 0 } else { (left.len() - RANKS) / left_stride + 1 };
        let inside = |length: usize, stride: usize| length >= tokens.saturating_sub(1) * stride + COLUMNS;
        match right {
            Rows::F32 { data, stride } => {
                assert!(inside(data.len(), stride));
                // SAFETY: every row of the block lies inside `data` and `left`.
                unsafe { outer_block::<false>(left.as_ptr(), left_stride, data.as_ptr().cast(), stride * 4, tokens) }
            }
            Rows::Bf16 { data, stride } => {
                assert!(inside(data.len(), stride));
                // SAFETY: every row of the block lies inside `data` and `left`.
                unsafe { outer_block::<true>(left.as_ptr(), left_stride, data.as_ptr().cast(), stride * 2, tokens) }
            }
        }
    }

    /// The sums stay in 16 registers.
    ///
    /// # Safety
    /// AVX-512F is there. For each of the `tokens`, `left` has `RANKS` values every `left_stride` values, `right` `COLUMNS` values (bf16 or f32)
    /// every `stride` bytes.
    #[target_feature(enable = "avx512f")]
    unsafe fn outer_block<const BF16: bool>(
        left: *const f32,
        left_stride: usize,
        right: *const u8,
        stride: usize,
        tokens: usize,
    ) -> Block {
        let mut sums = [[_mm512_setzero_ps(); 2]; RANKS];
        for token in 0..tokens {
            // SAFETY: as the caller vouches.
            unsafe {
                let row = right.add(token * stride);
                let (lower, upper) = if BF16 {
                    (widen(_mm256_loadu_si256(row.cast())), widen(_mm256_loadu_si256(row.add(32).cast())))
                } else {
                    (_mm512_loadu_ps(row.cast()), _mm512_loadu_ps(row.add(64).cast()))
                };
                for (r, sums) in sums.iter_mut().enumerate() {
                    let factor = _mm512_set1_ps(*left.add(token * left_stride + r));
                    sums[0] = _mm512_fmadd_ps(factor, lower, sums[0]);
                    sums[1] = _mm512_fmadd_ps(factor, upper, sums[1]);
                }
            }
        }
        let mut block = [[0.0; COLUMNS]; RANKS];
        for (out, sums) in block.iter_mut().zip(sums) {
            // SAFETY: a row of the block has 32 values.
            unsafe {
                _mm512_storeu_ps(out.as_mut_ptr(), sums[0]);
                _mm512_storeu_ps(out.as_mut_ptr().add(16), sums[1]);
            }
        }
        block
    }

    /// 16 bf16 values as f32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn widen(values: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
    }
}

/// `[rows, columns]` to `[columns, rows]`.
pub fn transpose(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut transposed = vec![0f32; values.len()];
    for row in 0..rows {
        for column in 0..columns {
            transposed[column * rows + row] = values[row * columns + column];
        }
    }
    transposed
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn sums_over_tokens_are_exact_for_odd_ranks_and_widths() {
        for (tokens, rank, width) in [(5, 8, 32), (7, 3, 33), (4, 17, 70), (1, 1, 1), (9, 16, 64)] {
            // Small whole numbers: every product and sum is exact in f32, their halves in bf16.
            let left: Vec<f32> = (0..tokens * rank).map(|i| (i * 7 % 5) as f32 - 2.0).collect();
            let right: Vec<f32> = (0..tokens * width).map(|i| (i * 11 % 7) as f32 - 3.0).collect();
            let narrow: Vec<bf16> = right.iter().map(|&value| bf16::from_f32(value)).collect();
            let expected =
                |r: usize, c: usize| 0.5 * (0..tokens).map(|t| left[t * rank + r] * right[t * width + c]).sum::<f32>();
            let outer = |right| Outer { left: (&left[..], rank), rank, right, width, scale: 0.5 };
            let sums = sum_outers(&[
                outer(Rows::F32 { data: &right, stride: width }),
                outer(Rows::Bf16 { data: &narrow, stride: width }),
            ]);
            for (index, (plain, from_bf16)) in sums[0].iter().zip(&sums[1]).enumerate() {
                let expected = expected(index / width, index % width);
                assert_eq!((*plain, *from_bf16), (expected, expected), "{tokens}x{rank}x{width} at {index}");
            }
        }
    }
}
