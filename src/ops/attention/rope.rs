//! Rotary position embedding (Su et al. 2021) in the half-split form that Hugging Face checkpoints use.

/// Inverse frequencies, `head_dim / 2` of them, scaled as the model says.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    inverse_frequencies: Vec<f32>,
}

impl Rope {
    /// `frequencies` in radians per position.
    pub fn new(inverse_frequencies: Vec<f32>) -> Self {
        Self { inverse_frequencies }
    }

    /// `head_dim / 2`.
    pub fn half(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// Cosines and sines of positions `first..first + count`, each `[count, head_dim / 2]`.
    ///
    /// The angle is an f32 product, as in transformers, so that long contexts agree with it to the last bits.
    pub fn table(&self, first: usize, count: usize) -> (Vec<f32>, Vec<f32>) {
        let angles = (first..first + count)
            .flat_map(|position| self.inverse_frequencies.iter().map(move |frequency| position as f32 * frequency));
        angles.map(|angle| (f64::from(angle).cos() as f32, f64::from(angle).sin() as f32)).unzip()
    }
}
