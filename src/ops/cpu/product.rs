//! Matrix products on the processor: rows of activations by packed columns, summed over several terms.
//!
//! `out[m, n] = Σ_terms a_t[m, ·] · columns_t[·, n] (+ bias[n]) (+ residual[m, n])`. A low-rank update is just one
//! more term, so `x·Wᵀ + s·(x·Aᵀ)·Bᵀ` costs one pass over the output; projections that share an input are parts of one
//! product. Weights are packed a few panels at a time into per-thread scratch: no second copy of a weight ever exists.
//! Every output value is summed along the depth, term by term, by one thread, so the result does not depend on the number
//! of threads.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::thread::LocalKey;

use super::isa::{Isa, vectorised};
use super::kernel::{Element, LAID_DEPTH, PANEL, Tile, with_tiles};
use super::pack::Columns;
use super::pool;
use super::rows::{OutputBuffer, OutputData, Rows, Stored};
use super::shared::SharedMut;
pub use super::store::Epilogue;
use super::store::{StoredTile, Target, store_tile};
#[cfg(target_arch = "x86_64")]
use super::streamed;

/// One term of a product in the kernel's number format.
pub struct Term<'a, E: Element> {
    /// `[rows, depth]`.
    pub rows: Rows<'a>,
    /// `[depth, columns]`.
    pub columns: &'a dyn Columns<E>,
}

/// Some neighbouring columns of a product: `Σ terms (+ bias)`.
pub struct Part<'a, E: Element> {
    /// The first column in the target.
    pub column: usize,
    /// Number of columns.
    pub columns: usize,
    /// The products that are summed, in this order.
    pub terms: Vec<Term<'a, E>>,
    /// One value a column.
    pub bias: Option<&'a [f32]>,
}

impl<'a, E: Element> Part<'a, E> {
    /// A product of one part and one term.
    pub fn whole(columns: usize, term: Term<'a, E>) -> [Self; 1] {
        [Self { column: 0, columns, terms: vec![term], bias: None }]
    }

    pub(super) fn depth(&self) -> usize {
        self.terms.iter().map(|term| term.columns.padded_depth()).sum()
    }

    pub(super) fn panels(&self) -> usize {
        self.columns.div_ceil(PANEL)
    }

    /// The place of one of its panels in the target, rows `row..row + rows`.
    ///
    /// # Safety
    /// The conditions of [`Target::tile`].
    pub(super) unsafe fn tile<O: Element>(
        &self,
        target: &Target<'a, O>,
        panel: usize,
        row: usize,
        rows: usize,
    ) -> StoredTile<'a, O> {
        let first = panel * PANEL;
        let count = (self.columns - first).min(PANEL);
        let bias = self.bias.map(|bias| &bias[first..first + count]);
        // SAFETY: as the caller vouches.
        unsafe { target.tile((row, rows), (self.column + first, count), bias) }
    }
}

thread_local! {
    static SCRATCH: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Panels of one task stay in the second-level cache.
const PANEL_BYTES: usize = 512 << 10;
/// More tasks than threads, so that none waits long for the last one.
const TASKS_PER_THREAD: usize = 8;
/// Rows whose product takes several times as long as packing the right-hand side.
const ROWS_PER_PIECE: usize = 160;

/// Computes `rows` rows of every part into `target`, all columns of each part.
///
/// `E` is the number format of the kernel; pick it with [`Isa::packs_bf16`].
///
/// # Panics
/// If the target has no room for a row, or is to be added to and has no values yet.
pub fn product<E: Element>(rows: usize, parts: &[Part<'_, E>], epilogue: Epilogue<'_>, target: OutputBuffer<'_>) {
    assert!(target.is_initialised() || !epilogue.accumulate, "only values can be added to");
    match target.into_parts() {
        (OutputData::F32(data), stride) => run(rows, parts, epilogue, data, stride),
        (OutputData::Bf16(data), stride) => run(rows, parts, epilogue, data, stride),
    }
}

fn run<E: Element, O: Element>(
    rows: usize,
    parts: &[Part<'_, E>],
    epilogue: Epilogue<'_>,
    data: &mut [MaybeUninit<O>],
    stride: usize,
) {
    let panels: usize = parts.iter().map(Part::panels).sum();
    if rows == 0 || panels == 0 {
        return;
    }
    let columns = parts.iter().map(|part| part.column + part.columns).max().unwrap_or(0);
    assert!(data.len() >= (rows - 1) * stride + columns, "the target holds every row");
    let isa = Isa::current();
    let out = SharedMut::new(data);
    let target = Target { out: &out, stride, epilogue };
    let operations: usize = parts.iter().map(|part| rows * part.columns * part.depth()).sum();
    let is_small = operations < 1 << 16;
    #[cfg(target_arch = "x86_64")]
    if E::streams(isa) && panels >= streamed::LEAST_PANELS && !is_small {
        return streamed::run(isa, rows, parts, &target);
    }
    let threads = pool::threads();
    let wanted_tasks = if threads == 1 { 1 } else { threads * TASKS_PER_THREAD };
    // A thread of its own for some rows, as far as packing the right-hand side for each is worth it: their values are
    // where the thread's other work on them left them. Where there are too few panels to go round, rows are split anyway.
    let pieces = (rows / ROWS_PER_PIECE).clamp(1, threads).max(threads.div_ceil(panels));
    let piece = rows.div_ceil(pieces).next_multiple_of(E::rows_per_tile(isa));
    let pieces = rows.div_ceil(piece);
    let group = (panels * pieces).div_ceil(wanted_tasks).max(1);
    // (part, first panel, panels) of every task of a piece.
    let blocks: Vec<_> = parts
        .iter()
        .flat_map(|part| {
            let by_cache = PANEL_BYTES / (part.depth() * PANEL * size_of::<E>()).max(1);
            let group = group.min(by_cache).max(1);
            (0..part.panels()).step_by(group).map(move |first| (part, first, group.min(part.panels() - first)))
        })
        .collect();
    let task = |index: usize| {
        let (part, first_panel, panels) = blocks[index % blocks.len()];
        let row = index / blocks.len() * piece;
        let rows = (rows - row).min(piece);
        Job { isa, part, target: &target, first_panel, panels, row, rows }.run();
    };
    let tasks = blocks.len() * pieces;
    if tasks == 1 || is_small {
        (0..tasks).for_each(task);
    } else {
        pool::for_each(tasks, task);
    }
}

/// A block of the output that one thread computes.
struct Job<'a, E: Element, O: Element> {
    isa: Isa,
    part: &'a Part<'a, E>,
    target: &'a Target<'a, O>,
    /// Of the part.
    first_panel: usize,
    panels: usize,
    row: usize,
    rows: usize,
}

impl<E: Element, O: Element> Job<'_, E, O> {
    fn run(&self) {
        let (depth, panels, first) = (self.part.depth(), self.panels, self.first_panel * PANEL);
        let columns = (self.part.columns - first).min(panels * PANEL);
        let strip_rows = E::rows_per_tile(self.isa);
        let packed = panels * depth * PANEL * size_of::<E>() / size_of::<f32>();
        // Rows that are laid out are rounded up, those of each term.
        let strips = strip_rows * (depth + self.part.terms.len() * LAID_DEPTH);
        with_scratch::<f32, ()>(packed + strips, |scratch| {
            let (packed, strips) = scratch.split_at_mut(packed);
            let packed: &mut [E] = bytemuck::cast_slice_mut(packed);
            let mut rest = &mut *packed;
            for term in &self.part.terms {
                let depth = term.columns.padded_depth();
                let (these, after) = rest.split_at_mut(panels * depth * PANEL);
                term.columns.pack(first, columns, 0..depth, these);
                rest = after;
            }
            with_tiles::<E, _>(self.isa, || self.strips(panels, strip_rows, packed, strips));
        });
    }

    fn strips(&self, panels: usize, strip_rows: usize, packed: &[E], copies: &mut [f32]) {
        let mut tile = Tile::ZERO;
        let mut row = self.row;
        let end = self.row + self.rows;
        let mut lefts: Vec<Left<E>> = Vec::with_capacity(self.part.terms.len());
        while row < end {
            let rows = (end - row).min(strip_rows);
            let mut copy_rest = &mut *copies;
            lefts.clear();
            for term in &self.part.terms {
                let (depth, padded) = (term.columns.depth(), term.columns.padded_depth());
                let (copy, after) = copy_rest.split_at_mut(strip_rows * padded.next_multiple_of(LAID_DEPTH));
                lefts.push(if E::lays_out(self.isa) {
                    let copy = &mut copy[..rows * padded.next_multiple_of(LAID_DEPTH)];
                    match term.rows.from_row(row) {
                        Rows::F32 { data, stride } => lay_out(data, stride, depth, copy),
                        Rows::Bf16 { data, stride } => lay_out(data, stride, depth, copy),
                    }
                    Left::LaidOut(copy.as_ptr())
                } else {
                    let copy = bytemuck::cast_slice_mut(copy);
                    let (strip, stride) = strip::<E>(term.rows, row, rows, depth, padded, copy);
                    Left::Same(strip.as_ptr(), stride)
                });
                copy_rest = after;
            }
            for panel in 0..panels {
                let mut offset = 0;
                for (index, (term, left)) in self.part.terms.iter().zip(&lefts).enumerate() {
                    let depth = term.columns.padded_depth();
                    let columns = packed[offset + panel * depth * PANEL..][..depth * PANEL].as_ptr();
                    let sums = tile.0.as_mut_ptr();
                    // SAFETY: there are `rows` rows of `depth` values, which stay where they are while this strip is worked
                    // on; the panel is whole.
                    unsafe {
                        match *left {
                            Left::Same(a, stride) => {
                                E::tile(self.isa, rows, depth, a, stride, columns, sums, index > 0);
                            }
                            Left::LaidOut(a) => E::laid_out_tile(rows, depth, a, columns, sums, index > 0),
                        }
                    }
                    offset += panels * depth * PANEL;
                }
                // SAFETY: the target was measured before; the block there is this task's alone.
                let place = unsafe { self.part.tile(self.target, self.first_panel + panel, row, rows) };
                store_tile(&tile, &place);
            }
            row += rows;
        }
    }
}

/// A strip of rows.
enum Left<E> {
    /// In the format of the panels, and the distance between rows: where it lies, or copied where its format differs.
    Same(*const E, usize),
    /// In f32, as [`Element::laid_out_tile`] takes it.
    LaidOut(*const f32),
}

vectorised! {
    /// Lays rows out for [`Element::laid_out_tile`], as many as `copy` has room for; values beyond `depth` become zero.
    fn lay_out<S: Stored>(data: &[S], stride: usize, depth: usize, copy: &mut [f32]) {
        let rows = copy.len() / depth.next_multiple_of(LAID_DEPTH);
        let (runs, _) = copy.as_chunks_mut::<LAID_DEPTH>();
        for (k, runs) in (0..depth).step_by(LAID_DEPTH).zip(runs.chunks_exact_mut(rows)) {
            for (row, to) in runs.iter_mut().enumerate() {
                let values = &data[row * stride + k..][..LAID_DEPTH.min(depth - k)];
                if let Some(values) = values.first_chunk::<LAID_DEPTH>() {
                    for lane in 0..LAID_DEPTH {
                        to[lane] = values[lane].to_f32();
                    }
                } else {
                    to.fill(0.0);
                    to.iter_mut().zip(values).for_each(|(to, value)| *to = value.to_f32());
                }
            }
        }
    }
}

/// `rows` rows from `row` on, `depth` values each and zeros up to `padded`, in the kernel's format, and the distance
/// between them: where they lie if they have that format, or else in `copy`. As many rows follow as the kernel reads.
pub fn strip<'a, E: Element>(
    source: Rows<'a>,
    row: usize,
    rows: usize,
    depth: usize,
    padded: usize,
    copy: &'a mut [E],
) -> (&'a [E], usize) {
    let there = if depth == padded { E::of_rows(source) } else { None };
    let readable = rows.next_multiple_of(E::row_step(Isa::current()));
    if let Some((data, stride)) = there {
        // At the end of a matrix the kernel may want rows that are not there.
        if let Some(strip) = data[row * stride..].get(..(readable - 1) * stride + depth) {
            return (strip, stride);
        }
    }
    for (r, target) in copy.chunks_exact_mut(padded).take(rows).enumerate() {
        match source {
            Rows::F32 { data, stride } => E::narrow_from(&data[(row + r) * stride..][..depth], &mut target[..depth]),
            Rows::Bf16 { data, stride } => {
                for (to, from) in target.iter_mut().zip(&data[(row + r) * stride..][..depth]) {
                    *to = E::round(from.to_f32());
                }
            }
        }
        target[depth..].fill(E::zeroed());
    }
    (&copy[..readable * padded], padded)
}

/// Lends this thread's scratch: `count` values that mean nothing, at a cache line.
pub fn with_scratch<E: Element, R>(count: usize, work: impl FnOnce(&mut [E]) -> R) -> R {
    with_buffer(&SCRATCH, count, work)
}

/// Lends a buffer of this thread that keeps its size from call to call, as [`with_scratch`] does.
pub(super) fn with_buffer<E: Element, R>(
    buffer_of_thread: &'static LocalKey<RefCell<Vec<u64>>>,
    count: usize,
    work: impl FnOnce(&mut [E]) -> R,
) -> R {
    let words = (count * size_of::<E>()).div_ceil(8) + 8;
    let mut buffer = buffer_of_thread.take();
    if buffer.len() < words {
        buffer.resize(words, 0);
    }
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut buffer);
    let skip = bytes.as_ptr().align_offset(64);
    let result = work(&mut bytemuck::cast_slice_mut(&mut bytes[skip..skip + count * size_of::<E>()])[..count]);
    buffer_of_thread.set(buffer);
    result
}

#[cfg(test)]
mod tests {
    use super::super::pack::PlainColumns;
    use super::*;

    /// `rows` rows of ones by terms that each have one depth.
    fn ones_by_terms(terms: usize, epilogue: Epilogue<'_>, target: OutputBuffer<'_>) {
        let ones = [1f32; 40];
        let columns: Vec<_> = (0..terms)
            .map(|index| PlainColumns { data: &ones[..], stride: 40, depth: 1, scale: (index + 1) as f32 })
            .collect();
        let rows = Rows::F32 { data: &ones[..5], stride: 1 };
        let terms = columns.iter().map(|columns| Term::<f32> { rows, columns }).collect();
        product(5, &[Part { column: 0, columns: 40, terms, bias: None }], epilogue, target);
    }

    #[test]
    fn a_product_has_all_of_its_terms() {
        for terms in [1, 8, 9, 30] {
            let mut sums = vec![0f32; 5 * 40];
            ones_by_terms(terms, Epilogue::default(), OutputBuffer::f32(&mut sums, 40));
            let expected = (terms * (terms + 1) / 2) as f32;
            assert!(sums.iter().all(|&sum| sum == expected), "{terms} terms: {} for {expected}", sums[0]);
        }
    }

    #[test]
    fn a_product_adds_to_values_and_to_nothing_else() {
        let add = Epilogue { accumulate: true, ..Epilogue::default() };
        let mut sums = vec![2f32; 5 * 40];
        ones_by_terms(1, add, OutputBuffer::f32(&mut sums, 40));
        assert!(sums.iter().all(|&sum| sum == 3.0));
        let mut fresh: Vec<f32> = Vec::with_capacity(5 * 40);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            ones_by_terms(1, add, OutputBuffer::fresh_f32(fresh.spare_capacity_mut(), 40));
        }));
        assert!(caught.is_err());
    }

    #[test]
    fn products_in_f32_multiply_and_add_in_the_order_of_the_depth() {
        let (rows, columns, depths) = (29, 70, [45, 3]);
        let value = |i: usize| ((i * 7919 % 2003) as f32 - 1001.0) / 1001.0;
        let values = |count: usize| -> Vec<f32> { (0..count).map(value).collect() };
        let lefts = depths.map(|depth| values(rows * depth + 5));
        let rights = depths.map(|depth| values(depth * columns));
        let views = [0, 1].map(|term| PlainColumns {
            data: &rights[term][..],
            stride: columns,
            depth: depths[term],
            scale: 1.0,
        });
        let terms = (0..2).map(|term| {
            let rows = Rows::F32 { data: &lefts[term][term..], stride: depths[term] };
            Term::<f32> { rows, columns: &views[term] }
        });
        let parts = [Part { column: 0, columns, terms: terms.collect(), bias: None }];
        let mut sums = vec![0f32; rows * columns];
        product(rows, &parts, Epilogue::default(), OutputBuffer::f32(&mut sums, columns));
        for (at, &sum) in sums.iter().enumerate() {
            let (row, column) = (at / columns, at % columns);
            let expected = (0..2).fold(0f32, |sum, term| {
                (0..depths[term]).fold(sum, |sum, k| {
                    let (left, right) =
                        (lefts[term][term + row * depths[term] + k], rights[term][k * columns + column]);
                    if Isa::current() == Isa::Portable { sum + left * right } else { left.mul_add(right, sum) }
                })
            });
            assert_eq!(sum.to_bits(), expected.to_bits(), "row {row}, column {column}: {sum} for {expected}");
        }
    }
}
