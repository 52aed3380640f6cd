//! One head of one sequence, forward: strips of query rows against packed keys and values.

use std::ops::Range;

use super::super::Geometry;
use super::packed::{Aligned, Packed};
use super::scores::{Strip, softmax};
use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::kernel::{Element, PANEL, with_tiles};
use crate::ops::cpu::product::strip;
use crate::ops::cpu::rows::Rows;

/// One query head of one sequence.
pub struct Head<'a> {
    /// The instruction set of its products.
    pub isa: Isa,
    /// `[count, head_dim]` views into wider rows, rotated.
    pub queries: Rows<'a>,
    /// Number of queries.
    pub count: usize,
    /// Position of the first query; there are `past + count` keys.
    pub past: usize,
    /// The shape of the layer.
    pub geometry: &'a Geometry,
}

impl Head<'_> {
    /// `out (+)= a · panel` for any number of rows, a tile at a time.
    ///
    /// `a` is `rows` rows of `depth` values, `lda` apart; `out` has 32 columns. Both have the rows that the kernel rounds up
    /// to.
    pub(super) fn multiply<E: Element>(
        &self,
        rows: usize,
        depth: usize,
        (a, lda): (&[E], usize),
        panel: &[E],
        out: &mut [f32],
        accumulate: bool,
    ) {
        let touched = rows.next_multiple_of(E::row_step(self.isa));
        assert!(a.len() >= (touched - 1) * lda + depth && panel.len() >= depth * PANEL && out.len() >= touched * PANEL);
        let step = E::rows_per_tile(self.isa);
        for row in (0..rows).step_by(step) {
            let count = (rows - row).min(step);
            // SAFETY: all three are large enough.
            unsafe {
                let (a, out) = (a.as_ptr().add(row * lda), out.as_mut_ptr().add(row * PANEL));
                E::tile(self.isa, count, depth, a, lda, panel.as_ptr(), out, accumulate);
            }
        }
    }

    /// Panels of keys that queries `first..first + rows` see.
    pub(super) fn panel_range(&self, first: usize, rows: usize) -> Range<usize> {
        let last = self.past + first + rows - 1;
        self.geometry.first_key(self.past + first) / PANEL..last / PANEL + 1
    }

    pub(super) fn strip(&self, first: usize, rows: usize, stride: usize, panels: Range<usize>) -> Strip {
        Strip {
            rows,
            stride,
            first_key: panels.start * PANEL,
            panels: panels.len(),
            position: self.past + first,
            window: self.geometry.window,
            scale: self.geometry.scale,
            softcap: self.geometry.softcap,
        }
    }

    /// Calls `emit(query, mixed values, log-sum)` for every one of `wanted`; `keys` are packed as columns, `values` as
    /// rows.
    pub fn forward<E: Element>(
        &self,
        wanted: Range<usize>,
        keys: &Packed<E>,
        values: &Packed<E>,
        mut emit: impl FnMut(usize, &[f32], f32),
    ) {
        let dim = self.geometry.head_dim;
        let padded = dim.next_multiple_of(E::depth_step(self.isa));
        let dim_panels = dim.div_ceil(PANEL);
        let step = E::rows_per_tile(self.isa);
        let most = self.panel_range(wanted.start, wanted.len()).len();
        let mut queries = Aligned::<E>::new(step * padded);
        let mut scores = Aligned::<f32>::new(most * step * PANEL);
        let mut weights = Aligned::<E>::new(step * most * PANEL);
        let mut mixed = Aligned::<f32>::new(dim_panels * step * PANEL);
        let (mut log_sums, mut factors) = (vec![0f32; step], vec![0f32; step]);
        let mut row_values = vec![0f32; dim_panels * PANEL];
        with_tiles::<E, _>(self.isa, || {
            for first in wanted.clone().step_by(step) {
                let rows = (wanted.end - first).min(step);
                let left = strip(self.queries, first, rows, dim, padded, queries.as_mut());
                let range = self.panel_range(first, rows);
                for (panel, scores) in range.clone().zip(scores.as_mut().chunks_exact_mut(step * PANEL)) {
                    self.multiply(rows, padded, left, keys.panel(panel), scores, false);
                }
                let depth = range.len() * PANEL;
                let strip = self.strip(first, rows, step, range.clone());
                softmax(&strip, scores.as_mut(), weights.as_mut(), depth, &mut log_sums, &mut factors);
                let left = (weights.as_slice(), depth);
                for (index, mixed) in mixed.as_mut().chunks_exact_mut(step * PANEL).enumerate() {
                    let panel = &values.panel(index)[range.start * PANEL * PANEL..][..depth * PANEL];
                    self.multiply(rows, depth, left, panel, mixed, false);
                }
                for row in 0..rows {
                    for (index, values) in row_values.chunks_exact_mut(PANEL).enumerate() {
                        let sums = &mixed.as_slice()[(index * step + row) * PANEL..][..PANEL];
                        values.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum * factors[row]);
                    }
                    emit(first + row, &row_values[..dim], log_sums[row]);
                }
            }
        });
    }
}
