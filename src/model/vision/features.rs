//! Features of pictures in the places of tokens.
//!
//! A row of features is a token whose id lies beyond every vocabulary: [`FIRST_ID`] and the number of the row. So a sequence with
//! pictures is a sequence, and batches, packing, caches and checkpoints know nothing of them; the embedding alone does.

use std::borrow::Cow;
use std::sync::{Arc, PoisonError, RwLock};

use burn::tensor::{Tensor, TensorData};

use crate::files::RawTensor;

/// The id of the first row of features.
pub const FIRST_ID: u32 = 1 << 31;

/// Whether an id is that of a row of features.
pub fn is_feature(id: u32) -> bool {
    id >= FIRST_ID
}

/// The ids with any token in the places of features.
pub fn tokens_of(ids: &[u32]) -> Cow<'_, [u32]> {
    match ids.iter().any(|id| is_feature(*id)) {
        false => Cow::Borrowed(ids),
        true => Cow::Owned(ids.iter().map(|id| if is_feature(*id) { 0 } else { *id }).collect()),
    }
}

/// The features of the pictures that a decoder knows. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Features(Arc<RwLock<Rows>>);

#[derive(Debug, Default)]
struct Rows {
    /// Of each picture `[rows, width]`.
    pictures: Vec<RawTensor>,
    /// The number of the first row after each picture.
    ends: Vec<usize>,
}

impl Features {
    /// The number of rows so far.
    pub fn rows(&self) -> usize {
        self.0.read().unwrap_or_else(PoisonError::into_inner).ends.last().copied().unwrap_or(0)
    }

    /// Adds the features of the next picture, `[rows, width]`.
    pub fn add(&self, picture: RawTensor) {
        let mut rows = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let end = rows.ends.last().copied().unwrap_or(0) + picture.shape.first().copied().unwrap_or(0);
        rows.pictures.push(picture);
        rows.ends.push(end);
    }

    /// Puts features over the rows of `values` whose ids are theirs.
    ///
    /// # Shapes
    /// - `values`: `[ids, width]`
    ///
    /// # Panics
    /// If a row has not been added: whoever encodes pictures adds their features first.
    pub fn fill(&self, ids: &[u32], values: &mut [f32]) {
        let width = values.len() / ids.len().max(1);
        let rows = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for (id, values) in ids.iter().zip(values.chunks_exact_mut(width.max(1))) {
            if let Some(row) = id.checked_sub(FIRST_ID).map(|row| row as usize) {
                let picture = rows.ends.partition_point(|end| *end <= row);
                assert!(picture < rows.ends.len(), "the features of a picture are known before it is seen");
                let first = if picture == 0 { 0 } else { rows.ends[picture - 1] };
                rows.pictures[picture].decode((row - first) * width, values);
            }
        }
    }

    /// The embeddings `rows` of `ids` with features in their places.
    ///
    /// # Shapes
    /// - `rows`, output: `[ids, width]` in f32
    ///
    /// # Panics
    /// Those of [`Self::fill`].
    pub fn placed(&self, ids: &[u32], rows: Tensor<2>) -> Tensor<2> {
        if !ids.iter().any(|id| is_feature(*id)) {
            return rows;
        }
        let (width, device) = (rows.dims()[1], rows.device().inner());
        let mut start = 0;
        let pieces = ids.chunk_by(|a, b| is_feature(*a) == is_feature(*b)).map(|run| {
            let piece = match run.iter().any(|id| is_feature(*id)) {
                false => rows.clone().narrow(0, start, run.len()),
                true => {
                    let mut values = vec![0f32; run.len() * width];
                    self.fill(run, &mut values);
                    let own: Tensor<2> = Tensor::from_data(TensorData::new(values, [run.len(), width]), &device);
                    if rows.is_autodiff() { own.autodiff() } else { own }
                }
            };
            start += run.len();
            piece
        });
        let pieces: Vec<Tensor<2>> = pieces.collect();
        Tensor::cat(pieces, 0)
    }
}
