//! Panels of integers with AMX-INT8: `tdpbsud` multiplies 16 rows of activations by a block of 16 outputs.
//!
//! A block of a panel with a byte for each code is a tile in the order that the instruction reads. Its sums are exact, and they are
//! scaled and added in the order of the kernel for AVX-512, so that a row has the same bits with either.
//!
//! Source: Intel, "Intel 64 and IA-32 Architectures SDM" vol. 2, AMX.

use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

use super::Integers;
use crate::ops::cpu::decode::activations::{BLOCK, Input};
use crate::ops::cpu::decode::panels::{CodeForm, Form, NF4_VALUES, Panels, ROWS};
use crate::ops::cpu::isa::detect::TileConfiguration;
use crate::ops::cpu::kernel::amx::with_tiles;

/// Rows of activations of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Tiles of sums that lie in memory at once.
const SUMS: usize = 8;
/// Bytes of a row of a tile of codes or sums.
const LINE: usize = 64;

/// The tiles of a block of 32 columns, and of one of 16: sums in register 0, activations in 4, codes in 6.
static WHOLE_BLOCKS: TileConfiguration = configuration(BLOCK);
static HALF_BLOCKS: TileConfiguration = configuration(BLOCK / 2);

const fn configuration(columns: usize) -> TileConfiguration {
    let tiles = TileConfiguration::NONE;
    let tiles = tiles.with(0, TILE_ROWS, LINE).with(4, TILE_ROWS, columns);
    tiles.with(6, columns / 4, LINE)
}

/// The codes of four columns of a panel, or the sums of a row: a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line<T>(T);

/// The outputs of the panels `range` for the first `rows` rows of activations, a multiple of 16: `store(row, panel, outputs)`.
///
/// # Safety
/// AMX-INT8, AVX-512 F, BW and VL are there, and AMX is permitted. The panels are integers of `form`.
pub(super) unsafe fn products(
    panels: &Panels,
    range: Range<usize>,
    x: &Input<'_>,
    rows: usize,
    mut store: impl FnMut(usize, usize, &mut [f32; ROWS]),
) {
    let Form::Integers { codes: code_form, offset, halves, .. } = panels.form() else { return };
    let blocks = x.columns / BLOCK;
    let mut widened = match code_form {
        CodeForm::Bytes => Vec::new(),
        CodeForm::Nibbles | CodeForm::Nf4 => vec![Line([0u8; LINE]); blocks * BLOCK / 4],
    };
    let tiles = if halves { &HALF_BLOCKS } else { &WHOLE_BLOCKS };
    let work = || {
        for panel in range {
            let (codes, scales, minima) = panels.panel(panel);
            let codes = match code_form {
                CodeForm::Bytes => codes,
                // SAFETY: the processor has the instructions; there are two lines for each line of codes.
                _ => unsafe { widen(codes, code_form == CodeForm::Nf4, &mut widened) },
            };
            for first in (0..rows).step_by(TILE_ROWS) {
                let job = Integers {
                    codes,
                    scales,
                    minima,
                    offset,
                    blocks,
                    a: &x.codes[first * x.columns..][..TILE_ROWS * x.columns],
                    a_scales: &x.scales[first * blocks..][..TILE_ROWS * blocks],
                };
                let mut out = [[0f32; ROWS]; TILE_ROWS];
                // SAFETY: tiles are configured for the form; the panel has `blocks` blocks, and there are 16 rows.
                unsafe {
                    if halves { sixteen_rows::<true>(&job, &mut out) } else { sixteen_rows::<false>(&job, &mut out) }
                };
                out.iter_mut().enumerate().for_each(|(row, out)| store(first + row, panel, out));
            }
        }
    };
    // SAFETY: AMX is available; `store` multiplies nothing.
    unsafe { with_tiles(tiles, work) }
}

/// Codes of four bits as bytes, block by block: the low halves of its four lines, then the high ones.
///
/// # Safety
/// AVX-512 F and BW are there, and `widened` has two lines for each 64 codes.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn widen<'a>(codes: &[u8], is_nf4: bool, widened: &'a mut [Line<[u8; LINE]>]) -> &'a [u8] {
    let nibble = _mm512_set1_epi8(15);
    // SAFETY: the table has 16 bytes.
    let table = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(NF4_VALUES.as_ptr().cast()) });
    let value = |codes: __m512i| if is_nf4 { _mm512_shuffle_epi8(table, codes) } else { codes };
    for (lines, codes) in widened.chunks_exact_mut(8).zip(codes.chunks_exact(4 * LINE)) {
        for four in 0..4 {
            // SAFETY: 64 codes are read, and a line is written twice.
            unsafe {
                let both = _mm512_loadu_si512(codes.as_ptr().add(LINE * four).cast());
                let low = value(_mm512_and_si512(both, nibble));
                let high = value(_mm512_and_si512(_mm512_srli_epi16(both, 4), nibble));
                _mm512_storeu_si512(lines[four].0.as_mut_ptr().cast(), low);
                _mm512_storeu_si512(lines[four + 4].0.as_mut_ptr().cast(), high);
            }
        }
    }
    // SAFETY: lines are bytes without padding.
    unsafe { std::slice::from_raw_parts(widened.as_ptr().cast(), LINE * widened.len()) }
}

/// 16 rows by a panel whose codes are bytes.
///
/// # Safety
/// AVX-512F is there, and tiles are configured for blocks of this form. The panel has `blocks` blocks, and there are 16 rows of activations.
#[target_feature(enable = "avx512f")]
unsafe fn sixteen_rows<const HALVES: bool>(job: &Integers<'_>, out: &mut [[f32; ROWS]; TILE_ROWS]) {
    let parts = if HALVES { 2 } else { 1 };
    let (columns, count) = (job.blocks * BLOCK, job.blocks * parts);
    let byte_offset = _mm512_set1_ps(-f32::from(job.offset));
    let mut dots = [Line([[0i32; ROWS]; TILE_ROWS]); SUMS];
    let mut sums = [_mm512_setzero_ps(); TILE_ROWS];
    // SAFETY: every read lies within the blocks of the panel and of the activations.
    unsafe {
        let half = |bytes: *const u8| _mm512_cvtph_ps(_mm256_loadu_si256(bytes.cast()));
        for first in (0..count).step_by(SUMS) {
            let here = SUMS.min(count - first);
            for (at, dots) in (first..).zip(&mut dots[..here]) {
                let start = at * BLOCK / parts;
                let (a, codes) = (job.a.as_ptr().add(start), job.codes.as_ptr().add(start * ROWS));
                multiply(a, columns, codes, dots.0.as_mut_ptr().cast());
            }
            for (at, dots) in (first..).zip(&dots[..here]) {
                let block = at / parts;
                let scale = half(job.scales.as_ptr().add(at * 2 * ROWS));
                let minimum = match job.minima {
                    [] => _mm512_mul_ps(scale, byte_offset),
                    minima => half(minima.as_ptr().add(block * 2 * ROWS)),
                };
                for (row, sum) in sums.iter_mut().enumerate() {
                    let a = &*job.a_scales.as_ptr().add(row * job.blocks + block);
                    let total = if HALVES { a.halves[at % 2] } else { a.sum };
                    let dot = _mm512_cvtepi32_ps(_mm512_loadu_si512(dots.0[row].as_ptr().cast()));
                    *sum = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, _mm512_set1_ps(a.scale)), *sum);
                    *sum = _mm512_fmadd_ps(minimum, _mm512_set1_ps(total), *sum);
                }
            }
        }
        for (sum, out) in sums.iter().zip(out) {
            _mm512_storeu_ps(out.as_mut_ptr(), *sum);
        }
    }
}

/// The integer sums of 16 rows of activations, `columns` apart, by the codes of a block or half a block.
///
/// # Safety
/// Tiles are configured for it; there is room for 16 rows of 16 sums.
#[inline(always)]
unsafe fn multiply(a: *const i8, columns: usize, codes: *const u8, dots: *mut i32) {
    // SAFETY: as the caller vouches.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tileloadd tmm4, [{a} + {columns}*1]",
            "tileloadd tmm6, [{codes} + {line}*1]",
            "tdpbsud tmm0, tmm4, tmm6",
            "tilestored [{dots} + {line}*1], tmm0",
            a = in(reg) a,
            columns = in(reg) columns,
            codes = in(reg) codes,
            dots = in(reg) dots,
            line = in(reg) LINE,
            out("tmm0") _, out("tmm4") _, out("tmm6") _,
            options(nostack)
        );
    }
}
