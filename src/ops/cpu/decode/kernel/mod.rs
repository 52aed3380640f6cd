//! The products of one panel: 16 outputs of a few rows of activations, for each instruction set.
//!
//! The integer sums of a block are exact, so they may be taken in any order; the blocks are added in f32 from the first to the
//! last: `Σ scale · s · (codes · a) + (minimum − offset · scale) · s · Σ a`, with `s` the scale of the activations.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use std::ops::Range;

use super::activations::{BLOCK, BlockScale, Input};
use super::panels::{Form, Panels, ROWS};
use crate::ops::cpu::isa::Isa;

/// The most rows of activations that go through a kernel at once.
pub(super) const MOST_ROWS: usize = 8;

/// The outputs of a few rows of activations.
pub(super) type Tile = [[f32; ROWS]; MOST_ROWS];

/// A panel of integers and the activations that it is multiplied by.
#[derive(Clone, Copy)]
struct Integers<'a> {
    codes: &'a [u8],
    scales: &'a [u8],
    /// Empty where the format has none.
    minima: &'a [u8],
    /// The code of zero.
    offset: u8,
    blocks: usize,
    /// The first row of activations, `[columns]`; the others follow.
    a: &'a [i8],
    /// Their scales, `[blocks]` each.
    a_scales: &'a [BlockScale],
}

/// The form of a panel of integers, as the kernels are compiled for: see [`CodeForm`], and whether scales are halves.
#[cfg(target_arch = "x86_64")]
macro_rules! with_form {
    (@ $call:ident, ($($argument:expr),*), $codes:tt, $halves:tt, $rows:expr) => {
        match $rows {
            1 => $call::<1, $codes, $halves>($($argument),*),
            2 => $call::<2, $codes, $halves>($($argument),*),
            4 => $call::<4, $codes, $halves>($($argument),*),
            _ => $call::<8, $codes, $halves>($($argument),*),
        }
    };
    ($form:expr, $call:ident, $arguments:tt, $($rows:tt)*) => {
        match $form {
            (CodeForm::Nibbles, false) => with_form!(@ $call, $arguments, { NIBBLES }, false, $($rows)*),
            (CodeForm::Nf4, false) => with_form!(@ $call, $arguments, { NF4 }, false, $($rows)*),
            (CodeForm::Bytes, false) => with_form!(@ $call, $arguments, { BYTES }, false, $($rows)*),
            (CodeForm::Bytes, true) => with_form!(@ $call, $arguments, { BYTES }, true, $($rows)*),
            (_, true) => unreachable!("no format of nibbles has two scales a block"),
        }
    };
}
#[cfg(target_arch = "x86_64")]
use with_form;

/// Values of the kernels' parameter for the form of codes.
#[cfg(target_arch = "x86_64")]
mod code_form {
    pub(super) const NIBBLES: u8 = 0;
    pub(super) const NF4: u8 = 1;
    pub(super) const BYTES: u8 = 2;
}

/// The outputs of the panels `range` for as many rows of activations, from the first on, as go through tiles of 16; their number. The
/// others are left to [`tile`], which gives the same bits.
pub(super) fn in_tiles(
    panels: &Panels,
    range: Range<usize>,
    x: &Input<'_>,
    store: impl FnMut(usize, usize, &mut [f32; ROWS]),
) -> usize {
    #[cfg(target_arch = "x86_64")]
    if panels.needs_codes() && Isa::multiplies_bytes_in_tiles() {
        let rows = x.rows / amx::TILE_ROWS * amx::TILE_ROWS;
        if rows > 0 {
            // SAFETY: the processor has the instructions, and the process the permission.
            unsafe { amx::products(panels, range, x, rows, store) };
        }
        return rows;
    }
    let _ = (panels, range, x, store);
    0
}

/// The outputs of a panel for the rows `first .. first + count`; `count` is 1, 2, 4 or 8.
pub(super) fn tile(panels: &Panels, panel: usize, x: &Input<'_>, first: usize, count: usize, out: &mut Tile) {
    let (codes, scales, minima) = panels.panel(panel);
    let isa = Isa::current();
    let Form::Integers { codes: code_form, offset, halves, .. } = panels.form() else {
        let rows = &x.values[first * x.columns..(first + count) * x.columns];
        #[cfg(target_arch = "x86_64")]
        if isa >= Isa::Avx512 {
            // SAFETY: the processor has AVX-512: `current` never exceeds what it reports.
            return unsafe { avx512::floats(codes, rows, x.columns, count, out) };
        }
        return portable::floats(codes, rows, x.columns, count, out);
    };
    let blocks = x.columns / BLOCK;
    let job = Integers {
        codes,
        scales,
        minima,
        offset,
        blocks,
        a: &x.codes[first * x.columns..(first + count) * x.columns],
        a_scales: &x.scales[first * blocks..(first + count) * blocks],
    };
    assert!(codes.len() == blocks * code_form.block_bytes() && minima.len().is_multiple_of(2 * ROWS * blocks.max(1)));
    #[cfg(target_arch = "x86_64")]
    {
        if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the processor has the instructions; the panel has the bytes of its form.
            return unsafe { avx512::integers(&job, (code_form, halves), count, out) };
        }
        if isa >= Isa::Avx2 && is_x86_feature_detected!("f16c") {
            // SAFETY: as above.
            return unsafe { avx2::integers(&job, (code_form, halves), count, out) };
        }
    }
    portable::integers(&job, (code_form, halves), count, out);
}
