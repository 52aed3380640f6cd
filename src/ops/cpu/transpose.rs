//! Transposing matrices of 32-bit words, or of pairs of bf16, in registers.

use std::arch::x86_64::*;

use super::kernel::PANEL;

/// How far ahead of a row's reading it is fetched, in 16-bit units.
const PREFETCH: usize = 192;

/// `rows` rows of `columns` values (f32, or bf16 that are paired first) become `columns` rows of 32-bit words.
///
/// # Safety
/// AVX-512F, BW and VL are there. Every row lies in `values`, `stride` bytes apart; every row of `rows` words (half as many for bf16, rounded up) in
/// `out`, `out_stride` words apart.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub unsafe fn rows<const BF16: bool>(
    values: *const u8,
    stride: usize,
    rows: usize,
    columns: usize,
    out: *mut i32,
    out_stride: usize,
) {
    let mask = |count: usize| -> __mmask16 { if count >= 16 { !0 } else { (1 << count) - 1 } };
    let word_rows = if BF16 { rows.div_ceil(2) } else { rows };
    for column in (0..columns).step_by(16) {
        let inside = mask(columns - column);
        for first in (0..word_rows).step_by(16) {
            let mut block = [_mm512_setzero_si512(); 16];
            for (row, words) in block.iter_mut().enumerate().take(word_rows - first) {
                let row = first + row;
                // SAFETY: as the caller vouches; masked loads at the edge.
                unsafe {
                    if BF16 {
                        let half = |row: usize| {
                            let at = values.add(row * stride + column * 2).cast();
                            _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, at))
                        };
                        *words = half(2 * row);
                        if 2 * row + 1 < rows {
                            *words = _mm512_or_si512(*words, _mm512_slli_epi32::<16>(half(2 * row + 1)));
                        }
                    } else {
                        *words = _mm512_maskz_loadu_epi32(inside, values.add(row * stride + column * 4).cast());
                    }
                }
            }
            let block = transpose(block);
            let inside = mask(word_rows - first);
            for (step, words) in block.iter().enumerate().take(columns - column) {
                // SAFETY: as above.
                unsafe { _mm512_mask_storeu_epi32(out.add((column + step) * out_stride + first), inside, *words) };
            }
        }
    }
}

/// 32 rows of `depth` 32-bit words (stride in 16-bit units) become `depth` rows of 32 words.
///
/// # Safety
/// AVX-512F is there; every row lies in `data`, and `panel` has room for `depth * 32` words.
#[target_feature(enable = "avx512f")]
pub unsafe fn words(data: *const u16, stride: usize, depth: usize, panel: *mut i32) {
    // SAFETY: as the caller vouches: 32 rows, `depth` words each; masked loads at the edge.
    unsafe {
        for half in 0..2 {
            let rows = data.add(half * 16 * stride);
            let mut k = 0;
            while k < depth {
                let count = (depth - k).min(16);
                let mask: __mmask16 = if count == 16 { !0 } else { (1 << count) - 1 };
                let mut block = [_mm512_setzero_si512(); 16];
                for (row, words) in block.iter_mut().enumerate() {
                    let at = rows.add(row * stride + k * 2);
                    // Far enough ahead for main memory; beyond the end it is ignored.
                    _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(PREFETCH).cast());
                    *words = _mm512_maskz_loadu_epi32(mask, at.cast());
                }
                let block = transpose(block);
                for (step, words) in block.iter().enumerate().take(count) {
                    _mm512_storeu_si512(panel.add((k + step) * PANEL + half * 16).cast(), *words);
                }
                k += 16;
            }
        }
    }
}

/// Transposes 16 by 16 words: pairs, quads, then 128-bit lanes in two rounds.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut quads = pairs;
    for i in 0..4 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        quads[4 * i] = _mm512_unpacklo_epi64(a, c);
        quads[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        quads[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        quads[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut halves = quads;
    for i in 0..4 {
        let (a, b) = (quads[i], quads[4 + i]);
        let (c, d) = (quads[8 + i], quads[12 + i]);
        halves[i] = _mm512_shuffle_i32x4::<0x88>(a, b);
        halves[4 + i] = _mm512_shuffle_i32x4::<0xdd>(a, b);
        halves[8 + i] = _mm512_shuffle_i32x4::<0x88>(c, d);
        halves[12 + i] = _mm512_shuffle_i32x4::<0xdd>(c, d);
    }
    let mut columns = halves;
    for i in 0..4 {
        columns[i] = _mm512_shuffle_i32x4::<0x88>(halves[i], halves[8 + i]);
        columns[8 + i] = _mm512_shuffle_i32x4::<0xdd>(halves[i], halves[8 + i]);
        columns[4 + i] = _mm512_shuffle_i32x4::<0x88>(halves[4 + i], halves[12 + i]);
        columns[12 + i] = _mm512_shuffle_i32x4::<0xdd>(halves[4 + i], halves[12 + i]);
    }
    columns
}

/// 32 rows of `depth` 32-bit words (`stride` words apart) become `depth` rows of 32 words, eight by eight.
///
/// # Safety
/// AVX2 is there; every row lies in `data`, and `panel` has room for `depth * 32` words.
#[target_feature(enable = "avx2")]
pub unsafe fn words_avx2(data: *const f32, stride: usize, depth: usize, panel: *mut f32) {
    let whole = depth / 8 * 8;
    for first in (0..PANEL).step_by(8) {
        // SAFETY: as the caller vouches: rows `first..first + 8`, `depth` words each.
        unsafe {
            let rows = data.add(first * stride);
            for k in (0..whole).step_by(8) {
                let block = std::array::from_fn(|row| _mm256_loadu_ps(rows.add(row * stride + k)));
                for (step, words) in transpose_eight(block).into_iter().enumerate() {
                    _mm256_storeu_ps(panel.add((k + step) * PANEL + first), words);
                }
            }
            for k in whole..depth {
                (0..8).for_each(|row| *panel.add(k * PANEL + first + row) = *rows.add(row * stride + k));
            }
        }
    }
}

/// Transposes 8 by 8 words: pairs, quads, then 128-bit lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose_eight(rows: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = rows;
    for i in 0..4 {
        pairs[2 * i] = _mm256_unpacklo_ps(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i], rows[2 * i + 1]);
    }
    let mut quads = pairs;
    for i in 0..2 {
        let [a, b, c, d] = [pairs[4 * i], pairs[4 * i + 1], pairs[4 * i + 2], pairs[4 * i + 3]];
        quads[4 * i] = _mm256_shuffle_ps::<0x44>(a, c);
        quads[4 * i + 1] = _mm256_shuffle_ps::<0xee>(a, c);
        quads[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b, d);
        quads[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b, d);
    }
    let mut columns = quads;
    for i in 0..4 {
        columns[i] = _mm256_permute2f128_ps::<0x20>(quads[i], quads[4 + i]);
        columns[4 + i] = _mm256_permute2f128_ps::<0x31>(quads[i], quads[4 + i]);
    }
    columns
}
