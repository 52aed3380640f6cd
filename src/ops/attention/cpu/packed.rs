//! Buffers of attention in the layouts that the kernels read and write.

use crate::ops::cpu::isa::Isa;
use crate::ops::cpu::kernel::{Element, PANEL, Tile};
use crate::ops::cpu::matrix::interleave_rows;
use crate::ops::cpu::pack::{pack_rows, pack_rows_bf16, write_depth_row};
use crate::ops::cpu::rows::Rows;

/// An aligned buffer in the kernel's number format.
pub struct Aligned<E> {
    words: Vec<Tile>,
    count: usize,
    marker: std::marker::PhantomData<E>,
}

impl<E: Element> Aligned<E> {
    /// Room for `count` values, all zero.
    pub fn new(count: usize) -> Self {
        let tiles = (count * size_of::<E>()).div_ceil(size_of::<Tile>());
        Self { words: vec![Tile::ZERO; tiles], count, marker: std::marker::PhantomData }
    }

    /// The values.
    pub fn as_slice(&self) -> &[E] {
        // SAFETY: the tiles hold at least `count` plain values.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.count) }
    }

    /// The values, to write.
    pub fn as_mut(&mut self) -> &mut [E] {
        // SAFETY: the tiles hold at least `count` plain values.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.count) }
    }
}

/// The keys of a key head, or its values: `count` rows of `dim`, packed as the right-hand side of products.
pub struct Packed<E> {
    panels: Aligned<E>,
    /// Values of a panel.
    size: usize,
}

impl<E: Element> Packed<E> {
    /// Packs them as the columns of panels: `rowsᵀ` on the right.
    pub fn columns(source: Rows<'_>, count: usize, dim: usize) -> Self {
        let size = dim.next_multiple_of(E::depth_step(Isa::current())) * PANEL;
        let mut panels = Aligned::new(count.div_ceil(PANEL) * size);
        for (index, panel) in panels.as_mut().chunks_exact_mut(size).enumerate() {
            let first = index * PANEL;
            let columns = (count - first).min(PANEL);
            match source {
                Rows::F32 { data, stride } => pack_rows(&data[first * stride..], stride, columns, dim, 1.0, panel),
                Rows::Bf16 { data, stride } => match E::as_bf16(panel) {
                    Some(panel) => pack_rows_bf16(&data[first * stride..], stride, columns, dim, panel),
                    None => pack_rows(&data[first * stride..], stride, columns, dim, 1.0, panel),
                },
            }
        }
        Self { panels, size }
    }

    /// Packs them as they are, in panels of 32 dimensions: `rows` on the right. The depth is whole panels of keys, the rest
    /// zero.
    pub fn rows(source: Rows<'_>, count: usize, dim: usize) -> Self {
        let depth = count.next_multiple_of(PANEL);
        let mut panels = Aligned::new(dim.div_ceil(PANEL) * depth * PANEL);
        let packed = panels.as_mut();
        if let (Rows::Bf16 { data, stride }, Some(packed)) = (source, E::as_bf16(packed)) {
            interleave_rows(data, stride, dim, count, packed);
        } else {
            let mut row = vec![0f32; dim];
            for k in 0..count {
                source.read(k, 0, &mut row);
                for (panel, values) in packed.chunks_exact_mut(depth * PANEL).zip(row.chunks(PANEL)) {
                    write_depth_row(values, 1.0, k, panel);
                }
            }
        }
        Self { panels, size: depth * PANEL }
    }

    /// A panel: of 32 columns, or of 32 dimensions.
    pub fn panel(&self, index: usize) -> &[E] {
        &self.panels.as_slice()[index * self.size..][..self.size]
    }
}

/// A gradient of keys or values, transposed: `[panels of 32 keys][dimensions][32]`.
pub struct Transposed {
    sums: Aligned<f32>,
    /// Values of a panel: the kernel may write more dimensions than there are.
    size: usize,
}

impl Transposed {
    /// All zero.
    pub fn new(panels: usize, dimensions: usize) -> Self {
        let size = dimensions * PANEL;
        Self { sums: Aligned::new(panels * size), size }
    }

    /// The sums of keys `32·panel..`, to add to.
    pub fn panel_mut(&mut self, panel: usize) -> &mut [f32] {
        &mut self.sums.as_mut()[panel * self.size..][..self.size]
    }

    /// The gradients of keys `32·panel..`, `[head_dim][32]` and perhaps more.
    pub fn panel(&self, panel: usize) -> &[f32] {
        &self.sums.as_slice()[panel * self.size..][..self.size]
    }
}

/// The part of one query head in the gradients of its key head.
pub struct Share {
    /// Of the keys.
    pub keys: Transposed,
    /// Of the values.
    pub values: Transposed,
}
