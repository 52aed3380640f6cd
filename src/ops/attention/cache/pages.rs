//! Keys and values in pages of 64 positions, in the order in which attention reads them.

use std::collections::VecDeque;
use std::sync::Arc;

use half::{bf16, f16};

use super::super::Geometry;
use super::CacheFormat;
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::rows::Stored;
use crate::quant::float::{f32_to_bf16_bits, round_ties_even};

/// Positions of a page.
pub const PAGE_POSITIONS: usize = 64;
/// Values of a head and position that share a scale, where a page has scales.
pub(super) const GROUP: usize = 32;

/// Keys and values of 64 positions in one layer, for all key heads. A position that is not written holds zeros, or what was
/// forgotten.
///
/// Of each head first its keys, `[head_dim, 64]`, so that the scores of neighbouring positions lie side by side; then its values,
/// `[64, head_dim]`, rows padded to whole vectors. A page in int8 has scales beside its codes: of each head those of the keys,
/// `[groups, 64]`, then those of the values, `[64, groups]`.
#[derive(Debug, Clone)]
pub struct Page {
    pub(super) data: PageData,
}

/// The values of a page, in its number format.
#[derive(Debug, Clone)]
pub(super) enum PageData {
    F32(Box<[f32]>),
    Bf16(Box<[bf16]>),
    Int8 { codes: Box<[i8]>, scales: Box<[f16]> },
}

/// Values of a row of a head, padded.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Numbers of a head in a page.
pub(super) fn head_size(head_dim: usize) -> usize {
    PAGE_POSITIONS * (head_dim + padded(head_dim))
}

/// Groups of a row of a head.
pub(super) fn groups(head_dim: usize) -> usize {
    head_dim.div_ceil(GROUP)
}

/// Scales of a head in a page, where it has scales.
pub(super) fn head_scales(head_dim: usize) -> usize {
    2 * PAGE_POSITIONS * groups(head_dim)
}

/// A number that a page is stored in.
pub(super) trait PageElement: bytemuck::Pod + Send + Sync {
    /// Whether a value is the product of a number and the scale of its group.
    const HAS_SCALES: bool;
    /// The number as f32, exactly.
    fn widened(self) -> f32;
    /// The numbers and scales of a page, if it is in this format.
    fn parts(page: &Page) -> (&[Self], &[f16]);

    /// The value of a number, exactly.
    #[inline(always)]
    fn value(self, scale: f32) -> f32 {
        if Self::HAS_SCALES { self.widened() * scale } else { self.widened() }
    }
}

impl PageElement for f32 {
    const HAS_SCALES: bool = false;

    #[inline(always)]
    fn widened(self) -> f32 {
        self
    }

    fn parts(page: &Page) -> (&[Self], &[f16]) {
        match &page.data {
            PageData::F32(numbers) => (numbers, &[]),
            PageData::Bf16(_) | PageData::Int8 { .. } => (&[], &[]),
        }
    }
}

impl PageElement for bf16 {
    const HAS_SCALES: bool = false;

    #[inline(always)]
    fn widened(self) -> f32 {
        Stored::to_f32(self)
    }

    fn parts(page: &Page) -> (&[Self], &[f16]) {
        match &page.data {
            PageData::Bf16(numbers) => (numbers, &[]),
            PageData::F32(_) | PageData::Int8 { .. } => (&[], &[]),
        }
    }
}

impl PageElement for i8 {
    const HAS_SCALES: bool = true;

    #[inline(always)]
    fn widened(self) -> f32 {
        f32::from(self)
    }

    fn parts(page: &Page) -> (&[Self], &[f16]) {
        match &page.data {
            PageData::Int8 { codes, scales } => (codes, scales),
            PageData::F32(_) | PageData::Bf16(_) => (&[], &[]),
        }
    }
}

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone, Default)]
pub struct PagedCache {
    /// The number of the first page that is still there: a window needs none before it.
    first: usize,
    pages: VecDeque<Arc<Page>>,
    length: usize,
}

impl PagedCache {
    /// A cache that begins with whole pages of the same sequence; those before `first` are not needed.
    pub fn from_pages(first: usize, pages: impl IntoIterator<Item = Arc<Page>>) -> Self {
        let pages: VecDeque<_> = pages.into_iter().collect();
        Self { first, length: (first + pages.len()) * PAGE_POSITIONS, pages }
    }

    /// Number of tokens that it has seen.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The page with this number, if it is still there.
    pub fn page(&self, number: usize) -> Option<&Arc<Page>> {
        self.pages.get(number.checked_sub(self.first)?)
    }

    /// Bytes of a page of a layer of this shape.
    pub fn page_bytes(geometry: &Geometry, format: CacheFormat) -> usize {
        let numbers = head_size(geometry.head_dim);
        let of_head = match format {
            CacheFormat::F32 => numbers * size_of::<f32>(),
            CacheFormat::Bf16 => numbers * size_of::<bf16>(),
            CacheFormat::Int8 => numbers + head_scales(geometry.head_dim) * size_of::<f16>(),
        };
        geometry.kv_heads * of_head
    }

    /// The most pages that a sequence of `tokens` tokens has at once, if at most `piece` of them are added at a time.
    pub fn most_pages(geometry: &Geometry, tokens: usize, piece: usize) -> usize {
        let all = tokens.div_ceil(PAGE_POSITIONS);
        geometry.window.map_or(all, |window| all.min((window + piece).div_ceil(PAGE_POSITIONS) + 1))
    }

    /// Adds rotated keys and values, `[kv_heads, head_dim]` each, of the next position.
    pub(super) fn push(&mut self, keys: &[f32], values: &[f32], geometry: &Geometry, format: CacheFormat) {
        let (at, dim) = (self.length % PAGE_POSITIONS, geometry.head_dim);
        if at == 0 {
            let numbers = geometry.kv_heads * head_size(dim);
            let data = match format {
                CacheFormat::F32 => PageData::F32(vec![0.0; numbers].into()),
                CacheFormat::Bf16 => PageData::Bf16(vec![bf16::ZERO; numbers].into()),
                CacheFormat::Int8 => PageData::Int8 {
                    codes: vec![0; numbers].into(),
                    scales: vec![f16::ZERO; geometry.kv_heads * head_scales(dim)].into(),
                },
            };
            self.pages.push_back(Arc::new(Page { data }));
        }
        self.length += 1;
        let Some(page) = self.pages.back_mut() else { return };
        // Whole pages are shared and never written; the last page of a sequence is its own.
        match &mut Arc::make_mut(page).data {
            PageData::F32(numbers) => put(numbers, keys, values, at, dim, |value| value),
            PageData::Bf16(numbers) => {
                put(numbers, keys, values, at, dim, |value| bf16::from_bits(f32_to_bf16_bits(value)))
            }
            PageData::Int8 { codes, scales } => put_codes(codes, scales, keys, values, at, dim),
        }
    }

    /// Forgets the positions from `length` on.
    pub fn truncate(&mut self, length: usize) {
        self.length = length;
        self.pages.truncate(length.div_ceil(PAGE_POSITIONS).saturating_sub(self.first));
    }

    /// Lets go of the pages that no query at `position` or later sees.
    pub fn forget_before(&mut self, position: usize, geometry: &Geometry) {
        let needed = geometry.first_key(position) / PAGE_POSITIONS;
        while self.first < needed && self.pages.pop_front().is_some() {
            self.first += 1;
        }
    }
}

/// Writes the keys and values of a position into its page, each as the number that `stored` makes of it.
fn put<E>(numbers: &mut [E], keys: &[f32], values: &[f32], at: usize, head_dim: usize, stored: impl Fn(f32) -> E) {
    let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
    for ((keys, values), head) in heads.zip(numbers.chunks_exact_mut(head_size(head_dim))) {
        let (key_part, value_part) = head.split_at_mut(PAGE_POSITIONS * head_dim);
        for (key, column) in keys.iter().zip(key_part.chunks_exact_mut(PAGE_POSITIONS)) {
            column[at] = stored(*key);
        }
        for (value, target) in values.iter().zip(&mut value_part[at * padded(head_dim)..]) {
            *target = stored(*value);
        }
    }
}

vectorised! {
    /// Writes the keys and values of a position into its page, as codes with scales.
    fn put_codes(codes: &mut [i8], scales: &mut [f16], keys: &[f32], values: &[f32], at: usize, head_dim: usize) {
        let (width, groups) = (padded(head_dim), groups(head_dim));
        let heads = codes.chunks_exact_mut(head_size(head_dim)).zip(scales.chunks_exact_mut(head_scales(head_dim)));
        let heads = heads.zip(keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim)));
        for ((codes, scales), (keys, values)) in heads {
            let (key_codes, value_codes) = codes.split_at_mut(PAGE_POSITIONS * head_dim);
            let (key_scales, value_scales) = scales.split_at_mut(PAGE_POSITIONS * groups);
            for (group, (keys, values)) in keys.chunks(GROUP).zip(values.chunks(GROUP)).enumerate() {
                let scale = scale_of(keys);
                key_scales[group * PAGE_POSITIONS + at] = scale;
                let columns = key_codes[group * GROUP * PAGE_POSITIONS..].chunks_exact_mut(PAGE_POSITIONS);
                for (key, column) in keys.iter().zip(columns) {
                    column[at] = code_of(*key, scale);
                }
                let scale = scale_of(values);
                value_scales[at * groups + group] = scale;
                for (value, code) in values.iter().zip(&mut value_codes[at * width + group * GROUP..]) {
                    *code = code_of(*value, scale);
                }
            }
        }
    }
}

/// The scale of a group: its greatest magnitude has the code 127 or -127.
#[inline(always)]
fn scale_of(values: &[f32]) -> f16 {
    let absmax = values.iter().fold(0f32, |most, value| if value.abs() > most { value.abs() } else { most });
    f16::from_f32(absmax / 127.0)
}

/// The code whose product with `scale` is nearest to a value.
#[inline(always)]
fn code_of(value: f32, scale: f16) -> i8 {
    let scale = Stored::to_f32(scale);
    // The cast takes values beyond the range to its ends, and 0 for no number.
    if scale > 0.0 { round_ties_even(value / scale).clamp(-127.0, 127.0) as i8 } else { 0 }
}
