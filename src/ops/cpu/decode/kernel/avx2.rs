//! Panels of integers with AVX2: a register holds four codes of eight rows, so a panel is two halves.

use std::arch::x86_64::*;

use super::code_form::{BYTES, NF4, NIBBLES};
use super::{Integers, Tile, with_form};
use crate::ops::cpu::decode::activations::{BLOCK, BlockScale};
use crate::ops::cpu::decode::panels::{CodeForm, NF4_VALUES, ROWS};

/// The outputs of `count` rows (1, 2, 4 or 8).
///
/// # Safety
/// AVX2, FMA and F16C are there. The panel has `blocks` blocks of its form, and there are as many rows of activations.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn integers(job: &Integers<'_>, form: (CodeForm, bool), count: usize, out: &mut Tile) {
    // Two rows at a time: sixteen registers hold no more sums.
    for first in (0..count).step_by(2) {
        let rows_here = count.min(2);
        let part =
            Integers { a: &job.a[first * job.blocks * BLOCK..], a_scales: &job.a_scales[first * job.blocks..], ..*job };
        for lanes in 0..2 {
            let mut tile = [[0f32; 8]; 8];
            // SAFETY: as the caller vouches.
            unsafe { with_form!(form, rows, (&part, lanes, &mut tile), rows_here) };
            for row in 0..rows_here {
                out[first + row][8 * lanes..8 * lanes + 8].copy_from_slice(&tile[row]);
            }
        }
    }
}

/// Eight lanes of a panel for `COUNT` rows.
///
/// # Safety
/// The conditions of [`integers`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<const COUNT: usize, const CODES: u8, const HALVES: bool>(
    job: &Integers<'_>,
    lanes: usize,
    out: &mut [[f32; 8]; 8],
) {
    // SAFETY: every read lies within the blocks of the panel and of the activations.
    unsafe {
        let (nibble, ones) = (_mm256_set1_epi8(15), _mm256_set1_epi16(1));
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(NF4_VALUES.as_ptr().cast()));
        let to_signed = _mm256_set1_epi8(i8::MIN);
        // Codes from zero on are multiplied as they are. Codes around 128 become signed ones: `vpmaddubsw` takes their
        // magnitudes, with the signs moved to the activations, so that its sums of two fit into 16 bits.
        let is_signed = job.offset == 128;
        let offset = _mm256_set1_ps(if is_signed { 0.0 } else { -f32::from(job.offset) });
        let columns = job.blocks * BLOCK;
        let code_bytes = if CODES == BYTES { ROWS * BLOCK } else { ROWS * BLOCK / 2 };
        let half = |bytes: *const u8| _mm256_cvtph_ps(_mm_loadu_si128(bytes.add(16 * lanes).cast()));
        let mut sums = [_mm256_setzero_ps(); COUNT];
        for block in 0..job.blocks {
            let codes = job.codes.as_ptr().add(block * code_bytes + 32 * lanes);
            let mut dots = [[_mm256_setzero_si256(); 2]; COUNT];
            for four in 0..4 {
                let first = _mm256_loadu_si256(codes.add(64 * four).cast());
                let (low, high) = match CODES {
                    BYTES => (first, _mm256_loadu_si256(codes.add(64 * (four + 4)).cast())),
                    _ => (_mm256_and_si256(first, nibble), _mm256_and_si256(_mm256_srli_epi16(first, 4), nibble)),
                };
                let (low, high) = match CODES {
                    NF4 => (_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high)),
                    _ => (low, high),
                };
                for (part, codes) in [low, high].into_iter().enumerate() {
                    for (row, dots) in dots.iter_mut().enumerate() {
                        let a = job.a.as_ptr().add(row * columns + block * BLOCK + 16 * part + 4 * four).cast::<i32>();
                        let a = _mm256_set1_epi32(a.read_unaligned());
                        let pairs = if is_signed {
                            let signed = _mm256_xor_si256(codes, to_signed);
                            _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(a, signed))
                        } else {
                            _mm256_maddubs_epi16(codes, a)
                        };
                        dots[part] = _mm256_add_epi32(dots[part], _mm256_madd_epi16(pairs, ones));
                    }
                }
            }
            let a_scale = |row: usize| -> &BlockScale { &*job.a_scales.as_ptr().add(row * job.blocks + block) };
            let parts = if HALVES { 2 } else { 1 };
            for part in 0..parts {
                let scale = half(job.scales.as_ptr().add((parts * block + part) * 2 * ROWS));
                let minimum = match job.minima {
                    [] => _mm256_mul_ps(scale, offset),
                    minima => half(minima.as_ptr().add(block * 2 * ROWS)),
                };
                for (row, sum) in sums.iter_mut().enumerate() {
                    let a = a_scale(row);
                    let [left, right] = dots[row];
                    let dot = if HALVES { dots[row][part] } else { _mm256_add_epi32(left, right) };
                    let total = if HALVES { a.halves[part] } else { a.sum };
                    let scale = _mm256_mul_ps(scale, _mm256_set1_ps(a.scale));
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, *sum);
                    *sum = _mm256_fmadd_ps(minimum, _mm256_set1_ps(total), *sum);
                }
            }
        }
        for (sum, out) in sums.iter().zip(out) {
            _mm256_storeu_ps(out.as_mut_ptr(), *sum);
        }
    }
}
