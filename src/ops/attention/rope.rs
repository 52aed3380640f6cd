//! Rotary position embedding (Su et al. 2021) in the half-split form that Hugging Face checkpoints use.

use std::sync::{Arc, Mutex, PoisonError};

/// Inverse frequencies, `head_dim / 2` of them, scaled as the model says.
#[derive(Debug)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
    /// What has been computed so far.
    known: Mutex<Arc<RopeTable>>,
}

/// Cosines and sines of the positions from 0 on, `[positions, head_dim / 2]` each.
#[derive(Debug, Default)]
pub struct RopeTable {
    half: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl RopeTable {
    /// Cosines and sines of a position.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

impl Rope {
    /// `frequencies` in radians per position.
    pub fn new(inverse_frequencies: Vec<f32>) -> Self {
        let known = RopeTable { half: inverse_frequencies.len(), ..RopeTable::default() };
        Self { inverse_frequencies, known: Mutex::new(Arc::new(known)) }
    }

    /// `head_dim / 2`.
    pub fn half(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// A table of at least the first `positions` positions. It is kept: every layer of every step needs it.
    ///
    /// The angle is an f32 product, as in transformers, so that long contexts agree with it to the last bits.
    pub fn table(&self, positions: usize) -> Arc<RopeTable> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let half = self.half();
        let before = known.cos.len() / half.max(1);
        if before < positions {
            // Generation asks for one more position at a time.
            let positions = positions.max(before + before / 2);
            let angles = (before..positions).flat_map(|position| {
                self.inverse_frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency))
            });
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|angle| (angle.cos() as f32, angle.sin() as f32)).unzip();
            let grown = |old: &[f32], new: Vec<f32>| [old, &new].concat();
            *known = Arc::new(RopeTable { half, cos: grown(&known.cos, cos), sin: grown(&known.sin, sin) });
        }
        Arc::clone(&known)
    }
}
