//! The input of a pass: sequences laid end to end, nothing padded.

/// Sequences laid end to end. Attention never crosses a boundary; positions restart at each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Token ids of all sequences, `[total]`.
    pub ids: Vec<u32>,
    /// Length of each sequence; sums to `total`.
    pub lengths: Vec<usize>,
    /// For each position, whether the token *at* it is trained on (it is predicted from the position before).
    pub trained: Vec<bool>,
}

impl Batch {
    /// Lays sequences end to end: of each its token ids, and which of them are trained on.
    pub fn join<'a>(sequences: impl IntoIterator<Item = (&'a [u32], &'a [bool])>) -> Self {
        let mut batch = Self { ids: Vec::new(), lengths: Vec::new(), trained: Vec::new() };
        for (ids, trained) in sequences {
            batch.ids.extend_from_slice(ids);
            batch.trained.extend_from_slice(trained);
            batch.lengths.push(ids.len());
        }
        batch
    }

    /// Number of trained tokens: positions that are trained on and have a position before them.
    pub fn trained_tokens(&self) -> usize {
        self.targets().len()
    }

    /// `(row, target)` pairs: the hidden state at `row` predicts the token id `target`.
    pub fn targets(&self) -> Vec<(u32, u32)> {
        let mut targets = Vec::new();
        let mut start = 0;
        for &length in &self.lengths {
            for position in start + 1..start + length {
                if self.trained[position] {
                    targets.push((position as u32 - 1, self.ids[position]));
                }
            }
            start += length;
        }
        targets
    }
}
