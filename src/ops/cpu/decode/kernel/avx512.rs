//! Panels with AVX-512: `vpdpbusd` (VNNI) for codes, `vfmadd` for floats. A register holds a value, or four codes, of 16 rows.

use std::arch::x86_64::*;

use super::code_form::{BYTES, NF4, NIBBLES};
use super::{Integers, Tile, with_form};
use crate::ops::cpu::decode::activations::{BLOCK, BlockScale};
use crate::ops::cpu::decode::panels::{CodeForm, NF4_VALUES, ROWS};

/// Bytes of codes between those that are fetched and those that are multiplied.
const AHEAD: usize = 4096;

/// The outputs of `count` rows (1, 2, 4 or 8).
///
/// # Safety
/// AVX-512 F, BW, VL and VNNI are there. The panel has `blocks` blocks of its form, and there are as many rows of activations.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
pub(super) unsafe fn integers(job: &Integers<'_>, form: (CodeForm, bool), count: usize, out: &mut Tile) {
    // SAFETY: as the caller vouches.
    unsafe { with_form!(form, rows, (job, out), count) }
}

/// [`integers`] for `COUNT` rows, whose sums stay in registers.
///
/// # Safety
/// The conditions of [`integers`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn rows<const COUNT: usize, const CODES: u8, const HALVES: bool>(job: &Integers<'_>, out: &mut Tile) {
    // SAFETY: every read lies within the blocks of the panel and of the activations.
    unsafe {
        let (nibble, byte_offset) = (_mm512_set1_epi8(15), _mm512_set1_ps(-f32::from(job.offset)));
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(NF4_VALUES.as_ptr().cast()));
        let columns = job.blocks * BLOCK;
        let code_bytes = if CODES == BYTES { ROWS * BLOCK } else { ROWS * BLOCK / 2 };
        let half = |bytes: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(bytes.cast()));
        let mut sums = [_mm512_setzero_ps(); COUNT];
        for block in 0..job.blocks {
            let codes = job.codes.as_ptr().add(block * code_bytes);
            let mut dots = [[_mm512_setzero_si512(); 2]; COUNT];
            for four in 0..4 {
                // The hardware's own fetching stops at the end of a page.
                let ahead = codes.wrapping_add(AHEAD + 64 * four);
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                if CODES == BYTES {
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(256).cast());
                }
                let first = _mm512_loadu_si512(codes.add(64 * four).cast());
                let (low, high) = match CODES {
                    BYTES => (first, _mm512_loadu_si512(codes.add(64 * (four + 4)).cast())),
                    _ => (_mm512_and_si512(first, nibble), _mm512_and_si512(_mm512_srli_epi16(first, 4), nibble)),
                };
                let (low, high) = match CODES {
                    NF4 => (_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high)),
                    _ => (low, high),
                };
                for (row, dots) in dots.iter_mut().enumerate() {
                    let a = job.a.as_ptr().add(row * columns + block * BLOCK + 4 * four).cast::<i32>();
                    dots[0] = _mm512_dpbusd_epi32(dots[0], low, _mm512_set1_epi32(a.read_unaligned()));
                    dots[1] = _mm512_dpbusd_epi32(dots[1], high, _mm512_set1_epi32(a.add(4).read_unaligned()));
                }
            }
            let a_scale = |row: usize| -> &BlockScale { &*job.a_scales.as_ptr().add(row * job.blocks + block) };
            if HALVES {
                #[expect(clippy::needless_range_loop, reason = "three arrays have a part of this number")]
                for part in 0..2 {
                    let scale = half(job.scales.as_ptr().add((2 * block + part) * 2 * ROWS));
                    let minimum = _mm512_mul_ps(scale, byte_offset);
                    for (row, sum) in sums.iter_mut().enumerate() {
                        let a = a_scale(row);
                        let dot = _mm512_cvtepi32_ps(dots[row][part]);
                        *sum = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(a.scale)), *sum);
                        *sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(a.halves[part]), *sum);
                    }
                }
            } else {
                let scale = half(job.scales.as_ptr().add(block * 2 * ROWS));
                let minimum = match job.minima {
                    [] => _mm512_mul_ps(scale, byte_offset),
                    minima => half(minima.as_ptr().add(block * 2 * ROWS)),
                };
                for (row, sum) in sums.iter_mut().enumerate() {
                    let a = a_scale(row);
                    let dot = _mm512_cvtepi32_ps(_mm512_add_epi32(dots[row][0], dots[row][1]));
                    *sum = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(a.scale)), *sum);
                    *sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(a.sum), *sum);
                }
            }
        }
        for (sum, out) in sums.iter().zip(out) {
            _mm512_storeu_ps(out.as_mut_ptr(), *sum);
        }
    }
}

/// The outputs of a panel in bf16 for `count` rows (1, 2, 4 or 8) of `columns` values.
///
/// # Safety
/// AVX-512F is there. The panel has 16 rows of `columns` values, rounded up to pairs.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn floats(panel: &[u8], values: &[f32], columns: usize, count: usize, out: &mut Tile) {
    // SAFETY: as the caller vouches.
    unsafe {
        match count {
            1 => float_rows::<1>(panel, values, columns, out),
            2 => float_rows::<2>(panel, values, columns, out),
            4 => float_rows::<4>(panel, values, columns, out),
            _ => float_rows::<8>(panel, values, columns, out),
        }
    }
}

/// [`floats`] for `COUNT` rows: even and odd columns are summed apart.
///
/// # Safety
/// The conditions of [`floats`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn float_rows<const COUNT: usize>(panel: &[u8], values: &[f32], columns: usize, out: &mut Tile) {
    // SAFETY: every read lies within the panel and the rows.
    unsafe {
        let upper = _mm512_set1_epi32(0xffff_0000_u32 as i32);
        let mut sums = [[_mm512_setzero_ps(); 2]; COUNT];
        for pair in 0..columns / 2 {
            let both = _mm512_loadu_si512(panel.as_ptr().add(4 * ROWS * pair).cast());
            let even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            let odd = _mm512_castsi512_ps(_mm512_and_si512(both, upper));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = values.as_ptr().add(row * columns + 2 * pair);
                sums[0] = _mm512_fmadd_ps(even, _mm512_set1_ps(*a), sums[0]);
                sums[1] = _mm512_fmadd_ps(odd, _mm512_set1_ps(*a.add(1)), sums[1]);
            }
        }
        if columns % 2 == 1 {
            let both = _mm512_loadu_si512(panel.as_ptr().add(4 * ROWS * (columns / 2)).cast());
            let even = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
            for (row, sums) in sums.iter_mut().enumerate() {
                let a = *values.as_ptr().add(row * columns + columns - 1);
                sums[0] = _mm512_fmadd_ps(even, _mm512_set1_ps(a), sums[0]);
            }
        }
        for (sums, out) in sums.iter().zip(out) {
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_add_ps(sums[0], sums[1]));
        }
    }
}
