//! The products of attention over a page with AVX-512: a register holds 16 positions or 16 values of a head.

use std::arch::x86_64::*;

use half::f16;

use super::attend::{PageRow, ROWS};
use super::pages::{GROUP, PAGE_POSITIONS, PageElement};

/// Numbers of a register.
const LANES: usize = 16;

/// 16 values of a page in f32.
///
/// # Safety
/// AVX-512F is there, and there are 16 numbers.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load<E: PageElement>(numbers: *const E, scale: __m512) -> __m512 {
    // SAFETY: as the caller vouches; `E` is f32, bf16 with the upper half of its bits, or i8.
    unsafe {
        match size_of::<E>() {
            4 => _mm512_loadu_ps(numbers.cast()),
            2 => {
                let halves = _mm256_loadu_si256(numbers.cast());
                _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))
            }
            _ => {
                let codes = _mm512_cvtepi8_epi32(_mm_loadu_si128(numbers.cast()));
                _mm512_mul_ps(_mm512_cvtepi32_ps(codes), scale)
            }
        }
    }
}

/// 16 scales in f32.
///
/// # Safety
/// AVX-512F is there, and there are 16 scales.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_scales(scales: *const f16) -> __m512 {
    // SAFETY: as the caller vouches.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast())) }
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
/// AVX-512F is there. Each query has a value for each 64 of the keys, which have their scales beside them.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn score<E: PageElement>(keys: (&[E], &[f16]), queries: &[&[f32]], scores: &mut [PageRow; ROWS]) {
    debug_assert!(queries.iter().all(|query| query.len() * PAGE_POSITIONS == keys.0.len()));
    // SAFETY: as the caller vouches.
    unsafe { by_count!(queries.len(), score_rows, (keys, queries, scores)) }
}

/// [`score`] for `COUNT` queries, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`score`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn score_rows<E: PageElement, const COUNT: usize>(
    (keys, scales): (&[E], &[f16]),
    queries: &[&[f32]],
    scores: &mut [PageRow; ROWS],
) {
    // SAFETY: reads 64 keys for each value of a query, and 64 scales for each group of them.
    unsafe {
        let mut scale = [_mm512_set1_ps(1.0); PAGE_POSITIONS / LANES];
        let mut sums = [[_mm512_setzero_ps(); PAGE_POSITIONS / LANES]; COUNT];
        let starts: [*const f32; COUNT] = std::array::from_fn(|row| queries[row].as_ptr());
        for at in 0..keys.len() / PAGE_POSITIONS {
            let keys = keys.as_ptr().add(at * PAGE_POSITIONS);
            if E::HAS_SCALES && at.is_multiple_of(GROUP) {
                let scales = scales.as_ptr().add(at / GROUP * PAGE_POSITIONS);
                for (part, scale) in scale.iter_mut().enumerate() {
                    *scale = load_scales(scales.add(part * LANES));
                }
            }
            let [first, second, third, fourth] = scale;
            let keys = [
                load(keys, first),
                load(keys.add(LANES), second),
                load(keys.add(2 * LANES), third),
                load(keys.add(3 * LANES), fourth),
            ];
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
/// AVX-512F is there. There are 64 rows of `width` values, a multiple of 16, with their scales beside them, and at most [`ROWS`] rows as
/// wide in `mixed`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn mix<E: PageElement>(
    values: (&[E], &[f16]),
    width: usize,
    weights: &[PageRow; ROWS],
    factors: &[f32; ROWS],
    mixed: &mut [f32],
) {
    debug_assert!(values.0.len() == PAGE_POSITIONS * width && width.is_multiple_of(LANES));
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
    (values, scales): (&[E], &[f16]),
    width: usize,
    weights: &[PageRow; ROWS],
    factors: &[f32; ROWS],
    mixed: &mut [f32],
) {
    let mut column = 0;
    while column < width {
        let (values, mixed) = (values.as_ptr().wrapping_add(column), mixed.as_mut_ptr().wrapping_add(column));
        // Columns begin at a whole group.
        let values = (values, scales.as_ptr().wrapping_add(column / GROUP));
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
    (values, scales): (*const E, *const f16),
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
            let mut scale = _mm512_set1_ps(1.0);
            for (part, loaded) in loaded.iter_mut().enumerate() {
                if E::HAS_SCALES && (part * LANES).is_multiple_of(GROUP) {
                    let stored = *scales.add(position * width.div_ceil(GROUP) + part * LANES / GROUP);
                    scale = _mm512_cvtph_ps(_mm256_set1_epi16(stored.to_bits() as i16));
                }
                *loaded = load(values.add(position * width + part * LANES), scale);
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
