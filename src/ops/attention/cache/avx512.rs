//! The products of attention over a page with AVX-512: a register holds 16 positions or 16 values of a head.

use std::arch::x86_64::*;

use super::attend::{PageRow, ROWS};
use super::pages::{PAGE_POSITIONS, PageElement};

/// Numbers of a register.
const LANES: usize = 16;

/// 16 numbers of a page in f32.
///
/// # Safety
/// AVX-512F is there, and there are 16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<E: PageElement>(numbers: *const E) -> __m512 {
    // SAFETY: as the caller vouches; `E` is f32, or bf16 with the upper half of its bits.
    unsafe {
        if size_of::<E>() == 4 {
            _mm512_loadu_ps(numbers.cast())
        } else {
            let halves = _mm256_loadu_si256(numbers.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
        }
    }
}

/// Calls a kernel for the number of rows.
macro_rules! by_count {
    ($count:expr, $call:ident, ($($argument:expr),*)) => {
        match $count {
            1 => $call::<E, 1>($($argument),*),
            2 => $call::<E, 2>($($argument),*),
            3 => $call::<E, 3>($($argument),*),
            _ => $call::<E, 4>($($argument),*),
        }
    };
}

/// Scores of up to [`ROWS`] queries at the 64 positions of a page.
///
/// # Safety
/// AVX-512F is there. Each query has a value for each 64 of the keys.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn score<E: PageElement>(keys: &[E], queries: &[&[f32]], scores: &mut [PageRow; ROWS]) {
    debug_assert!(queries.iter().all(|query| query.len() * PAGE_POSITIONS == keys.len()));
    // SAFETY: as the caller vouches.
    unsafe { by_count!(queries.len(), score_rows, (keys, queries, scores)) }
}

/// [`score`] for `COUNT` queries, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`score`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn score_rows<E: PageElement, const COUNT: usize>(keys: &[E], queries: &[&[f32]], scores: &mut [PageRow; ROWS]) {
    // SAFETY: reads 64 keys for each value of a query.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); PAGE_POSITIONS / LANES]; COUNT];
        let starts: [*const f32; COUNT] = std::array::from_fn(|row| queries[row].as_ptr());
        for at in 0..keys.len() / PAGE_POSITIONS {
            let keys = keys.as_ptr().add(at * PAGE_POSITIONS);
            let keys = [load(keys), load(keys.add(LANES)), load(keys.add(2 * LANES)), load(keys.add(3 * LANES))];
            for (sums, start) in sums.iter_mut().zip(starts) {
                let value = _mm512_set1_ps(*start.add(at));
                for (sum, keys) in sums.iter_mut().zip(keys) {
                    *sum = _mm512_fmadd_ps(keys, value, *sum);
                }
            }
        }
        for (sums, scores) in sums.iter().zip(scores) {
            for (part, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(scores.as_mut_ptr().add(part * LANES), *sum);
            }
        }
    }
}

/// `mixed = factor · mixed + weightsᵀ · values` for each row of `mixed`.
///
/// # Safety
/// AVX-512F is there. There are 64 rows of `width` values, a multiple of 16, and at most [`ROWS`] rows as wide in `mixed`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn mix<E: PageElement>(
    values: &[E],
    width: usize,
    weights: &[PageRow; ROWS],
    factors: &[f32; ROWS],
    mixed: &mut [f32],
) {
    debug_assert!(values.len() == PAGE_POSITIONS * width && width.is_multiple_of(LANES));
    // SAFETY: as the caller vouches.
    unsafe { by_count!(mixed.len() / width, mix_rows, (values, width, weights, factors, mixed)) }
}

/// [`mix`] for `COUNT` rows, up to 64 columns at a time.
///
/// # Safety
/// The conditions of [`mix`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn mix_rows<E: PageElement, const COUNT: usize>(
    values: &[E],
    width: usize,
    weights: &[PageRow; ROWS],
    factors: &[f32; ROWS],
    mixed: &mut [f32],
) {
    let mut column = 0;
    while column < width {
        let (values, mixed) = (values.as_ptr().wrapping_add(column), mixed.as_mut_ptr().wrapping_add(column));
        // SAFETY: the columns lie inside.
        column += unsafe {
            match width - column {
                64.. => mix_columns::<E, COUNT, 4>(values, width, weights, factors, mixed),
                32.. => mix_columns::<E, COUNT, 2>(values, width, weights, factors, mixed),
                _ => mix_columns::<E, COUNT, 1>(values, width, weights, factors, mixed),
            }
        };
    }
}

/// `16 · PARTS` columns of [`mix_rows`]; their number.
///
/// # Safety
/// The conditions of [`mix`], for these columns.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn mix_columns<E: PageElement, const COUNT: usize, const PARTS: usize>(
    values: *const E,
    width: usize,
    weights: &[PageRow; ROWS],
    factors: &[f32; ROWS],
    mixed: *mut f32,
) -> usize {
    // SAFETY: as the caller vouches.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); PARTS]; COUNT];
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                let before = _mm512_loadu_ps(mixed.add(row * width + part * LANES));
                *sum = _mm512_mul_ps(before, _mm512_set1_ps(factors[row]));
            }
        }
        for position in 0..PAGE_POSITIONS {
            let mut loaded = [_mm512_setzero_ps(); PARTS];
            for (part, loaded) in loaded.iter_mut().enumerate() {
                *loaded = load(values.add(position * width + part * LANES));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*weights.get_unchecked(row).get_unchecked(position));
                for (sum, loaded) in sums.iter_mut().zip(loaded) {
                    *sum = _mm512_fmadd_ps(weight, loaded, *sum);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (part, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(mixed.add(row * width + part * LANES), *sum);
            }
        }
        PARTS * LANES
    }
}
