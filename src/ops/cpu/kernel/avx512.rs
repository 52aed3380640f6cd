//! The innermost product with AVX-512: f32, bf16 pairs with `vdpbf16ps`, and bf16 pairs that are widened for f32 arithmetic.

use std::arch::x86_64::*;

use half::bf16;

use super::{LAID_DEPTH, PANEL, by_rows};

/// The most rows of a tile: 12 by two registers make 24 accumulators; two hold the panel, the rest broadcasts.
pub(super) const ROWS: usize = 12;

/// How far ahead the kernels in f32 fetch, which are limited by what they load: bytes of the panel, values of each row.
const PANEL_AHEAD: usize = 2048;
const ROWS_AHEAD: usize = 32;
/// Values of a cache line of f32.
const LINE: usize = 16;

/// Fetches the cache line at any address into the first-level cache.
#[inline(always)]
fn fetch<T>(at: *const T) {
    // SAFETY: a prefetch reads nothing.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
}

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
        let mut sums = begin::<COUNT>(out, accumulate);
        for start in (0..depth).step_by(LINE) {
            (0..COUNT).for_each(|row| fetch(a.wrapping_add(row * lda + start + ROWS_AHEAD)));
            for k in start..depth.min(start + LINE) {
                let columns = panel.add(k * PANEL);
                fetch(columns.wrapping_byte_add(PANEL_AHEAD));
                fetch(columns.wrapping_byte_add(PANEL_AHEAD + 64));
                let (left, right) = (_mm512_loadu_ps(columns), _mm512_loadu_ps(columns.add(16)));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(row * lda + k));
                    sum[0] = _mm512_fmadd_ps(value, left, sum[0]);
                    sum[1] = _mm512_fmadd_ps(value, right, sum[1]);
                }
            }
        }
        finish(sums, out);
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
        let mut sums = begin::<COUNT>(out, accumulate);
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
        finish(sums, out);
    }
}

/// `tile (+)= a · panel` in f32, for rows that are laid out as `[depth / 16][rows][16]`: their places are constants then, and
/// finding them takes no instruction.
///
/// # Safety
/// AVX-512F is there. There are `rows` rows of `depth` values, rounded up to 16, at `a`, `depth * 32` values at `panel`, and `rows` rows of 32 values
/// at `tile`, aligned to 64 bytes; `rows` is at most [`ROWS`].
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn f32_laid_out_tile(
    rows: usize,
    depth: usize,
    a: *const f32,
    panel: *const f32,
    tile: *mut f32,
    accumulate: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe { by_rows!(rows, f32_laid_out_rows, (depth, a, panel, tile, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12]) }
}

/// The product for exactly `COUNT` rows, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`f32_laid_out_tile`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn f32_laid_out_rows<const COUNT: usize>(
    depth: usize,
    a: *const f32,
    panel: *const f32,
    out: *mut f32,
    accumulate: bool,
) {
    // SAFETY: reads `COUNT` rows of `a`, `depth * 32` values of `panel`; `out` has room for `COUNT` rows.
    unsafe {
        let mut sums = begin::<COUNT>(out, accumulate);
        for start in (0..depth).step_by(LAID_DEPTH) {
            let (a, panel) = (a.add(start * COUNT), panel.add(start * PANEL));
            for k in 0..LAID_DEPTH.min(depth - start) {
                let columns = panel.add(k * PANEL);
                fetch(columns.wrapping_byte_add(PANEL_AHEAD));
                fetch(columns.wrapping_byte_add(PANEL_AHEAD + 64));
                let (left, right) = (_mm512_loadu_ps(columns), _mm512_loadu_ps(columns.add(16)));
                for (row, sum) in sums.iter_mut().enumerate() {
                    let value = _mm512_set1_ps(*a.add(row * LAID_DEPTH + k));
                    sum[0] = _mm512_fmadd_ps(value, left, sum[0]);
                    sum[1] = _mm512_fmadd_ps(value, right, sum[1]);
                }
            }
        }
        finish(sums, out);
    }
}

/// [`f32_laid_out_tile`] for a panel of bf16 pairs, which are widened. On processors that multiply f32 twice as often as pairs of
/// bf16 it is as fast as a panel of f32, from half the bytes.
///
/// # Safety
/// The conditions of [`f32_laid_out_tile`]; `depth` is even.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn widened_tile(
    rows: usize,
    depth: usize,
    a: *const f32,
    panel: *const bf16,
    tile: *mut f32,
    accumulate: bool,
) {
    // SAFETY: as the caller vouches.
    unsafe { by_rows!(rows, widened_rows, (depth, a, panel, tile, accumulate), [1 2 3 4 5 6 7 8 9 10 11 12]) }
}

/// The product for exactly `COUNT` rows, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`widened_tile`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn widened_rows<const COUNT: usize>(
    depth: usize,
    a: *const f32,
    panel: *const bf16,
    out: *mut f32,
    accumulate: bool,
) {
    // SAFETY: reads `COUNT` rows of `a`, `depth * 32` values of `panel`; `out` has room for `COUNT` rows.
    unsafe {
        let mut sums = begin::<COUNT>(out, accumulate);
        let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        for start in (0..depth).step_by(LAID_DEPTH) {
            let (a, panel) = (a.add(start * COUNT), panel.add(start * PANEL));
            for k in (0..LAID_DEPTH.min(depth - start)).step_by(2) {
                let pairs = panel.add(k * PANEL).cast::<__m512i>();
                fetch(pairs.wrapping_byte_add(PANEL_AHEAD));
                fetch(pairs.wrapping_byte_add(PANEL_AHEAD + 64));
                let (left, right) = (_mm512_loadu_si512(pairs), _mm512_loadu_si512(pairs.add(1)));
                let even = [_mm512_slli_epi32::<16>(left), _mm512_slli_epi32::<16>(right)];
                let odd = [_mm512_and_si512(left, upper), _mm512_and_si512(right, upper)];
                for (half, columns) in [even, odd].into_iter().enumerate() {
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_ps(*a.add(row * LAID_DEPTH + k + half));
                        sum[0] = _mm512_fmadd_ps(value, _mm512_castsi512_ps(columns[0]), sum[0]);
                        sum[1] = _mm512_fmadd_ps(value, _mm512_castsi512_ps(columns[1]), sum[1]);
                    }
                }
            }
        }
        finish(sums, out);
    }
}

/// The sums of a tile's rows in registers: zeros, or those at `tile`.
///
/// # Safety
/// AVX-512F is there; `tile` has `COUNT` rows of 32 values, aligned to 64 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn begin<const COUNT: usize>(tile: *const f32, accumulate: bool) -> [[__m512; 2]; COUNT] {
    let mut sums = [[_mm512_setzero_ps(); 2]; COUNT];
    if accumulate {
        for (row, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as the caller vouches.
            *sum = unsafe { [_mm512_load_ps(tile.add(row * PANEL)), _mm512_load_ps(tile.add(row * PANEL + 16))] };
        }
    }
    sums
}

/// Stores the sums of a tile's rows.
///
/// # Safety
/// The conditions of [`begin`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const COUNT: usize>(sums: [[__m512; 2]; COUNT], tile: *mut f32) {
    for (row, sum) in sums.iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe {
            _mm512_store_ps(tile.add(row * PANEL), sum[0]);
            _mm512_store_ps(tile.add(row * PANEL + 16), sum[1]);
        }
    }
}
