//! Laying the right-hand matrix of a product out in panels (see `kernel`).

use std::ops::Range;

use half::bf16;

use super::isa::Isa;
use super::kernel::{Element, PANEL};
use super::rows::Stored;
#[cfg(target_arch = "x86_64")]
use super::transpose;

/// A right-hand matrix `[depth, columns]` that can lay any of its columns out as panels.
pub trait Columns<E: Element>: Sync {
    /// Length of a column.
    fn depth(&self) -> usize;

    /// Fills `panels` with rows `depth` of columns `first..first + count`, 32 columns to a panel, `depth.len() * 32` values each.
    /// Places beyond the depth or the last column become zero. `depth` is not empty and consists of whole steps of the kernel.
    fn pack(&self, first: usize, count: usize, depth: Range<usize>, panels: &mut [E]);

    /// Whether several panels are packed faster at once than one after another: the memory that one takes comes in short runs.
    fn packs_together(&self) -> bool {
        false
    }

    /// Fetches the share `share` of `shares` of the memory that [`Columns::pack`] will read into the second-level cache.
    fn fetch(&self, _first: usize, _count: usize, _depth: Range<usize>, _share: usize, _shares: usize) {}

    /// The depth a panel has: rounded up to the kernel's step.
    fn padded_depth(&self) -> usize {
        self.depth().next_multiple_of(E::depth_step(Isa::current()))
    }
}

/// Column `n` is row `n` of a row-major matrix: the forward product `x · Wᵀ`.
pub struct RowsAsColumns<'a, S> {
    /// Row-major values.
    pub data: &'a [S],
    /// Distance between rows.
    pub stride: usize,
    /// Values of a row that count.
    pub depth: usize,
    /// Multiplies every value.
    pub scale: f32,
}

impl<S: Stored, E: Element> Columns<E> for RowsAsColumns<'_, S> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn pack(&self, first: usize, count: usize, depth: Range<usize>, panels: &mut [E]) {
        let values = depth.end.min(self.depth) - depth.start;
        each_panel(first, count, depth.len(), panels, |column, columns, panel| {
            let data = &self.data[column * self.stride + depth.start..];
            pack_rows(data, self.stride, columns, values, self.scale, panel);
        });
    }
}

/// Row `k` of the right-hand matrix is row `k` of a row-major matrix: the input gradient `g · W`.
pub struct PlainColumns<'a, S> {
    /// Row-major values.
    pub data: &'a [S],
    /// Distance between rows.
    pub stride: usize,
    /// Number of rows.
    pub depth: usize,
    /// Multiplies every value.
    pub scale: f32,
}

impl<S: Stored, E: Element> Columns<E> for PlainColumns<'_, S> {
    fn depth(&self) -> usize {
        self.depth
    }

    fn pack(&self, first: usize, count: usize, depth: Range<usize>, panels: &mut [E]) {
        each_panel(first, count, depth.len(), panels, |column, columns, panel| {
            if let (Some(panel), true, PANEL) = (E::as_f32(panel), self.scale == 1.0, columns) {
                for (k, target) in depth.clone().zip(panel.chunks_exact_mut(PANEL)) {
                    S::widen_into(&self.data[k * self.stride + column..][..PANEL], target);
                }
                return;
            }
            for (at, k) in depth.clone().enumerate() {
                if k < self.depth {
                    let row = &self.data[k * self.stride + column..][..columns];
                    write_depth_row(row, self.scale, at, panel);
                } else {
                    write_depth_row::<f32, E>(&[], 1.0, at, panel);
                }
            }
        });
    }
}

/// Calls `pack(first column, columns, panel)` for each panel.
pub fn each_panel<E: Element>(
    first: usize,
    count: usize,
    depth: usize,
    panels: &mut [E],
    mut pack: impl FnMut(usize, usize, &mut [E]),
) {
    for (index, panel) in panels.chunks_exact_mut(depth * PANEL).enumerate() {
        let column = first + index * PANEL;
        pack(column, (first + count - column).min(PANEL), panel);
    }
}

/// Writes the values that a panel holds at depth `k`; missing columns become zero.
#[inline(always)]
pub fn write_depth_row<S: Stored, E: Element>(row: &[S], scale: f32, k: usize, panel: &mut [E]) {
    let unit = E::DEPTH_UNIT;
    let target = &mut panel[k / unit * unit * PANEL..][..PANEL * unit];
    let lane = k % unit;
    for (column, value) in row.iter().enumerate() {
        target[column * unit + lane] = E::round(value.to_f32() * scale);
    }
    for column in row.len()..PANEL {
        target[column * unit + lane] = E::zeroed();
    }
}

/// Packs `columns` rows of `data` (stride `stride`, `depth` values each) as the columns of one panel; what the panel has
/// room for beyond them becomes zero.
pub fn pack_rows<S: Stored, E: Element>(
    data: &[S],
    stride: usize,
    columns: usize,
    depth: usize,
    scale: f32,
    panel: &mut [E],
) {
    let unit = E::DEPTH_UNIT;
    if columns < PANEL || panel.len() > depth * PANEL {
        panel.fill(E::zeroed());
    }
    // So many depths at a time that the part of the panel that is written stays in the first-level cache.
    const BLOCK: usize = 32;
    for start in (0..depth).step_by(BLOCK) {
        let end = (start + BLOCK).min(depth);
        for column in 0..columns {
            let row = &data[column * stride + start..column * stride + end];
            let target = &mut panel[start / unit * unit * PANEL..];
            if unit == 1 {
                for (k, value) in row.iter().enumerate() {
                    target[k * PANEL + column] = E::round(value.to_f32() * scale);
                }
            } else {
                for (k, value) in row.iter().enumerate() {
                    target[(k / 2 * PANEL + column) * 2 + k % 2] = E::round(value.to_f32() * scale);
                }
            }
        }
    }
}

/// [`pack_rows`] for values that are bf16 already: pairs move as one 32-bit word.
pub fn pack_rows_bf16(data: &[bf16], stride: usize, columns: usize, depth: usize, panel: &mut [bf16]) {
    if !depth.is_multiple_of(2) || columns < PANEL {
        return pack_rows(data, stride, columns, depth, 1.0, panel);
    }
    #[cfg(target_arch = "x86_64")]
    if Isa::current() >= Isa::Avx512 {
        panel[depth * PANEL..].fill(bf16::ZERO);
        assert!(data.len() >= 31 * stride + depth && panel.len() >= depth * PANEL);
        // SAFETY: AVX-512 is there; 32 rows of `depth` values lie in `data`, the panel has room for them.
        return unsafe { transpose::words(data.as_ptr().cast(), stride, depth / 2, panel.as_mut_ptr().cast()) };
    }
    pack_rows(data, stride, columns, depth, 1.0, panel)
}

/// [`pack_rows`] for f32 values as they are.
pub fn pack_rows_f32(data: &[f32], stride: usize, columns: usize, depth: usize, panel: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if columns == PANEL && Isa::current() >= Isa::Avx2 {
        assert!(data.len() >= 31 * stride + depth && panel.len() >= depth * PANEL);
        let (data, panel) = (data.as_ptr().cast(), panel.as_mut_ptr());
        // SAFETY: the instruction set is there; 32 rows of `depth` values lie in `data`, the panel has room for them.
        return unsafe {
            if Isa::current() >= Isa::Avx512 {
                transpose::words(data, stride * 2, depth, panel.cast());
            } else {
                transpose::words_avx2(data.cast(), stride, depth, panel.cast());
            }
        };
    }
    pack_rows(data, stride, columns, depth, 1.0, panel)
}

/// `[rows, columns]` (rows `stride` apart) to `[columns, rows]` (rows `out_stride` apart); an odd row of pairs is followed
/// by zeros.
pub fn transpose_into<E: Element>(
    (values, stride): (&[E], usize),
    rows: usize,
    columns: usize,
    out: &mut [E],
    out_stride: usize,
) {
    let padded = rows.next_multiple_of(E::DEPTH_UNIT);
    assert!(rows > 0 && values.len() >= (rows - 1) * stride + columns);
    assert!(out_stride >= padded && out.len() >= (columns - 1) * out_stride + padded);
    #[cfg(target_arch = "x86_64")]
    if Isa::current() >= Isa::Avx512 && out_stride.is_multiple_of(E::DEPTH_UNIT) {
        let (values, out) = (values.as_ptr(), out.as_mut_ptr().cast());
        // SAFETY: AVX-512 is there; the assertions hold every row of both.
        return unsafe {
            match E::DEPTH_UNIT {
                1 => transpose::rows::<false>(values.cast(), stride * 4, rows, columns, out, out_stride),
                _ => transpose::rows::<true>(values.cast(), stride * 2, rows, columns, out, out_stride / 2),
            }
        };
    }
    for (column, out) in out.chunks_mut(out_stride).take(columns).enumerate() {
        for (row, out) in out[..padded].iter_mut().enumerate() {
            *out = if row < rows { values[row * stride + column] } else { E::zeroed() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposed_rows_are_the_transpose_for_odd_sizes_and_every_format() {
        for (rows, columns) in [(96usize, 64usize), (95, 64), (1, 1), (17, 33), (2, 16)] {
            let (stride, out_stride) = (columns + 3, rows.next_multiple_of(2) + 4);
            let data: Vec<f32> = (0..rows * stride).map(|i| (i * 31 % 257) as f32 - 128.0).collect();
            let narrow: Vec<bf16> = data.iter().map(|&v| bf16::from_f32(v)).collect();
            let mut plain = vec![9f32; columns * out_stride];
            transpose_into((&data, stride), rows, columns, &mut plain, out_stride);
            let mut pairs = vec![bf16::from_f32(9.0); columns * out_stride];
            transpose_into((&narrow, stride), rows, columns, &mut pairs, out_stride);
            for column in 0..columns {
                for row in 0..rows.next_multiple_of(2) {
                    let at = column * out_stride + row;
                    if row < rows {
                        assert_eq!(plain[at], data[row * stride + column], "{rows}x{columns} at {row},{column}");
                    }
                    let expected = if row < rows { data[row * stride + column] } else { 0.0 };
                    assert_eq!(pairs[at].to_f32(), expected, "{rows}x{columns} at {row},{column}");
                }
            }
        }
    }

    #[test]
    fn packed_rows_are_the_transpose_for_odd_sizes_and_every_format() {
        for (columns, depth) in [(32, 64), (32, 34), (32, 18), (7, 64), (31, 33), (1, 1)] {
            let stride = depth + 3;
            let data: Vec<f32> = (0..columns * stride).map(|i| ((i * 31 % 257) as f32 - 128.0) / 64.0).collect();
            let narrow: Vec<bf16> = data.iter().map(|&v| bf16::from_f32(v)).collect();
            let mut panel = vec![9f32; depth * PANEL];
            pack_rows_f32(&data, stride, columns, depth, &mut panel);
            let padded = depth.next_multiple_of(2);
            let mut pairs = vec![bf16::from_f32(9.0); padded * PANEL];
            pack_rows_bf16(&narrow, stride, columns, depth, &mut pairs);
            for k in 0..padded {
                for column in 0..PANEL {
                    let inside = column < columns && k < depth;
                    let expected = if inside { data[column * stride + k] } else { 0.0 };
                    if k < depth {
                        assert_eq!(panel[k * PANEL + column], expected, "{columns}x{depth} at {k},{column}");
                    }
                    assert_eq!(pairs[(k / 2 * PANEL + column) * 2 + k % 2], bf16::from_f32(expected));
                }
            }
        }
    }
}
