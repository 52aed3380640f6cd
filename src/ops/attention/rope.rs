//! Rotary position embedding (Su et al. 2021, "RoFormer") in the half-split form that Hugging Face checkpoints use.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Device, Tensor, TensorData};

/// The rotation of queries and keys by their positions: frequencies, and a factor on cosines and sines.
///
/// Of each head the first `2 · half` values are rotated, value `i` with value `half + i`; the others stay as they are.
#[derive(Debug)]
pub struct Rope {
    frequencies: Frequencies,
    long: Option<LongContext>,
    attention_factor: f32,
}

/// The frequencies of sequences that are longer than the context that the model was trained on first.
#[derive(Debug)]
struct LongContext {
    original_positions: usize,
    frequencies: Frequencies,
}

/// Inverse frequencies with the cosines and sines computed so far.
#[derive(Debug)]
struct Frequencies {
    inverse: Vec<f32>,
    known: Mutex<Arc<RopeTable>>,
    /// A copy of what was known, on the device that asked last.
    on_device: Mutex<Option<DeviceTable>>,
}

/// [`RopeTable`] as tensors `[positions, half]`.
#[derive(Debug, Clone)]
pub struct DeviceTable {
    device: Device,
    /// Cosines, times the attention factor.
    pub cos: Tensor<2>,
    /// Sines, times the attention factor.
    pub sin: Tensor<2>,
}

/// Cosines and sines of the positions from 0 on, `[positions, half]` each.
#[derive(Debug, Default)]
pub struct RopeTable {
    half: usize,
    /// Cosines, times the attention factor.
    pub cos: Vec<f32>,
    /// Sines, times the attention factor.
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
    /// A rotation by `inverse_frequencies`, in radians per position; two values of each head for each of them.
    pub fn new(inverse_frequencies: Vec<f32>) -> Self {
        Self { frequencies: Frequencies::new(inverse_frequencies), long: None, attention_factor: 1.0 }
    }

    /// Multiplies cosines and sines (`attention_factor` of transformers' `modeling_rope_utils.py`).
    pub fn with_attention_factor(mut self, factor: f32) -> Self {
        self.attention_factor = factor;
        self
    }

    /// Other frequencies for sequences longer than `original_positions` (LongRoPE, Ding et al. 2024).
    ///
    /// The length of a sequence decides for all of its positions, as in transformers: `seq_len >
    /// original_max_position_embeddings`. While a sequence grows in a cache, transformers computes it anew when it
    /// crosses that line. A [`Cache`](super::Cache) has keys but not the states that they came from, so its keys are
    /// rotated back and then with the new frequencies, which is exact for the first layer; in the layers above, keys
    /// and values of earlier tokens still come from states that attended with the old frequencies. Where
    /// [`Rope::switches`] says so, a caller that wants the result of transformers feeds the whole sequence to fresh
    /// caches.
    ///
    /// # Panics
    /// If there are not as many frequencies as for short sequences.
    pub fn with_long_context(mut self, original_positions: usize, inverse_frequencies: Vec<f32>) -> Self {
        assert_eq!(inverse_frequencies.len(), self.half(), "as many long as short frequencies");
        self.long = Some(LongContext { original_positions, frequencies: Frequencies::new(inverse_frequencies) });
        self
    }

    /// Rotated pairs of values in each head.
    pub fn half(&self) -> usize {
        self.frequencies.inverse.len()
    }

    /// The factor on cosines and sines.
    pub fn attention_factor(&self) -> f32 {
        self.attention_factor
    }

    /// Whether a sequence that grows from `before` to `after` tokens crosses from one set of frequencies to the other.
    pub fn switches(&self, before: usize, after: usize) -> bool {
        before > 0 && self.is_long(before) != self.is_long(after)
    }

    /// The longest sequence that is rotated with the frequencies of short ones.
    pub fn long_above(&self) -> usize {
        self.long.as_ref().map_or(usize::MAX, |long| long.original_positions)
    }

    fn is_long(&self, length: usize) -> bool {
        length > self.long_above()
    }

    /// The table for a sequence of `length` tokens, with at least its positions. It is kept: every layer of every step
    /// needs it.
    ///
    /// The angle is an f32 product, as in transformers, so that long contexts agree with it to the last bits.
    pub fn table(&self, length: usize) -> Arc<RopeTable> {
        self.frequencies_of(length).table(length, self.attention_factor)
    }

    /// [`Rope::table`] on a device, without autodiff. It stays there: it is copied again only when it has grown.
    pub fn device_table(&self, length: usize, device: &Device) -> DeviceTable {
        self.frequencies_of(length).device_table(length, self.attention_factor, device)
    }

    fn frequencies_of(&self, length: usize) -> &Frequencies {
        let long = self.long.as_ref().filter(|_| self.is_long(length));
        long.map_or(&self.frequencies, |long| &long.frequencies)
    }
}

impl Frequencies {
    fn new(inverse: Vec<f32>) -> Self {
        let known = RopeTable { half: inverse.len(), ..RopeTable::default() };
        Self { inverse, known: Mutex::new(Arc::new(known)), on_device: Mutex::new(None) }
    }

    fn table(&self, positions: usize, factor: f32) -> Arc<RopeTable> {
        let mut known = lock(&self.known);
        let half = self.inverse.len();
        let before = known.cos.len() / half.max(1);
        if before < positions {
            // Generation asks for one more position at a time.
            let positions = positions.max(before + before / 2);
            let angles = (before..positions)
                .flat_map(|position| self.inverse.iter().map(move |frequency| f64::from(position as f32 * frequency)));
            let (cos, sin): (Vec<f32>, Vec<f32>) =
                angles.map(|angle| (angle.cos() as f32 * factor, angle.sin() as f32 * factor)).unzip();
            let grown = |old: &[f32], new: Vec<f32>| [old, &new].concat();
            *known = Arc::new(RopeTable { half, cos: grown(&known.cos, cos), sin: grown(&known.sin, sin) });
        }
        Arc::clone(&known)
    }

    fn device_table(&self, positions: usize, factor: f32, device: &Device) -> DeviceTable {
        let device = device.clone().inner();
        let mut on_device = lock(&self.on_device);
        match &*on_device {
            Some(table) if table.device == device && table.cos.dims()[0] >= positions => table.clone(),
            _ => {
                let host = self.table(positions, factor);
                let half = self.inverse.len();
                let tensor = |values: &[f32]| {
                    Tensor::from_data(TensorData::new(values.to_vec(), [values.len() / half, half]), &device)
                };
                let table = DeviceTable { cos: tensor(&host.cos), sin: tensor(&host.sin), device: device.clone() };
                on_device.insert(table).clone()
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
