//! The order of a product on AMX: a part of a panel stays in the first-level cache, and rows stream past it from the second.
//!
//! Tile products are so fast that they wait if both operands come from the second-level cache. So a part of a panel, at most
//! [`MOST_DEPTH`] deep, is packed, and all rows of a piece pass by before the next. They are loaded with the hint that they are read
//! once, so they do not drive the panel out, and meanwhile the next panel is fetched from memory. Rows are copied into the order of
//! reading first, once for all columns: the rows of a tile are then one run of cache lines, wherever they began and however far
//! apart they lay. A tile takes the steps of every term in one go. docs/performance.md has what each of these gives.
//!
//! Every output is summed along the depth, term by term, as in any other order.

use std::cell::RefCell;
use std::ops::Range;

use super::isa::Isa;
use super::kernel::{AMX_DEPTH as STEP, AMX_ROWS as STRIP, Element, PANEL, Tile, amx, with_tiles};
use super::pool;
use super::product::{Part, with_buffer, with_scratch};
use super::rows::Rows;
use super::shared::SharedMut;
use super::store::{StoredTile, Target, store_row};

/// Panels from which on copying the rows pays.
pub(super) const LEAST_PANELS: usize = 12;
/// The greatest depth of a part of a panel: 38 of the 48 KiB of the first-level cache.
const MOST_DEPTH: usize = 608;
/// Rows of a piece: as many as stay in the second-level cache with their whole depth, up to [`MOST_ROWS`].
const PIECE_BYTES: usize = 1 << 20;
const MOST_ROWS: usize = 512;
/// Where fewer than this stay there, a piece has [`MOST_ROWS`], and several panels take turns with each part of the depth.
const LEAST_ROWS: usize = 256;
const PANELS_PER_TURN: usize = 8;
/// Packing a panel takes about as long as multiplying it by so many rows.
const ROWS_PER_PACKING: usize = 48;
/// Rows are copied up to so many bytes at a time.
const COPIED_BYTES: usize = 16 << 20;
/// Strips that one task copies.
const STRIPS_PER_TASK: usize = 4;
/// Values of a tile of sums.
const TILE: usize = STRIP * PANEL;

thread_local! {
    /// The copied rows of the product that this thread is at.
    static COPIES: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Rows that terms have in common.
struct Source<'a> {
    rows: Rows<'a>,
    depth: usize,
    padded: usize,
    /// The depth of all sources before it.
    start: usize,
}

/// Some steps of the depth of one term.
struct Segment {
    term: usize,
    source: usize,
    depth: Range<usize>,
}

/// Segments whose columns are in the first-level cache together.
type Section = Vec<Segment>;

/// Neighbouring panels of a part, which take turns.
struct Group {
    part: usize,
    first: usize,
    panels: usize,
}

/// A product and its division along the depth.
struct Plan<'a, E: Element, O> {
    isa: Isa,
    parts: &'a [Part<'a, E>],
    target: &'a Target<'a, O>,
    sources: Vec<Source<'a>>,
    /// Of each part.
    sections: Vec<Vec<Section>>,
}

/// Computes `rows` rows of every part, where [`Element::streams`].
pub(super) fn run<'a, E: Element, O: Element>(
    isa: Isa,
    rows: usize,
    parts: &'a [Part<'a, E>],
    target: &'a Target<'a, O>,
) {
    let mut sources = Vec::new();
    let sections = parts.iter().map(|part| sections(part, &mut sources)).collect();
    let width: usize = sources.iter().map(|source| source.padded).sum();
    let plan = Plan { isa, parts, target, sources, sections };
    let most = (COPIED_BYTES / (width * size_of::<E>()).max(1)).max(MOST_ROWS);
    let batch = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(STRIP);
    for first in (0..rows).step_by(batch) {
        let rows = first..(first + batch).min(rows);
        with_buffer(&COPIES, rows.len().next_multiple_of(STRIP) * width, |copies: &mut [E]| {
            plan.copy(rows.clone(), copies);
            plan.multiply(rows, copies);
        });
    }
}

/// The depth of a part in sections of about the same length; rows that no other part has read are added to `sources`.
fn sections<'a, E: Element>(part: &Part<'a, E>, sources: &mut Vec<Source<'a>>) -> Vec<Section> {
    let steps = part.depth() / STEP;
    // A part without terms has one section, too: its epilogue is stored.
    let count = part.depth().div_ceil(MOST_DEPTH).max(1);
    let mut sections: Vec<Section> = (0..count).map(|_| Vec::new()).collect();
    let mut start = 0;
    for (index, term) in part.terms.iter().enumerate() {
        let (rows, depth, padded) = (term.rows, term.columns.depth(), term.columns.padded_depth());
        let known = sources.iter().position(|source| source.depth == depth && source.rows.is(&rows));
        let source = known.unwrap_or_else(|| {
            let start = sources.last().map_or(0, |source| source.start + source.padded);
            sources.push(Source { rows, depth, padded, start });
            sources.len() - 1
        });
        for (at, section) in sections.iter_mut().enumerate() {
            let first = (at * steps / count * STEP).max(start);
            let end = ((at + 1) * steps / count * STEP).min(start + padded);
            if first < end {
                section.push(Segment { term: index, source, depth: first - start..end - start });
            }
        }
        start += padded;
    }
    sections
}

impl<E: Element, O: Element> Plan<'_, E, O> {
    /// Copies `rows` of every source, `[source][strip][step][row of the strip][value of the step]`.
    fn copy(&self, rows: Range<usize>, copies: &mut [E]) {
        let strips = rows.len().div_ceil(STRIP);
        let copies = SharedMut::new(copies);
        pool::for_each(strips.div_ceil(STRIPS_PER_TASK), |task| {
            for source in &self.sources {
                for strip in task * STRIPS_PER_TASK..((task + 1) * STRIPS_PER_TASK).min(strips) {
                    let start = (strips * source.start + strip * source.padded) * STRIP;
                    // SAFETY: this strip of this source is this task's alone.
                    let copy = unsafe { copies.slice(start, source.padded * STRIP) };
                    let first = rows.start + strip * STRIP;
                    copy_strip(source, first..rows.end.min(first + STRIP), copy);
                }
            }
        });
    }

    /// Multiplies the copied `rows` by all columns.
    fn multiply(&self, rows: Range<usize>, copies: &[E]) {
        let threads = pool::threads();
        let panels: usize = self.parts.iter().map(Part::panels).sum();
        let deepest = self.parts.iter().map(Part::depth).max().unwrap_or(0);
        let by_cache = PIECE_BYTES / (deepest * size_of::<E>()).max(1) / STRIP * STRIP;
        let takes_turns = by_cache < LEAST_ROWS;
        let most = if takes_turns { MOST_ROWS } else { by_cache.min(MOST_ROWS) };
        // More pieces go round among the threads more evenly, and pack more often.
        let time =
            |pieces: usize| (panels * pieces).div_ceil(threads) * (rows.len().div_ceil(pieces) + ROWS_PER_PACKING);
        let fewest = rows.len().div_ceil(most);
        let pieces = (fewest..=rows.len().div_ceil(STRIP)).take(threads).min_by_key(|&pieces| time(pieces));
        let piece = rows.len().div_ceil(pieces.unwrap_or(fewest)).next_multiple_of(STRIP);
        let pieces = rows.len().div_ceil(piece);
        let in_turn = (panels * pieces / (4 * threads)).clamp(1, PANELS_PER_TURN);
        let mut groups = Vec::new();
        for (index, part) in self.parts.iter().enumerate() {
            let together = takes_turns || part.terms.iter().any(|term| term.columns.packs_together());
            let size = if together { in_turn } else { 1 };
            for first in (0..part.panels()).step_by(size) {
                groups.push(Group { part: index, first, panels: size.min(part.panels() - first) });
            }
        }
        pool::for_each(pieces * groups.len(), |task| {
            let (index, first) = (task % groups.len(), task / groups.len() * piece);
            let block = Block {
                plan: self,
                group: &groups[index],
                next: &groups[(index + 1) % groups.len()],
                copies,
                copied_strips: rows.len().div_ceil(STRIP),
                first_strip: first / STRIP,
                row: rows.start + first,
                rows: piece.min(rows.len() - first),
            };
            block.run();
        });
    }
}

/// Copies up to 16 rows; missing rows, and values beyond the depth, become zero.
fn copy_strip<E: Element>(source: &Source<'_>, rows: Range<usize>, copy: &mut [E]) {
    let as_they_are = E::of_rows(source.rows);
    for (at, step) in copy.as_chunks_mut::<{ STRIP * STEP }>().0.iter_mut().enumerate() {
        let k = at * STEP;
        let values = (source.depth - k).min(STEP);
        for (row, to) in step.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
            let row = rows.start + row;
            if row >= rows.end {
                to.fill(E::zeroed());
                continue;
            }
            match (as_they_are, source.rows) {
                (Some((data, stride)), _) => match data[row * stride + k..][..values].first_chunk() {
                    Some(whole) => *to = *whole,
                    None => to[..values].copy_from_slice(&data[row * stride + k..][..values]),
                },
                (None, Rows::F32 { data, stride }) => {
                    E::narrow_from(&data[row * stride + k..][..values], &mut to[..values]);
                }
                (None, Rows::Bf16 { .. }) => unreachable!("rows in bf16 have the format of AMX"),
            }
            to[values..].fill(E::zeroed());
        }
    }
}

/// A block of the output that one thread computes: the rows of a piece by the panels of a group.
struct Block<'a, E: Element, O> {
    plan: &'a Plan<'a, E, O>,
    group: &'a Group,
    /// The group that is multiplied after it.
    next: &'a Group,
    copies: &'a [E],
    /// Strips of each source among the copies, and the first of the block.
    copied_strips: usize,
    first_strip: usize,
    row: usize,
    rows: usize,
}

impl<E: Element, O: Element> Block<'_, E, O> {
    fn run(&self) {
        let sections = &self.plan.sections[self.group.part];
        let depth = |section: &Section| section.iter().map(|segment| segment.depth.len()).sum::<usize>();
        let deepest = sections.iter().map(depth).max().unwrap_or(0);
        let panels = self.group.panels;
        // Sums wait for the next section; there are none to wait if there is one.
        let kept = if sections.len() > 1 { panels * self.rows.div_ceil(STRIP) * TILE } else { 0 };
        let packed = panels * deepest * PANEL * size_of::<E>() / size_of::<f32>();
        with_scratch::<f32, ()>(kept + packed, |scratch| {
            let (kept, packed) = scratch.split_at_mut(kept);
            let packed: &mut [E] = bytemuck::cast_slice_mut(packed);
            with_tiles::<E, _>(self.plan.isa, || {
                for (index, section) in sections.iter().enumerate() {
                    self.pack(section, packed);
                    // SAFETY: AMX comes with AVX-512.
                    unsafe { self.multiply(index, packed, kept) };
                }
            });
        });
    }

    /// Lays a section out, `[segment][panel][depth]`.
    fn pack(&self, section: &Section, mut packed: &mut [E]) {
        let part = &self.plan.parts[self.group.part];
        for segment in section {
            let (these, rest) = packed.split_at_mut(self.group.panels * segment.depth.len() * PANEL);
            let (first, count) = columns_of(part, self.group);
            part.terms[segment.term].columns.pack(first, count, segment.depth.clone(), these);
            packed = rest;
        }
    }

    /// Multiplies a section. Tiles of the last are stored a few rows at a time between the steps of the next tile, whose products
    /// leave the processor room for it.
    ///
    /// # Safety
    /// The processor has AMX and AVX-512; the call is inside [`with_tiles`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
    unsafe fn multiply(&self, index: usize, packed: &[E], kept: &mut [f32]) {
        let Group { part, panels, first, .. } = *self.group;
        let sections = &self.plan.sections[part];
        let (part, is_last) = (&self.plan.parts[part], index + 1 == sections.len());
        let following = if is_last { (self.next, 0) } else { (self.group, index + 1) };
        let strips = self.rows.div_ceil(STRIP);
        let mut tiles = [Tile::ZERO; 2];
        let mut finished: Option<Finished<'_, O>> = None;
        for panel in 0..panels {
            let operands = self.operands(&sections[index], panel, packed);
            let steps: usize = operands.iter().map(|operand| operand.steps).sum();
            let rows_per_step = STRIP.div_ceil(steps.max(1));
            for strip in 0..strips {
                let number = panel * strips + strip;
                let [even, odd] = &mut tiles;
                let (tile, before) = if number.is_multiple_of(2) { (even, odd) } else { (odd, even) };
                let to = if is_last { tile.0.as_mut_ptr() } else { kept[number * TILE..][..TILE].as_mut_ptr() };
                let from = (index > 0).then(|| kept[number * TILE..][..TILE].as_ptr());
                // SAFETY: as the caller vouches; tile and sums are whole, and `E` is bf16.
                unsafe { amx::begin(from) };
                for operand in &operands {
                    let rows = &operand.rows[strip * operand.distance..][..operand.steps * STRIP * STEP];
                    for (rows, columns) in
                        rows.chunks_exact(STRIP * STEP).zip(operand.columns.chunks_exact(PANEL * STEP))
                    {
                        // SAFETY: rows and columns hold the step.
                        unsafe { amx::stream(rows.as_ptr().cast(), columns.as_ptr().cast()) };
                        if let Some(finished) = &mut finished {
                            finished.store(before, rows_per_step);
                        }
                    }
                }
                // SAFETY: as above.
                unsafe { amx::finish(to) };
                if is_last {
                    if let Some(finished) = &mut finished {
                        finished.store(before, STRIP);
                    }
                    let row = strip * STRIP;
                    let (row, rows) = (self.row + row, STRIP.min(self.rows - row));
                    // SAFETY: the target was measured before; the block there is this task's alone.
                    let place = unsafe { part.tile(self.plan.target, first + panel, row, rows) };
                    finished = Some(Finished { is_plain: place.is_plain(), place, row: 0 });
                }
                self.fetch(following, number, panels * strips);
            }
        }
        if let Some(finished) = &mut finished {
            finished.store(&tiles[(panels * strips + 1) % 2], STRIP);
        }
    }

    /// The operands of a section's tiles in a panel.
    fn operands<'b>(&'b self, section: &Section, panel: usize, packed: &'b [E]) -> Vec<Operand<'b, E>> {
        let mut start = 0;
        let operand = |segment: &Segment| {
            let (depth, source) = (segment.depth.len(), &self.plan.sources[segment.source]);
            let first =
                (self.copied_strips * source.start + self.first_strip * source.padded + segment.depth.start) * STRIP;
            let columns = &packed[(start * self.group.panels + panel * depth) * PANEL..][..depth * PANEL];
            start += depth;
            Operand { rows: &self.copies[first..], distance: source.padded * STRIP, columns, steps: depth / STEP }
        };
        section.iter().map(operand).collect()
    }

    /// Fetches a share of the columns that are packed next.
    fn fetch(&self, (group, section): (&Group, usize), share: usize, shares: usize) {
        let part = &self.plan.parts[group.part];
        let (first, count) = columns_of(part, group);
        for segment in &self.plan.sections[group.part][section] {
            part.terms[segment.term].columns.fetch(first, count, segment.depth.clone(), share, shares);
        }
    }
}

/// A tile on its way to the target.
struct Finished<'a, O> {
    place: StoredTile<'a, O>,
    is_plain: bool,
    /// The next row to store.
    row: usize,
}

impl<O: Element> Finished<'_, O> {
    /// Stores up to `count` more rows.
    #[inline(always)]
    fn store(&mut self, tile: &Tile, count: usize) {
        let end = STRIP.min(self.row + count);
        for row in self.row..end {
            if self.is_plain {
                self.place.store_plain_row(row, tile.row(row));
            } else {
                store_row(tile, &self.place, row);
            }
        }
        self.row = end;
    }
}

/// Some steps of one term: rows by columns.
struct Operand<'a, E> {
    /// From the first strip of the block on.
    rows: &'a [E],
    /// From strip to strip.
    distance: usize,
    columns: &'a [E],
    steps: usize,
}

/// The first column of a group in its part, and their number.
fn columns_of<E: Element>(part: &Part<'_, E>, group: &Group) -> (usize, usize) {
    let first = group.first * PANEL;
    (first, (part.columns - first).min(group.panels * PANEL))
}
