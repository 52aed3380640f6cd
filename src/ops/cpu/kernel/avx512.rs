//! The innermost product with AVX-512: f32, and bf16 pairs with `vdpbf16ps`.

use std::arch::x86_64::*;

use half::bf16;

use super::{PANEL, by_rows};

/// The most rows of a tile: 12 by two registers make 24 accumulators; two hold the panel, the rest broadcasts.
pub(super) const ROWS: usize = 12;

/// `tile (+)= a · panel` in f32.
///
/// # Safety
/// AVX-512F is there. There are `rows` rows of `depth` values, `lda` apart, at `a`, `depth * 32` values at `panel`, and `rows` rows of 32 values
/// at `tile`, aligned to 64 bytes; `rows` is at most [`ROWS`].
#[target_feature(enable = "avx512f")]
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
    unsafe { by_rows!(rows, f32_rows, (depth, a, lda, panel, tile, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12]) }
}

/// The product for exactly `COUNT` rows, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`f32_tile`].
#[inline]
#[target_feature(enable = "avx512f")]
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
        let out = tile;
        let mut sums = [[_mm512_setzero_ps(); 2]; COUNT];
        if accumulate {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = [_mm512_load_ps(out.add(row * PANEL)), _mm512_load_ps(out.add(row * PANEL + 16))];
            }
        }
        for k in 0..depth {
            let left = _mm512_loadu_ps(panel.add(k * PANEL));
            let right = _mm512_loadu_ps(panel.add(k * PANEL + 16));
            for (row, sum) in sums.iter_mut().enumerate() {
                let value = _mm512_set1_ps(*a.add(row * lda + k));
                sum[0] = _mm512_fmadd_ps(value, left, sum[0]);
                sum[1] = _mm512_fmadd_ps(value, right, sum[1]);
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            _mm512_store_ps(out.add(row * PANEL), sum[0]);
            _mm512_store_ps(out.add(row * PANEL + 16), sum[1]);
        }
    }
}

/// `tile (+)= a · panel` over bf16 pairs.
///
/// # Safety
/// AVX512-BF16 is there. There are `rows` rows of `depth` values, `lda` apart, at `a`, `depth * 32` values at `panel`, and `rows` rows of 32 values
/// at `tile`, aligned to 64 bytes; `rows` is at most [`ROWS`].
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn bf16_tile(
    rows: usize,
    depth: usize,
    a: *const bf16,
    lda: usize,
    panel: *const bf16,
    tile: *mut f32,
    accumulate: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe { by_rows!(rows, bf16_rows, (depth, a, lda, panel, tile, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12]) }
}

/// The product for exactly `COUNT` rows, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`bf16_tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_rows<const COUNT: usize>(
    depth: usize,
    a: *const bf16,
    lda: usize,
    panel: *const bf16,
    out: *mut f32,
    accumulate: bool,
) {
    // SAFETY: reads `COUNT` rows of `a`, `depth * 32` values of `panel`; `out` has room for `COUNT` rows.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; COUNT];
        if accumulate {
            for (row, sum) in sums.iter_mut().enumerate() {
                *sum = [_mm512_load_ps(out.add(row * PANEL)), _mm512_load_ps(out.add(row * PANEL + 16))];
            }
        }
        for pair in 0..depth / 2 {
            let pairs = panel.add(pair * PANEL * 2).cast::<__m512i>();
            let left: __m512bh = std::mem::transmute(_mm512_loadu_si512(pairs));
            let right: __m512bh = std::mem::transmute(_mm512_loadu_si512(pairs.add(1)));
            for (row, sum) in sums.iter_mut().enumerate() {
                let value = a.add(row * lda + pair * 2).cast::<i32>().read_unaligned();
                let value: __m512bh = std::mem::transmute(_mm512_set1_epi32(value));
                sum[0] = _mm512_dpbf16_ps(sum[0], value, left);
                sum[1] = _mm512_dpbf16_ps(sum[1], value, right);
            }
        }
        for (row, sum) in sums.iter().enumerate() {
            _mm512_store_ps(out.add(row * PANEL), sum[0]);
            _mm512_store_ps(out.add(row * PANEL + 16), sum[1]);
        }
    }
}
