//! Finished sums on their way to the target of a product: bias, residual and old values are added, then they are rounded once.

use std::mem::MaybeUninit;

use super::isa::vectorised;
use super::kernel::{Element, PANEL, Tile};
use super::rows::{Rows, Stored};
use super::shared::SharedMut;

/// Added to every output value.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// By row and column of the target.
    pub residual: Option<Rows<'a>>,
    /// Adds to the values that the target has already.
    pub accumulate: bool,
}

/// The target of a product, whose tasks write blocks of it.
#[derive(Clone, Copy)]
pub(super) struct Target<'a, O> {
    pub out: &'a SharedMut<'a, MaybeUninit<O>>,
    /// The distance between rows.
    pub stride: usize,
    pub epilogue: Epilogue<'a>,
}

impl<'a, O: Element> Target<'a, O> {
    /// The place of a tile of `rows` rows by `columns` columns, with `bias` for its columns.
    ///
    /// # Safety
    /// The tile lies in the target, which has values if they are added to. It is the caller's alone.
    pub unsafe fn tile(
        &self,
        (row, rows): (usize, usize),
        (column, columns): (usize, usize),
        bias: Option<&'a [f32]>,
    ) -> StoredTile<'a, O> {
        let residual = self.epilogue.residual.map(|residual| residual.from_row(row).from_column(column));
        // SAFETY: the place lies in the target.
        let out = unsafe { self.out.as_ptr().add(row * self.stride + column).cast::<O>() };
        StoredTile { out, stride: self.stride, rows, columns, bias, residual, accumulate: self.epilogue.accumulate }
    }
}

/// The place of a tile, and what is added to it.
pub(super) struct StoredTile<'a, O> {
    out: *mut O,
    stride: usize,
    rows: usize,
    columns: usize,
    bias: Option<&'a [f32]>,
    residual: Option<Rows<'a>>,
    accumulate: bool,
}

impl<O: Element> StoredTile<'_, O> {
    /// Whether whole rows of sums are rounded, and nothing is added.
    pub fn is_plain(&self) -> bool {
        self.columns == PANEL && self.bias.is_none() && self.residual.is_none() && !self.accumulate
    }

    /// Stores a row of a tile that [is plain](StoredTile::is_plain).
    #[inline(always)]
    pub fn store_plain_row(&self, row: usize, sums: &[f32; PANEL]) {
        if row < self.rows {
            // SAFETY: `Target::tile` was promised that these rows lie in the target and are this task's alone.
            unsafe { store_whole(sums, self.out.add(row * self.stride)) };
        }
    }

    /// `target row = sums (+ bias) (+ residual) (+ target row)`, rounded once; nothing for rows beyond the tile's.
    #[inline(always)]
    fn store_row(&self, row: usize, sums: &[f32; PANEL]) {
        if row >= self.rows {
            return;
        }
        let mut sums = *sums;
        if let Some(bias) = self.bias {
            add_lanes(&mut sums, bias);
        }
        match self.residual {
            Some(Rows::F32 { data, stride }) => add_lanes(&mut sums, &data[row * stride..][..self.columns]),
            Some(Rows::Bf16 { data, stride }) => add_lanes(&mut sums, &data[row * stride..][..self.columns]),
            None => {}
        }
        // SAFETY: `Target::tile` was promised that these rows lie in the target and are this task's alone, and that they
        // hold values if they are added to.
        unsafe {
            let out = self.out.add(row * self.stride);
            if self.accumulate {
                add_lanes(&mut sums, std::slice::from_raw_parts(out, self.columns));
            }
            if self.columns == PANEL {
                store_whole(&sums, out);
            } else {
                for (column, &sum) in sums[..self.columns].iter().enumerate() {
                    out.add(column).write(O::round(sum));
                }
            }
        }
    }
}

/// Rounds 32 sums.
///
/// # Safety
/// There is room for them at `out`.
#[inline(always)]
unsafe fn store_whole<O: Element>(sums: &[f32; PANEL], out: *mut O) {
    let mut rounded = [O::zeroed(); PANEL];
    for lane in 0..PANEL {
        rounded[lane] = O::round(sums[lane]);
    }
    // SAFETY: as the caller vouches.
    unsafe { out.cast::<[O; PANEL]>().write_unaligned(rounded) };
}

/// Adds up to 32 values; whole rows of lanes without a loop over the rest.
#[inline(always)]
fn add_lanes<S: Stored>(sums: &mut [f32; PANEL], values: &[S]) {
    if let Ok(values) = <&[S; PANEL]>::try_from(values) {
        for lane in 0..PANEL {
            sums[lane] += values[lane].to_f32();
        }
    } else {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value.to_f32();
        }
    }
}

vectorised! {
    /// Stores every row of a tile.
    pub(super) fn store_tile<O: Element>(tile: &Tile, target: &StoredTile<'_, O>) {
        for row in 0..target.rows {
            target.store_row(row, tile.row(row));
        }
    }
}

vectorised! {
    /// Stores a row of a tile.
    pub(super) fn store_row<O: Element>(tile: &Tile, target: &StoredTile<'_, O>, row: usize) {
        target.store_row(row, tile.row(row));
    }
}
