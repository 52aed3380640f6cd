//! Features of pictures in the places of tokens.
//!
//! A row of features is a token whose id lies beyond every vocabulary: [`FIRST_ID`] and the number of the row. So a sequence with
//! pictures is a sequence, and batches, packing, caches and checkpoints know nothing of them; the embedding alone does.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use burn::tensor::{Tensor, TensorData};

use super::Vision;
use crate::files::RawTensor;
use crate::nn::{Adapter, Pass};

/// The id of the first row of features.
pub const FIRST_ID: u32 = 1 << 31;

/// The number of the first row of pictures that are shown for a while; the rows of those that stay come before.
const FIRST_LENT: usize = 1 << 30;

/// Whether an id is that of a row of features.
pub fn is_feature(id: u32) -> bool {
    id >= FIRST_ID
}

/// Whether features stand among some ids.
pub fn has_features(ids: &[u32]) -> bool {
    ids.iter().any(|id| is_feature(*id))
}

/// The ids with any token in the places of features.
pub fn tokens_of(ids: &[u32]) -> Cow<'_, [u32]> {
    match has_features(ids) {
        false => Cow::Borrowed(ids),
        true => Cow::Owned(ids.iter().map(|id| if is_feature(*id) { 0 } else { *id }).collect()),
    }
}

/// Whether a row of features belongs to a picture that is shown for a while.
fn is_lent(id: u32) -> bool {
    id >= FIRST_ID + FIRST_LENT as u32
}

/// The features of a picture in a prompt.
#[derive(Debug)]
pub struct PictureFeatures {
    /// The SHA-256 of the picture's file in hexadecimal.
    pub sha256: String,
    /// At least one row, `[rows, width]`.
    pub rows: RawTensor,
}

impl PictureFeatures {
    /// The number of rows.
    pub fn count(&self) -> usize {
        self.rows.shape.first().copied().unwrap_or(0)
    }
}

/// A picture that a decoder is shown as long as this lives. Its numbers are another picture's afterwards.
#[derive(Debug)]
pub struct Shown {
    features: Features,
    first_row: usize,
    picture: Arc<PictureFeatures>,
}

impl Shown {
    /// The ids of its rows.
    pub fn ids(&self) -> Range<u32> {
        let first = FIRST_ID + self.first_row as u32;
        first..first + self.picture.count() as u32
    }

    /// The picture of an id and the number of the row within it, where the id is one of this picture.
    pub fn row_of(&self, id: u32) -> Option<(&PictureFeatures, usize)> {
        let ids = self.ids();
        ids.contains(&id).then(|| (&*self.picture, (id - ids.start) as usize))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.features.write().lent.remove(&self.first_row);
    }
}

/// The features of the pictures that a decoder knows. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Features(Arc<RwLock<Rows>>);

/// The pictures of a model whose tower or connector is trained.
#[derive(Debug)]
struct Live {
    vision: Vision,
    /// Of each picture the values of its tiles, and height and width of a tile.
    tiles: Vec<(Vec<f32>, [usize; 2])>,
}

#[derive(Debug, Default)]
struct Rows {
    /// Of each picture `[rows, width]`.
    pictures: Vec<RawTensor>,
    /// The number of the first row after each picture.
    ends: Vec<usize>,
    /// The pictures that are shown for a while, by the numbers of their first rows.
    lent: BTreeMap<usize, Arc<PictureFeatures>>,
    /// Where tower or connector are trained.
    live: Option<Live>,
}

impl Rows {
    /// The number of the picture that a row belongs to, and the number of the row within it.
    fn place(&self, row: usize) -> (usize, usize) {
        let picture = self.ends.partition_point(|end| *end <= row);
        let first = if picture == 0 { 0 } else { self.ends[picture - 1] };
        (picture, row - first)
    }

    /// The features that a row belongs to, and the number of the row within them; `None` where nothing was added there.
    fn of_row(&self, row: usize) -> Option<(&RawTensor, usize)> {
        if row >= FIRST_LENT {
            let (first, picture) = self.lent.range(..=row).next_back()?;
            return Some((&picture.rows, row - first));
        }
        let (picture, row) = self.place(row);
        Some((self.pictures.get(picture)?, row))
    }
}

impl Features {
    /// The number of rows so far.
    pub fn rows(&self) -> usize {
        self.read().ends.last().copied().unwrap_or(0)
    }

    /// Adds the features of the next picture, `[rows, width]`.
    pub fn add(&self, picture: RawTensor) {
        let mut rows = self.write();
        let end = rows.ends.last().copied().unwrap_or(0) + picture.shape.first().copied().unwrap_or(0);
        rows.pictures.push(picture);
        rows.ends.push(end);
    }

    /// Shows a picture as long as the result lives.
    pub fn show(&self, picture: Arc<PictureFeatures>) -> Shown {
        let mut rows = self.write();
        let mut first_row = FIRST_LENT;
        for (begin, lent) in &rows.lent {
            if first_row + picture.count() <= *begin {
                break;
            }
            first_row = begin + lent.count();
        }
        rows.lent.insert(first_row, picture.clone());
        Shown { features: self.clone(), first_row, picture }
    }

    /// The number of pictures whose tiles are kept beside their features; `None` where none are.
    pub fn live_pictures(&self) -> Option<usize> {
        self.read().live.as_ref().map(|live| live.tiles.len())
    }

    /// Keeps tower and connector in memory, for an adapter that changes them.
    pub fn keep(&self, vision: Vision) {
        self.write().live = Some(Live { vision, tiles: Vec::new() });
    }

    /// Keeps the tiles of the next picture, whose features an adapter changes.
    pub fn keep_tiles(&self, values: Vec<f32>, size: [usize; 2]) {
        if let Some(live) = &mut self.write().live {
            live.tiles.push((values, size));
        }
    }

    /// Whether an adapter changes the features themselves.
    pub fn are_changed_by(&self, adapter: &Adapter) -> bool {
        self.read().live.as_ref().is_some_and(|live| live.vision.is_changed_by(adapter))
    }

    fn read(&self) -> RwLockReadGuard<'_, Rows> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
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
        let rows = self.read();
        for (id, values) in ids.iter().zip(values.chunks_exact_mut(width.max(1))) {
            if let Some(row) = id.checked_sub(FIRST_ID).map(|row| row as usize) {
                let (features, row) = rows.of_row(row).expect("the features of a picture are known before it is seen");
                features.decode(row * width, values);
            }
        }
    }

    /// The embeddings `rows` of `ids` with features in their places, as the adapter of a pass changes them.
    ///
    /// # Shapes
    /// - `rows`, output: `[ids, width]` in f32
    ///
    /// # Panics
    /// Those of [`Self::fill`].
    pub fn placed(&self, ids: &[u32], rows: Tensor<2>, pass: &Pass<'_>) -> Tensor<2> {
        if !has_features(ids) {
            return rows;
        }
        let is_changed = pass.adapter.is_some_and(|adapter| self.are_changed_by(adapter));
        let (width, device) = (rows.dims()[1], rows.device().inner());
        let mut start = 0;
        let mut pieces: Vec<Tensor<2>> = Vec::new();
        let kind = |id: &u32| (is_feature(*id), is_lent(*id));
        for run in ids.chunk_by(|a, b| kind(a) == kind(b)) {
            match run.first() {
                Some(id) if !is_feature(*id) => pieces.push(rows.clone().narrow(0, start, run.len())),
                // Features that are shown for a while are those of their adapter already.
                Some(id) if is_changed && !is_lent(*id) => pieces.extend(self.computed(run, start, pass)),
                _ => {
                    let mut values = vec![0f32; run.len() * width];
                    self.fill(run, &mut values);
                    pieces.push(Tensor::from_data(TensorData::new(values, [run.len(), width]), &device));
                }
            }
            start += run.len();
        }
        let is_on_tape = pieces.iter().any(Tensor::is_autodiff);
        let on_tape = |piece: Tensor<2>| if is_on_tape && !piece.is_autodiff() { piece.autodiff() } else { piece };
        Tensor::cat(pieces.into_iter().map(on_tape).collect(), 0)
    }

    /// The rows of features `ids`, which begin at `start` in the batch of a pass, under its adapter: computed anew, tile by tile.
    fn computed(&self, ids: &[u32], start: usize, pass: &Pass<'_>) -> Vec<Tensor<2>> {
        let known = self.read();
        let Some(live) = &known.live else { return Vec::new() };
        // The picture of a row, the number of its tile, and that of the row within the tile.
        let place = |id: &u32| {
            let (picture, row) = known.place((id - FIRST_ID) as usize);
            let (values, [height, width]) = &live.tiles[picture];
            let tiles = (values.len() / (3 * height * width).max(1)).max(1);
            let rows = (known.pictures[picture].shape[0] / tiles).max(1);
            (picture, row / rows, row % rows)
        };
        let (mut start, mut pieces) = (start, Vec::new());
        for run in ids.chunk_by(|a, b| *b == a + 1 && (place(a).0, place(a).1) == (place(b).0, place(b).1)) {
            let (picture, tile, row) = place(&run[0]);
            let (values, size) = &live.tiles[picture];
            let length = 3 * size[0] * size[1];
            let noise = pass.noise.map(|noise| {
                let first = noise.tokens[start].wrapping_sub(row as u64);
                noise.of_picture(first, live.vision.rows(*size))
            });
            let pass = Pass { noise: noise.as_ref(), ..*pass };
            let features = live.vision.tiles(&values[tile * length..(tile + 1) * length], *size, &pass);
            pieces.push(features.narrow(0, row, run.len()));
            start += run.len();
        }
        pieces
    }
}
