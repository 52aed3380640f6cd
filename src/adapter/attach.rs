//! Between an adapter on the host and the trainable factors on a device.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::host::{HostAdapter, HostPair, HostRows, HostTensor};
use super::spec::{AdaptedSite, AdapterSpec};
use crate::error::Result;
use crate::model::sites::WholeTensor;
use crate::model::{ModelConfig, SiteKind};
use crate::nn::{Adapter, Delta, LowRank, Rows};

impl AdapterSpec {
    /// A fresh adapter with PEFT's default initialisation: `A` uniform within `±1/sqrt(in)` (Kaiming with
    /// `a = sqrt 5`), or of a standard normal distribution for the embedding; `B` zero.
    ///
    /// # Errors
    /// Those of [`Self::adapted`].
    pub fn initialise(&self, config: &ModelConfig, seed: u64) -> Result<HostAdapter> {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let mut adapter =
            HostAdapter { rank: self.rank, alpha: self.alpha, dropout: self.dropout, ..HostAdapter::default() };
        for AdaptedSite { site, rank, scale } in self.adapted(config)? {
            let (output, input) = (site.rows, site.columns);
            let a = match site.kind {
                SiteKind::Embedding => (0..rank * input).map(|_| normal(&mut generator)).collect(),
                SiteKind::Attention | SiteKind::Mlp | SiteKind::Head => {
                    let bound = 1.0 / (input as f32).sqrt();
                    (0..rank * input).map(|_| uniform(&mut generator, bound)).collect()
                }
            };
            let b = vec![0.0; output * rank];
            let pair = HostPair { a, b, rank, input, output, scale: scale as f32 };
            adapter.pairs.insert(site.module, pair);
        }
        Ok(adapter)
    }
}

/// A value from `[-bound, bound)`: a multiple of `2⁻²²·bound`, from the upper 23 bits of the next 32.
///
/// The generator and this are all that decides an adapter's first values, so that a seed gives the same ones on every machine
/// and in every version.
fn uniform(generator: &mut ChaCha8Rng, bound: f32) -> f32 {
    /// 2⁻²³.
    const UNIT: f32 = 1.0 / (1 << 23) as f32;
    (generator.next_u32() >> 9) as f32 * UNIT * (2.0 * bound) - bound
}

/// A value of the standard normal distribution (Box and Muller 1958, from two uniform values).
fn normal(generator: &mut ChaCha8Rng) -> f32 {
    /// 2⁻³³ and 2⁻³²: the first value is never 0.
    const HALF: f64 = 0.5 / (1u64 << 32) as f64;
    const UNIT: f64 = 1.0 / (1u64 << 32) as f64;
    let radius = (-2.0 * (f64::from(generator.next_u32()) * UNIT + HALF).ln()).sqrt();
    let angle = std::f64::consts::TAU * f64::from(generator.next_u32()) * UNIT;
    (radius * angle.cos()) as f32
}

impl HostAdapter {
    /// Puts the factors on `device`; on an autodiff device they are parameters.
    ///
    /// # Errors
    /// Input: a pair that does not fit the model.
    pub fn attach(&self, config: &ModelConfig, device: &Device) -> Result<Adapter> {
        self.check_against(config)?;
        let mut adapter = Adapter::default();
        let tensor = |values: &[f32], rows, columns| {
            let data = TensorData::new(values.to_vec(), [rows, columns]);
            Param::from_tensor(Tensor::<2>::from_data(data, device))
        };
        for site in config.sites() {
            let pair = self.pairs.get(&site.module);
            adapter.by_site.push(pair.map(|_| adapter.deltas.len()));
            if let Some(pair) = pair {
                adapter.deltas.push(Delta::LowRank(LowRank {
                    a: tensor(&pair.a, pair.rank, pair.input),
                    b: tensor(&pair.b, pair.output, pair.rank),
                    scale: pair.scale,
                    dropout: self.dropout as f32,
                }));
            }
        }
        if let Some(HostRows { ids, values }) = &self.rows {
            let selection = Rows::selection(ids, config.vocab_size, device);
            for (module, values) in values {
                for (site, delta) in config.sites().iter().zip(&mut adapter.by_site) {
                    // A tied head has the rows of the embedding.
                    let is_tied = config.tied_head && site.kind == SiteKind::Head && module == config.names.embedding;
                    if is_tied || site.module == *module {
                        *delta = Some(adapter.deltas.len());
                    }
                }
                adapter.deltas.push(Delta::Rows(Rows {
                    values: tensor(values, ids.len(), config.hidden_size),
                    ids: ids.clone(),
                    selection: selection.clone(),
                }));
            }
        }
        let known = config.whole_tensors();
        for (name, HostTensor { shape, values }) in &self.whole {
            let Some(WholeTensor { module, is_bias, .. }) = known.get(name) else { continue };
            let by_module = if *is_bias { &mut adapter.biases } else { &mut adapter.weights };
            by_module.insert(*module, adapter.whole.len());
            let columns = shape.last().copied().unwrap_or(1);
            adapter.whole.push(tensor(values, values.len() / columns.max(1), columns));
        }
        Ok(adapter)
    }

    /// This adapter with the values that `trained` holds now.
    pub fn with_values(&self, config: &ModelConfig, trained: &Adapter) -> Self {
        let trained = trained.valid();
        let mut adapter = self.clone();
        for (number, site) in config.sites().iter().enumerate() {
            match trained.at(number) {
                Some(Delta::LowRank(low_rank)) => {
                    if let Some(pair) = adapter.pairs.get_mut(&site.module) {
                        (pair.a, pair.b) = (values_of(&low_rank.a), values_of(&low_rank.b));
                    }
                }
                Some(Delta::Rows(rows)) => {
                    let own = adapter.rows.as_mut().and_then(|own| own.values.get_mut(&site.module));
                    if let Some(own) = own {
                        *own = values_of(&rows.values);
                    }
                }
                None => {}
            }
        }
        // In the order in which `attach` made them.
        for (tensor, matrix) in adapter.whole.values_mut().zip(&trained.whole) {
            tensor.values = values_of(matrix);
        }
        adapter
    }
}

/// The values of a matrix on the host.
fn values_of(matrix: &Param<Tensor<2>>) -> Vec<f32> {
    matrix.val().into_data().iter::<f32>().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_values_for_good() {
        // What `random_range(-bound..bound)` of rand 0.10 gave, with which adapters began before.
        for (seed, bound, expected) in [
            (0, 0.125, [0x3d1e_68e8, 0x3d56_17d8, 0x3d6b_6300, 0xbc0b_95c0]),
            (1, 0.0416, [0x3b86_9e98, 0xbc04_ed38, 0x3d25_24fd, 0xbd0e_fff8]),
            (42, 1.0, [0xbf0d_454cu32, 0x3eba_42f8, 0xbf35_0ce0, 0x3f66_8a7c]),
        ] {
            let mut generator = ChaCha8Rng::seed_from_u64(seed);
            assert_eq!([(); 4].map(|()| uniform(&mut generator, bound).to_bits()), expected, "{seed}");
        }
    }
}
