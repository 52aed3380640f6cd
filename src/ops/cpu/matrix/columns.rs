//! A stored matrix as the right-hand side of a product, decoded and packed a few panels at a time.

use std::ops::Range;

use half::bf16;

use super::decode::{DECODED, NARROWED, lend};
use super::interleave::{fetch_lines, interleave_pair, interleave_rows};
use super::storage::{Matrix, Storage, cast};
use crate::ops::cpu::kernel::{Element, PANEL};
use crate::ops::cpu::pack::{
    Columns, PlainColumns, each_panel, pack_rows, pack_rows_bf16, pack_rows_f32, write_depth_row,
};
use crate::ops::cpu::rows::narrow;

/// The right-hand side of `x · Wᵀ`.
struct Forward<'a>(&'a Matrix);

/// The right-hand side of `g · W`, for `count` of the matrix's rows from `first` on.
struct InputGradient<'a> {
    matrix: &'a Matrix,
    first: usize,
    count: usize,
}

/// The views of a frozen matrix in the number format of the kernel.
pub trait Views<E: Element> {
    /// `Wᵀ` on the right.
    fn forward_columns(&self) -> Box<dyn Columns<E> + '_>;
    /// `count` rows of `W` from `first` on, on the right.
    fn gradient_columns_of(&self, first: usize, count: usize) -> Box<dyn Columns<E> + '_>;
}

impl Views<f32> for Matrix {
    fn forward_columns(&self) -> Box<dyn Columns<f32> + '_> {
        Box::new(Forward(self))
    }

    fn gradient_columns_of(&self, first: usize, count: usize) -> Box<dyn Columns<f32> + '_> {
        Box::new(InputGradient { matrix: self, first, count })
    }
}

impl Views<bf16> for Matrix {
    fn forward_columns(&self) -> Box<dyn Columns<bf16> + '_> {
        Box::new(Forward(self))
    }

    fn gradient_columns_of(&self, first: usize, count: usize) -> Box<dyn Columns<bf16> + '_> {
        Box::new(InputGradient { matrix: self, first, count })
    }
}

impl Forward<'_> {
    /// Decodes `depth` of the rows of a panel, and packs them.
    fn pack_decoded(&self, first: usize, columns: usize, depth: Range<usize>, pack: impl FnOnce(&[f32])) {
        lend(&DECODED, PANEL * depth.len(), 0.0, |decoded| {
            for (column, row) in decoded.chunks_exact_mut(depth.len()).take(columns).enumerate() {
                self.0.decode(first + column, depth.start, row);
            }
            pack(decoded);
        });
    }
}

impl Columns<f32> for Forward<'_> {
    fn depth(&self) -> usize {
        self.0.columns()
    }

    fn pack(&self, first: usize, count: usize, depth: Range<usize>, panels: &mut [f32]) {
        let (stride, values) = (self.0.columns(), depth.len());
        each_panel(first, count, values, panels, |column, columns, panel| match self.0.storage() {
            Storage::F32(bytes) => {
                pack_rows_f32(&cast(bytes)[column * stride + depth.start..], stride, columns, values, panel);
            }
            _ => self.pack_decoded(column, columns, depth.clone(), |rows| {
                pack_rows_f32(rows, values, columns, values, panel);
            }),
        });
    }
}

impl Columns<bf16> for Forward<'_> {
    fn depth(&self) -> usize {
        self.0.columns()
    }

    fn pack(&self, first: usize, count: usize, depth: Range<usize>, panels: &mut [bf16]) {
        let stride = self.0.columns();
        let real = depth.start..depth.end.min(stride);
        let values = real.len();
        each_panel(first, count, depth.len(), panels, |column, columns, panel| match self.0.storage() {
            Storage::Bf16(bytes) => {
                pack_rows_bf16(&cast(bytes)[column * stride + depth.start..], stride, columns, values, panel);
            }
            _ if values.is_multiple_of(2) => self.pack_decoded(column, columns, real.clone(), |rows| {
                lend(&NARROWED, PANEL * values, bf16::ZERO, |narrowed| {
                    narrow(rows, narrowed);
                    pack_rows_bf16(narrowed, values, columns, values, panel);
                });
            }),
            _ => self.pack_decoded(column, columns, real.clone(), |rows| {
                pack_rows(rows, values, columns, values, 1.0, panel);
            }),
        });
    }

    fn fetch(&self, first: usize, count: usize, depth: Range<usize>, share: usize, shares: usize) {
        if let Storage::Bf16(bytes) = self.0.storage() {
            let stride = self.0.columns();
            let rows = first + share * count / shares..first + (share + 1) * count / shares;
            fetch_lines(cast::<bf16>(bytes), stride, rows, depth);
        }
    }
}

impl InputGradient<'_> {
    /// Decodes row after row of the wanted columns and hands each to `write(index, values)`.
    fn rows_of(&self, first: usize, count: usize, depth: Range<usize>, mut write: impl FnMut(usize, &[f32])) {
        lend(&DECODED, count, 0.0, |decoded| {
            for (index, k) in depth.enumerate() {
                self.matrix.decode(self.first + k, first, decoded);
                write(index, decoded);
            }
        });
    }
}

impl Columns<f32> for InputGradient<'_> {
    fn depth(&self) -> usize {
        self.count
    }

    fn pack(&self, first: usize, count: usize, depth: Range<usize>, panels: &mut [f32]) {
        let (stride, rows) = (self.matrix.columns(), self.count);
        match self.matrix.storage() {
            Storage::F32(bytes) => {
                let data = &cast::<f32>(bytes)[self.first * stride..];
                return PlainColumns { data, stride, depth: rows, scale: 1.0 }.pack(first, count, depth, panels);
            }
            Storage::Bf16(bytes) => {
                let data = &cast::<bf16>(bytes)[self.first * stride..];
                return PlainColumns { data, stride, depth: rows, scale: 1.0 }.pack(first, count, depth, panels);
            }
            _ => {}
        }
        let size = depth.len() * PANEL;
        self.rows_of(first, count, depth, |k, values| {
            for (panel, values) in panels.chunks_exact_mut(size).zip(values.chunks(PANEL)) {
                write_depth_row(values, 1.0, k, panel);
            }
        });
    }
}

impl Columns<bf16> for InputGradient<'_> {
    fn depth(&self) -> usize {
        self.count
    }

    fn pack(&self, first: usize, count: usize, depth: Range<usize>, panels: &mut [bf16]) {
        let size = depth.len() * PANEL;
        let real = depth.start..depth.end.min(self.count);
        let values = real.len();
        if depth.len() > values {
            let whole = values / 2 * 2 * PANEL;
            panels.chunks_exact_mut(size).for_each(|panel| panel[whole..].fill(bf16::ZERO));
        }
        if let Storage::Bf16(bytes) = self.matrix.storage() {
            let stride = self.matrix.columns();
            let data = &cast::<bf16>(bytes)[(self.first + depth.start) * stride + first..];
            return interleave_rows(data, stride, count, values, panels);
        }
        // Rows come in pairs: both are rounded, then interleaved.
        let mut pair = vec![bf16::ZERO; 2 * count];
        self.rows_of(first, count, real, |k, row| {
            let half = k % 2;
            narrow(row, &mut pair[half * count..][..count]);
            if half == 1 || k + 1 == values {
                if half == 0 {
                    pair[count..].fill(bf16::ZERO);
                }
                interleave_pair(&pair, count, panels, size, k / 2);
            }
        });
    }

    fn packs_together(&self) -> bool {
        const LONG: usize = 4096;
        !matches!(self.matrix.storage(), Storage::Bf16(_)) || self.matrix.columns() >= LONG
    }

    fn fetch(&self, first: usize, count: usize, depth: Range<usize>, share: usize, shares: usize) {
        if let Storage::Bf16(bytes) = self.matrix.storage() {
            let (stride, start) = (self.matrix.columns(), self.first + depth.start);
            let rows = start + share * depth.len() / shares..start + (share + 1) * depth.len() / shares;
            fetch_lines(cast::<bf16>(bytes), stride, rows, first..first + count);
        }
    }
}
