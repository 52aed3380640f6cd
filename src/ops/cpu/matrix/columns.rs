//! A stored matrix as the right-hand side of a product, decoded and packed a few panels at a time.

use half::bf16;

use super::decode::{DECODED, NARROWED, lend};
use super::interleave::{interleave_pair, interleave_rows};
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
    /// Decodes the rows of one panel at a time and packs them.
    fn pack_decoded(&self, first: usize, columns: usize, pack: impl FnOnce(&[f32])) {
        let depth = self.0.columns();
        lend(&DECODED, PANEL * depth, 0.0, |decoded| {
            for (column, row) in decoded.chunks_exact_mut(depth).take(columns).enumerate() {
                self.0.decode(first + column, 0, row);
            }
            pack(decoded);
        });
    }
}

impl Columns<f32> for Forward<'_> {
    fn depth(&self) -> usize {
        self.0.columns()
    }

    fn pack(&self, first: usize, count: usize, panels: &mut [f32]) {
        let depth = self.0.columns();
        each_panel(first, count, depth, panels, |column, columns, panel| match self.0.storage() {
            Storage::F32(bytes) => pack_rows_f32(&cast(bytes)[column * depth..], depth, columns, depth, panel),
            _ => self.pack_decoded(column, columns, |rows| pack_rows_f32(rows, depth, columns, depth, panel)),
        });
    }
}

impl Columns<bf16> for Forward<'_> {
    fn depth(&self) -> usize {
        self.0.columns()
    }

    fn pack(&self, first: usize, count: usize, panels: &mut [bf16]) {
        let depth = self.0.columns();
        let padded = Columns::<bf16>::padded_depth(self);
        each_panel(first, count, padded, panels, |column, columns, panel| match self.0.storage() {
            Storage::Bf16(bytes) => pack_rows_bf16(&cast(bytes)[column * depth..], depth, columns, depth, panel),
            _ if depth.is_multiple_of(2) => self.pack_decoded(column, columns, |rows| {
                lend(&NARROWED, PANEL * depth, bf16::ZERO, |narrowed| {
                    narrow(rows, narrowed);
                    pack_rows_bf16(narrowed, depth, columns, depth, panel);
                });
            }),
            _ => self.pack_decoded(column, columns, |rows| pack_rows(rows, depth, columns, depth, 1.0, panel)),
        });
    }
}

impl InputGradient<'_> {
    /// Decodes row after row of the wanted columns and hands each to `write(k, values)`.
    fn rows_of(&self, first: usize, count: usize, mut write: impl FnMut(usize, &[f32])) {
        lend(&DECODED, count, 0.0, |decoded| {
            for k in 0..self.count {
                self.matrix.decode(self.first + k, first, decoded);
                write(k, decoded);
            }
        });
    }
}

impl Columns<f32> for InputGradient<'_> {
    fn depth(&self) -> usize {
        self.count
    }

    fn pack(&self, first: usize, count: usize, panels: &mut [f32]) {
        let (depth, stride) = (self.count, self.matrix.columns());
        if let Storage::F32(bytes) = self.matrix.storage() {
            let data = &cast::<f32>(bytes)[self.first * stride..];
            return PlainColumns { data, stride, depth, scale: 1.0 }.pack(first, count, panels);
        }
        self.rows_of(first, count, |k, values| {
            for (panel, values) in panels.chunks_exact_mut(depth * PANEL).zip(values.chunks(PANEL)) {
                write_depth_row(values, 1.0, k, panel);
            }
        });
    }
}

impl Columns<bf16> for InputGradient<'_> {
    fn depth(&self) -> usize {
        self.count
    }

    fn pack(&self, first: usize, count: usize, panels: &mut [bf16]) {
        let (depth, stride) = (self.count, self.matrix.columns());
        let padded = Columns::<bf16>::padded_depth(self);
        if padded > depth {
            let whole = depth / 2 * 2 * PANEL;
            panels.chunks_exact_mut(padded * PANEL).for_each(|panel| panel[whole..].fill(bf16::ZERO));
        }
        if let Storage::Bf16(bytes) = self.matrix.storage() {
            let data = &cast::<bf16>(bytes)[self.first * stride..];
            return interleave_rows(&data[first..], stride, count, depth, panels);
        }
        // Rows come in pairs: both are rounded, then interleaved.
        let mut pair = vec![bf16::ZERO; 2 * count];
        self.rows_of(first, count, |k, values| {
            let half = k % 2;
            narrow(values, &mut pair[half * count..][..count]);
            if half == 1 || k + 1 == depth {
                if half == 0 {
                    pair[count..].fill(bf16::ZERO);
                }
                interleave_pair(&pair, count, panels, padded * PANEL, k / 2);
            }
        });
    }
}
