//! Between an adapter on the host and the trainable factors on a device.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::host::HostAdapter;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::nn::{Adapter, Delta, Dora, LowRank};

impl HostAdapter {
    /// Puts the factors on `device`; on an autodiff device they are parameters.
    ///
    /// # Errors
    /// Input: a pair that does not fit the model.
    pub fn attach(&self, config: &ModelConfig, device: &Device) -> Result<Adapter> {
        self.check_against(config)?;
        let mut adapter = Adapter { deltas: Vec::new(), by_site: Vec::new() };
        for site in config.sites() {
            let pair = self.pairs.get(&site.module);
            adapter.by_site.push(pair.map(|_| adapter.deltas.len()));
            if let Some(pair) = pair {
                let tensor = |values: &[f32], rows, columns, device: &Device| {
                    Tensor::<2>::from_data(TensorData::new(values.to_vec(), [rows, columns]), device)
                };
                let parameter =
                    |values: &[f32], rows, columns| Param::from_tensor(tensor(values, rows, columns, device));
                let frozen = device.clone().inner();
                let low_rank = LowRank {
                    a: parameter(&pair.a, pair.rank, pair.input),
                    b: parameter(&pair.b, pair.output, pair.rank),
                    scale: pair.scale,
                    dropout: self.dropout as f32,
                    subtracted: pair.subtracted.as_deref().map(|[a_0, b_0]| {
                        [tensor(a_0, pair.rank, pair.input, &frozen), tensor(b_0, pair.output, pair.rank, &frozen)]
                    }),
                };
                adapter.deltas.push(match &pair.magnitude {
                    None => Delta::LowRank(low_rank),
                    Some(magnitude) => Delta::Dora(Dora::new(low_rank, parameter(magnitude, 1, pair.output))),
                });
            }
        }
        Ok(adapter)
    }

    /// This adapter with the values that `trained` holds now.
    pub fn with_values(&self, config: &ModelConfig, trained: &Adapter) -> Self {
        let trained = trained.valid();
        let mut adapter = self.clone();
        for (number, site) in config.sites().iter().enumerate() {
            let (Some(delta), Some(pair)) = (trained.at(number), adapter.pairs.get_mut(&site.module)) else { continue };
            let values = |parameter: &Param<Tensor<2>>| parameter.val().into_data().iter::<f32>().collect();
            let low_rank = match delta {
                Delta::LowRank(low_rank) => low_rank,
                Delta::Dora(dora) => {
                    pair.magnitude = Some(values(&dora.magnitude));
                    &dora.pair
                }
            };
            (pair.a, pair.b) = (values(&low_rank.a), values(&low_rank.b));
        }
        adapter
    }
}
