//! Keys and values in pages of 64 positions, in the order in which attention reads them.

use std::collections::VecDeque;
use std::sync::Arc;

use half::bf16;

use super::super::Geometry;
use crate::ops::cpu::rows::Stored;
use crate::quant::Compute;

/// Positions of a page.
pub const PAGE_POSITIONS: usize = 64;

/// Keys and values of 64 positions in one layer, for all key heads. A position that is not written holds zeros, or what was
/// forgotten.
///
/// Of each head first its keys, `[head_dim, 64]`, so that the scores of neighbouring positions lie side by side; then its values,
/// `[64, head_dim]`, rows padded to whole vectors.
#[derive(Debug, Clone)]
pub struct Page {
    pub(super) data: PageData,
}

/// The values of a page, in its number format.
#[derive(Debug, Clone)]
pub(super) enum PageData {
    F32(Box<[f32]>),
    Bf16(Box<[bf16]>),
}

/// Values of a row of a head, padded.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(16)
}

/// Numbers of a head in a page.
pub(super) fn head_size(head_dim: usize) -> usize {
    PAGE_POSITIONS * (head_dim + padded(head_dim))
}

/// A number that a page is stored in.
pub(super) trait PageElement: Stored {
    /// The nearest number.
    fn of_f32(value: f32) -> Self;
    /// The numbers of a page, if it is in this format.
    fn numbers(page: &Page) -> &[Self];
}

impl PageElement for f32 {
    fn of_f32(value: f32) -> Self {
        value
    }

    fn numbers(page: &Page) -> &[Self] {
        match &page.data {
            PageData::F32(numbers) => numbers,
            PageData::Bf16(_) => &[],
        }
    }
}

impl PageElement for bf16 {
    fn of_f32(value: f32) -> Self {
        Self::from_bits(crate::quant::float::f32_to_bf16_bits(value))
    }

    fn numbers(page: &Page) -> &[Self] {
        match &page.data {
            PageData::Bf16(numbers) => numbers,
            PageData::F32(_) => &[],
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
    pub fn page_bytes(geometry: &Geometry, format: Compute) -> usize {
        let size = if format == Compute::F32 { size_of::<f32>() } else { size_of::<bf16>() };
        geometry.kv_heads * head_size(geometry.head_dim) * size
    }

    /// The most pages that a sequence of `tokens` tokens has at once, if at most `piece` of them are added at a time.
    pub fn most_pages(geometry: &Geometry, tokens: usize, piece: usize) -> usize {
        let all = tokens.div_ceil(PAGE_POSITIONS);
        geometry.window.map_or(all, |window| all.min((window + piece).div_ceil(PAGE_POSITIONS) + 1))
    }

    /// Adds rotated keys and values, `[kv_heads, head_dim]` each, of the next position.
    pub(super) fn push(&mut self, keys: &[f32], values: &[f32], geometry: &Geometry, format: Compute) {
        let at = self.length % PAGE_POSITIONS;
        if at == 0 {
            let numbers = geometry.kv_heads * head_size(geometry.head_dim);
            let data = match format {
                Compute::F32 => PageData::F32(vec![0.0; numbers].into()),
                Compute::Bf16 => PageData::Bf16(vec![bf16::ZERO; numbers].into()),
            };
            self.pages.push_back(Arc::new(Page { data }));
        }
        self.length += 1;
        let Some(page) = self.pages.back_mut() else { return };
        // Whole pages are shared and never written; the last page of a sequence is its own.
        match &mut Arc::make_mut(page).data {
            PageData::F32(numbers) => put(numbers, keys, values, at, geometry.head_dim),
            PageData::Bf16(numbers) => put(numbers, keys, values, at, geometry.head_dim),
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

/// Writes the keys and values of a position into its page.
fn put<E: PageElement>(numbers: &mut [E], keys: &[f32], values: &[f32], at: usize, head_dim: usize) {
    let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
    for ((keys, values), head) in heads.zip(numbers.chunks_exact_mut(head_size(head_dim))) {
        let (key_part, value_part) = head.split_at_mut(PAGE_POSITIONS * head_dim);
        for (key, column) in keys.iter().zip(key_part.chunks_exact_mut(PAGE_POSITIONS)) {
            column[at] = E::of_f32(*key);
        }
        for (value, target) in values.iter().zip(&mut value_part[at * padded(head_dim)..]) {
            *target = E::of_f32(*value);
        }
    }
}
