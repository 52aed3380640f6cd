//! A frozen matrix as it was stored: memory-mapped, 16-bit, or packed blocks. It is the only copy there is.
//!
//! Products decode it a few panels at a time; nothing of its full decoded size is ever made.

use std::cell::RefCell;

use half::{bf16, f16};

use super::isa::vectorised;
use super::kernel::{Element, PANEL};
use super::math::{LANES, dot};
use super::pack::{
    Columns, PlainColumns, Stored, each_panel, pack_rows, pack_rows_bf16, pack_rows_f32, write_depth_row,
};
use super::pool;
use super::product::{Rows, SharedMut, narrow};
use crate::files::Bytes;
use crate::files::bitsandbytes::{Int8Tensor, Nf4Tensor};
use crate::quant::BlockType;

/// How the values of a [`Matrix`] are stored.
#[derive(Debug, Clone)]
pub enum Storage {
    F32(Bytes),
    F16(Bytes),
    Bf16(Bytes),
    /// GGUF blocks; a row is a whole number of blocks.
    Blocks(BlockType, Bytes),
    /// bitsandbytes' 4-bit format, its scales single or quantised themselves.
    Nf4(Nf4Tensor),
    /// One scale a row.
    Int8(Int8Tensor),
}

/// A frozen `[rows, columns]` matrix, row-major; for a projection `[out, in]`.
#[derive(Debug, Clone)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    storage: Storage,
}

thread_local! {
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static NARROWED: RefCell<Vec<bf16>> = const { RefCell::new(Vec::new()) };
}

/// Lends a thread-local buffer that keeps its size from call to call.
fn lend<T: Clone, R>(
    cell: &'static std::thread::LocalKey<RefCell<Vec<T>>>,
    count: usize,
    zero: T,
    work: impl FnOnce(&mut [T]) -> R,
) -> R {
    let mut buffer = cell.with(|cell| std::mem::take(&mut *cell.borrow_mut()));
    if buffer.len() < count {
        buffer.resize(count, zero);
    }
    let result = work(&mut buffer[..count]);
    cell.with(|cell| *cell.borrow_mut() = buffer);
    result
}

impl Matrix {
    /// Wraps stored values. Bytes that are not aligned for their type are copied once.
    ///
    /// Panics if the storage does not hold `rows * columns` values: loaders check sizes first.
    pub fn new(rows: usize, columns: usize, storage: Storage) -> Self {
        let storage = match storage {
            Storage::F32(bytes) => Storage::F32(aligned::<f32>(bytes)),
            Storage::F16(bytes) => Storage::F16(aligned::<f16>(bytes)),
            Storage::Bf16(bytes) => Storage::Bf16(aligned::<bf16>(bytes)),
            other => other,
        };
        let values = match &storage {
            Storage::F32(bytes) => bytes.len() / 4,
            Storage::F16(bytes) | Storage::Bf16(bytes) => bytes.len() / 2,
            Storage::Blocks(block, bytes) => bytes.len() / block.bytes_per_block() * block.values_per_block(),
            Storage::Nf4(tensor) => tensor.elements(),
            Storage::Int8(tensor) => tensor.elements(),
        };
        assert_eq!(values, rows * columns, "the storage holds the matrix");
        Self { rows, columns, storage }
    }

    /// Number of rows (a projection's outputs).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (a projection's inputs).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// How it is stored.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// Decodes `out.len()` values of row `row` from column `first` on.
    pub fn decode(&self, row: usize, first: usize, out: &mut [f32]) {
        let start = row * self.columns + first;
        match &self.storage {
            Storage::F32(bytes) => out.copy_from_slice(&cast::<f32>(bytes)[start..][..out.len()]),
            Storage::Bf16(bytes) => super::product::widen(&cast::<bf16>(bytes)[start..][..out.len()], out),
            Storage::F16(bytes) => widen_f16(&cast::<f16>(bytes)[start..][..out.len()], out),
            Storage::Blocks(block, bytes) => decode_blocks(*block, bytes, start, out),
            Storage::Nf4(tensor) => decode_nf4(tensor, start, out),
            Storage::Int8(tensor) => decode_int8(tensor, row, first, out),
        }
    }

    /// The right-hand side of `x · Wᵀ`.
    pub fn forward(&self) -> Forward<'_> {
        Forward(self)
    }

    /// The right-hand side of `g · W`, for `count` of the matrix's rows from `first` on.
    pub fn input_gradient(&self, first: usize, count: usize) -> InputGradient<'_> {
        InputGradient { matrix: self, first, count }
    }

    /// `out[m, rows] = x[m, columns] · Wᵀ` for a handful of rows, where packing would cost more than it saves; the rows of
    /// `out` are `stride` apart.
    pub fn multiply_few(&self, x: Rows<'_>, m: usize, out: &mut [f32], stride: usize) {
        const ROWS_PER_TASK: usize = 32;
        let mut inputs = vec![0f32; m * self.columns];
        for (row, values) in inputs.chunks_exact_mut(self.columns).enumerate() {
            x.read(row, 0, values);
        }
        let target = SharedMut(out.as_mut_ptr());
        let task = |task: usize| {
            let target = &target;
            lend(&DECODED, self.columns, 0.0, |decoded| {
                for row in task * ROWS_PER_TASK..((task + 1) * ROWS_PER_TASK).min(self.rows) {
                    let start = row * self.columns;
                    let direct: Option<&[bf16]> = match &self.storage {
                        Storage::Bf16(bytes) => Some(&cast::<bf16>(bytes)[start..][..self.columns]),
                        _ => None,
                    };
                    let weights: &[f32] = match &self.storage {
                        Storage::F32(bytes) => &cast::<f32>(bytes)[start..][..self.columns],
                        Storage::Bf16(_) => &[],
                        _ => {
                            self.decode(row, 0, decoded);
                            decoded
                        }
                    };
                    for (m, values) in inputs.chunks_exact(self.columns).enumerate() {
                        let sum = match direct {
                            Some(weights) => dot_bf16(values, weights),
                            None => dot(values, weights),
                        };
                        // SAFETY: `row` belongs to this task alone; `out` holds every row.
                        unsafe { *target.0.add(m * stride + row) = sum };
                    }
                }
            });
        };
        assert!(out.len() >= (m - 1) * stride + self.rows);
        let tasks = self.rows.div_ceil(ROWS_PER_TASK);
        pool::for_each(tasks, task);
    }
}

/// Bytes whose address suits `T`: as they are, or a copy.
fn aligned<T: bytemuck::Pod>(bytes: Bytes) -> Bytes {
    if bytemuck::try_cast_slice::<u8, T>(&bytes).is_ok() { bytes } else { Bytes::from(bytes.to_vec()) }
}

/// The bytes as values; [`Matrix::new`] made sure they are aligned.
fn cast<T: bytemuck::Pod>(bytes: &Bytes) -> &[T] {
    bytemuck::cast_slice(bytes)
}

vectorised! {
    /// Values `start..start + out.len()` of a run of blocks; whole blocks are decoded in place.
    fn decode_blocks(block: BlockType, bytes: &[u8], start: usize, out: &mut [f32]) {
        let (values, size) = (block.values_per_block(), block.bytes_per_block());
        let mut done = 0;
        while done < out.len() {
            let (index, skip) = ((start + done) / values, (start + done) % values);
            let left = out.len() - done;
            if skip == 0 && left >= values {
                let whole = left / values;
                block.decode(&bytes[index * size..(index + whole) * size], &mut out[done..done + whole * values]);
                done += whole * values;
            } else {
                let mut one = [0f32; 256];
                block.decode(&bytes[index * size..(index + 1) * size], &mut one[..values]);
                let count = (values - skip).min(left);
                out[done..done + count].copy_from_slice(&one[skip..skip + count]);
                done += count;
            }
        }
    }
}

vectorised! {
    fn decode_nf4(tensor: &Nf4Tensor, first: usize, out: &mut [f32]) {
        tensor.decode(first, out);
    }
}

vectorised! {
    fn decode_int8(tensor: &Int8Tensor, row: usize, first: usize, out: &mut [f32]) {
        let start = row * tensor.shape[1] + first;
        crate::quant::int8::decode_row(&tensor.codes[start..start + out.len()], tensor.row_absmax[row], out);
    }
}

vectorised! {
    fn widen_f16(from: &[f16], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = crate::quant::float::f16_bits_to_f32(from.to_bits());
        }
    }
}

vectorised! {
    fn dot_bf16(a: &[f32], b: &[bf16]) -> f32 {
        let mut lanes = [0f32; LANES];
        let (whole, rest) = a.as_chunks::<LANES>();
        for (a, b) in whole.iter().zip(b.as_chunks::<LANES>().0) {
            for lane in 0..LANES {
                lanes[lane] += a[lane] * f32::from_bits(u32::from(b[lane].to_bits()) << 16);
            }
        }
        let tail: f32 = rest.iter().zip(&b[whole.len() * LANES..]).map(|(a, b)| a * Stored::to_f32(*b)).sum();
        lanes.iter().sum::<f32>() + tail
    }
}

/// [`Matrix::forward`].
pub struct Forward<'a>(&'a Matrix);

/// [`Matrix::input_gradient`].
pub struct InputGradient<'a> {
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
        Box::new(self.forward())
    }

    fn gradient_columns_of(&self, first: usize, count: usize) -> Box<dyn Columns<f32> + '_> {
        Box::new(self.input_gradient(first, count))
    }
}

impl Views<bf16> for Matrix {
    fn forward_columns(&self) -> Box<dyn Columns<bf16> + '_> {
        Box::new(self.forward())
    }

    fn gradient_columns_of(&self, first: usize, count: usize) -> Box<dyn Columns<bf16> + '_> {
        Box::new(self.input_gradient(first, count))
    }
}

impl Forward<'_> {
    /// Decodes the rows of one panel at a time and packs them.
    fn pack_decoded(&self, first: usize, columns: usize, pack: impl FnOnce(&[f32])) {
        let depth = self.0.columns;
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
        self.0.columns
    }

    fn pack(&self, first: usize, count: usize, panels: &mut [f32]) {
        let depth = self.0.columns;
        each_panel(first, count, depth, panels, |column, columns, panel| match &self.0.storage {
            Storage::F32(bytes) => pack_rows_f32(&cast(bytes)[column * depth..], depth, columns, depth, panel),
            _ => self.pack_decoded(column, columns, |rows| pack_rows_f32(rows, depth, columns, depth, panel)),
        });
    }
}

impl Columns<bf16> for Forward<'_> {
    fn depth(&self) -> usize {
        self.0.columns
    }

    fn pack(&self, first: usize, count: usize, panels: &mut [bf16]) {
        let depth = self.0.columns;
        let padded = Columns::<bf16>::padded_depth(self);
        each_panel(first, count, padded, panels, |column, columns, panel| match &self.0.storage {
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
        let (depth, stride) = (self.count, self.matrix.columns);
        if let Storage::F32(bytes) = &self.matrix.storage {
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
        let (depth, stride) = (self.count, self.matrix.columns);
        let padded = Columns::<bf16>::padded_depth(self);
        if padded > depth {
            let whole = depth / 2 * 2 * PANEL;
            panels.chunks_exact_mut(padded * PANEL).for_each(|panel| panel[whole..].fill(bf16::ZERO));
        }
        if let Storage::Bf16(bytes) = &self.matrix.storage {
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
        /// Values of a cache line.
        const LINE: usize = 32;
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

vectorised! {
    /// The two rows of `pair` become depth `at` of every panel of `size` values.
    fn interleave_pair(pair: &[bf16], columns: usize, panels: &mut [bf16], size: usize, at: usize) {
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
