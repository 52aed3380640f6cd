//! Rows of bf16 laid out as panels of pairs.

use std::ops::Range;

use half::bf16;

use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::kernel::PANEL;

vectorised! {
    /// Rows `2i` and `2i + 1` of `data` (`stride` apart) become the pairs of depth `i` of every panel that `columns` fill;
    /// missing columns and rows become zero. A panel is as large as `panels` has room for.
    pub fn interleave_rows(data: &[bf16], stride: usize, columns: usize, depth: usize, panels: &mut [bf16]) {
        let size = panels.len() / columns.div_ceil(PANEL);
        for pair in 0..depth.div_ceil(2) {
            fetch_rows(data, stride, columns, 2 * pair);
            let lower = &data[2 * pair * stride..][..columns];
            let upper: &[bf16] = if 2 * pair + 1 < depth { &data[(2 * pair + 1) * stride..][..columns] } else { &[] };
            write_pair(lower, upper, panels, size, pair);
        }
    }
}

/// Fetches two rows some way after `row`: each is read once, and far from the last.
#[inline(always)]
fn fetch_rows(data: &[bf16], stride: usize, columns: usize, row: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const AHEAD: usize = 12;
        for row in [row + AHEAD, row + AHEAD + 1] {
            for column in (0..columns).step_by(LINE) {
                let at = data.as_ptr().wrapping_add(row * stride + column);
                // SAFETY: a prefetch reads nothing; any address will do.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, stride, columns, row);
}

/// Values of a cache line.
const LINE: usize = 32;

/// Fetches the values of `rows` (`stride` apart) in `columns` into the second-level cache.
pub(super) fn fetch_lines(data: &[bf16], stride: usize, rows: Range<usize>, columns: Range<usize>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        for row in rows {
            // The last value may stand on a line of its own.
            for column in columns.clone().step_by(LINE).chain([columns.end - 1]) {
                let at = data.as_ptr().wrapping_add(row * stride + column);
                // SAFETY: a prefetch reads nothing; any address will do.
                unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (data, stride, rows, columns);
}

vectorised! {
    /// The two rows of `pair` become depth `at` of every panel of `size` values.
    pub(super) fn interleave_pair(pair: &[bf16], columns: usize, panels: &mut [bf16], size: usize, at: usize) {
        write_pair(&pair[..columns], &pair[columns..2 * columns], panels, size, at);
    }
}

#[inline(always)]
fn write_pair(lower: &[bf16], upper: &[bf16], panels: &mut [bf16], size: usize, at: usize) {
    for (panel, first) in panels.chunks_exact_mut(size).zip((0..lower.len()).step_by(PANEL)) {
        let words: &mut [u32] = bytemuck::cast_slice_mut(&mut panel[at * 2 * PANEL..][..2 * PANEL]);
        let whole = |row: &[bf16]| row.get(first..first + PANEL).is_some();
        if whole(lower) && whole(upper) {
            let (lower, upper) = (&lower[first..first + PANEL], &upper[first..first + PANEL]);
            for lane in 0..PANEL {
                words[lane] = u32::from(lower[lane].to_bits()) | u32::from(upper[lane].to_bits()) << 16;
            }
        } else {
            for (lane, word) in words.iter_mut().enumerate() {
                let bits = |row: &[bf16]| row.get(first + lane).map_or(0, |value| u32::from(value.to_bits()));
                *word = bits(lower) | bits(upper) << 16;
            }
        }
    }
}
