//! Laying the right-hand matrix of a product out in panels (see `kernel`).

use std::ops::Range;

use half::bf16;

use super::isa::Isa;
use super::kernel::{Element, PANEL};
use super::rows::Stored;

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
        return unsafe { x86::transpose_words(data.as_ptr().cast(), stride, depth / 2, panel.as_mut_ptr().cast()) };
    }
    pack_rows(data, stride, columns, depth, 1.0, panel)
}

/// [`pack_rows`] for f32 values as they are.
pub fn pack_rows_f32(data: &[f32], stride: usize, columns: usize, depth: usize, panel: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if columns == PANEL && Isa::current() >= Isa::Avx512 {
        assert!(data.len() >= 31 * stride + depth && panel.len() >= depth * PANEL);
        // SAFETY: AVX-512 is there; 32 rows of `depth` values lie in `data`, the panel has room for them.
        return unsafe { x86::transpose_words(data.as_ptr().cast(), stride * 2, depth, panel.as_mut_ptr().cast()) };
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
                1 => x86::transpose_rows::<false>(values.cast(), stride * 4, rows, columns, out, out_stride),
                _ => x86::transpose_rows::<true>(values.cast(), stride * 2, rows, columns, out, out_stride / 2),
            }
        };
    }
    for (column, out) in out.chunks_mut(out_stride).take(columns).enumerate() {
        for (row, out) in out[..padded].iter_mut().enumerate() {
            *out = if row < rows { values[row * stride + column] } else { E::zeroed() };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::PANEL;

    /// How far ahead of a row's reading it is fetched, in 16-bit units.
    const PREFETCH: usize = 192;

    /// `rows` rows of `columns` values (f32, or bf16 that are paired first) become `columns` rows of 32-bit words.
    ///
    /// # Safety
    /// AVX-512F, BW and VL are there. Every row lies in `values`, `stride` bytes apart; every row of `rows` words (half as many for bf16, rounded up) in
    /// `out`, `out_stride` words apart.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub unsafe fn transpose_rows<const BF16: bool>(
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
    pub unsafe fn transpose_words(data: *const u16, stride: usize, depth: usize, panel: *mut i32) {
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
