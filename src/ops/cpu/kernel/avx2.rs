//! The innermost product with AVX2 and FMA, f32.

use std::arch::x86_64::*;

use super::{PANEL, by_rows};

/// The most rows of a tile: 6 by two registers of 8 make 12 accumulators.
pub(super) const ROWS: usize = 6;

/// `tile (+)= a · panel` in f32.
///
/// # Safety
/// AVX2 with FMA is there. There are `rows` rows of `depth` values, `lda` apart, at `a`, `depth * 32` values at `panel`, and `rows` rows of 32 values
/// at `tile`, aligned to 64 bytes; `rows` is at most [`ROWS`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn f32_tile(
    rows: usize,
    depth: usize,
    a: *const f32,
    lda: usize,
    panel: *const f32,
    tile: *mut f32,
    accumulate: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe { by_rows!(rows, f32_rows, (depth, a, lda, panel, tile, accumulate), [1 2 3 4 5 6]) }
}

/// The product for exactly `COUNT` rows, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`f32_tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_rows<const COUNT: usize>(
    depth: usize,
    a: *const f32,
    lda: usize,
    panel: *const f32,
    tile: *mut f32,
    accumulate: bool,
) {
    // SAFETY: reads `COUNT` rows of `a`, `depth * 32` values of `panel`; the tile has room for `COUNT` rows.
    unsafe {
        for half in [0, 16] {
            let out = tile.add(half);
            let mut sums = [[_mm256_setzero_ps(); 2]; COUNT];
            if accumulate {
                for (row, sum) in sums.iter_mut().enumerate() {
                    *sum = [_mm256_load_ps(out.add(row * PANEL)), _mm256_load_ps(out.add(row * PANEL + 8))];
                }
            }
            for k in 0..depth {
                let left = _mm256_loadu_ps(panel.add(k * PANEL + half));
                let right = _mm256_loadu_ps(panel.add(k * PANEL + half + 8));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let value = _mm256_set1_ps(*a.add(row * lda + k));
                    sum[0] = _mm256_fmadd_ps(value, left, sum[0]);
                    sum[1] = _mm256_fmadd_ps(value, right, sum[1]);
                }
            }
            for (row, sum) in sums.iter().enumerate() {
                _mm256_store_ps(out.add(row * PANEL), sum[0]);
                _mm256_store_ps(out.add(row * PANEL + 8), sum[1]);
            }
        }
    }
}
