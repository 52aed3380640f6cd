//! Queries, keys and values side by side, queries and keys rotated to their positions; and the way back for gradients.

use std::sync::Arc;

use burn::tensor::DType;
use burn_flex::FlexTensor;

use super::super::rope::RopeTable;
use super::super::{Geometry, QkvLayout};
use crate::ops::cpu::autograd::{dims, rows};
use crate::ops::cpu::isa::vectorised;
use crate::ops::cpu::rowwise::map_rows;

/// The position of every row of some sequences that lie end to end, and the table that its sequence is rotated by.
pub struct Places {
    /// One a sequence.
    tables: Vec<Option<Arc<RopeTable>>>,
    /// Sequence and position of every row.
    rows: Vec<(usize, usize)>,
}

impl Places {
    /// Rows of sequences that have `past` tokens already and `new` ones here: `(past, new)` each.
    pub fn of(sequences: impl Iterator<Item = (usize, usize)>, geometry: &Geometry) -> Self {
        let (mut tables, mut rows) = (Vec::new(), Vec::new());
        for (past, new) in sequences {
            rows.extend((past..past + new).map(|position| (tables.len(), position)));
            tables.push(geometry.rope.as_ref().map(|rope| rope.table(past + new)));
        }
        Self { tables, rows }
    }

    /// Turns the heads of a row to its position (`direction` 1) or back (-1).
    fn turn(&self, row: usize, heads: &mut [f32], head_dim: usize, direction: f32) {
        let (sequence, position) = self.rows[row];
        if let Some(table) = &self.tables[sequence] {
            let (cos, sin) = table.at(position);
            turn_heads(heads, head_dim, cos, sin, direction);
        }
    }
}

/// `[tokens, q | k | v]` of `dtype` from a projection's columns, queries and keys rotated.
pub fn rotate(qkv: &FlexTensor, places: &Places, geometry: &Geometry, dtype: DType) -> FlexTensor {
    if geometry.rope.is_none() && geometry.layout == QkvLayout::SideBySide && dtype == qkv.dtype() {
        return qkv.clone();
    }
    let [tokens, width] = dims(qkv);
    let (source, dim) = (rows(qkv), geometry.head_dim);
    let turned = (geometry.heads + geometry.kv_heads) * dim;
    map_rows(dtype, tokens, width, |row, out, scratch| {
        match geometry.layout {
            QkvLayout::SideBySide => source.read(row, 0, out),
            QkvLayout::ByHead => {
                source.read(row, 0, scratch);
                each_segment(geometry, |side_by_side, by_head| {
                    out[side_by_side..side_by_side + dim].copy_from_slice(&scratch[by_head..by_head + dim]);
                });
            }
        }
        places.turn(row, &mut out[..turned], dim, 1.0);
    })
}

/// The gradient of what [`rotate`] took, of `dtype`, from that of what it gave.
pub fn rotate_back(gradient: &FlexTensor, places: &Places, geometry: &Geometry, dtype: DType) -> FlexTensor {
    let [tokens, width] = dims(gradient);
    let (source, dim) = (rows(gradient), geometry.head_dim);
    let turned = (geometry.heads + geometry.kv_heads) * dim;
    map_rows(dtype, tokens, width, |row, out, scratch| match geometry.layout {
        QkvLayout::SideBySide => {
            source.read(row, 0, out);
            places.turn(row, &mut out[..turned], dim, -1.0);
        }
        QkvLayout::ByHead => {
            source.read(row, 0, scratch);
            places.turn(row, &mut scratch[..turned], dim, -1.0);
            each_segment(geometry, |side_by_side, by_head| {
                out[by_head..by_head + dim].copy_from_slice(&scratch[side_by_side..side_by_side + dim]);
            });
        }
    })
}

/// Calls `copy(first column side by side, first column in the layout)` for every head.
fn each_segment(geometry: &Geometry, mut copy: impl FnMut(usize, usize)) {
    let mut side_by_side = 0;
    let queries = (0..geometry.heads).map(|head| geometry.query_column(head));
    let keys = (0..geometry.kv_heads).map(|head| geometry.key_column(head));
    let values = (0..geometry.kv_heads).map(|head| geometry.value_column(head));
    for column in queries.chain(keys).chain(values) {
        copy(side_by_side, column);
        side_by_side += geometry.head_dim;
    }
}

/// Keys of a cache, `[past, kv_heads · head_dim]`, that were rotated as for a sequence of `past` tokens, as for one of
/// `after` (see [`Rope::with_long_context`](super::super::Rope::with_long_context)).
pub fn rotate_anew(keys: &mut [f32], past: usize, after: usize, geometry: &Geometry) {
    let Some(rope) = geometry.rope.as_ref().filter(|rope| rope.switches(past, after)) else { return };
    let (before, now) = (rope.table(past), rope.table(after));
    // Either turn multiplies by the factor on cosines and sines.
    let factor = rope.attention_factor().powi(-2);
    let dim = geometry.head_dim;
    for (position, row) in keys.chunks_exact_mut(geometry.kv_heads * dim).enumerate() {
        let ((cos, sin), (new_cos, new_sin)) = (before.at(position), now.at(position));
        turn_heads(row, dim, cos, sin, -1.0);
        turn_heads(row, dim, new_cos, new_sin, 1.0);
        for head in row.chunks_exact_mut(dim) {
            head[..2 * cos.len()].iter_mut().for_each(|value| *value *= factor);
        }
    }
}

vectorised! {
    fn turn_heads(heads: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], direction: f32) {
        for head in heads.chunks_exact_mut(head_dim) {
            let (left, right) = head[..2 * cos.len()].split_at_mut(cos.len());
            for (((left, right), cos), sin) in left.iter_mut().zip(right).zip(cos).zip(sin) {
                let sin = sin * direction;
                let turned = *left * cos - *right * sin;
                *right = *right * cos + *left * sin;
                *left = turned;
            }
        }
    }
}
