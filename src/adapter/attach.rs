//! Between an adapter on the host and the trainable factors on a device.

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor, TensorData};

use super::host::{HostAdapter, HostClassifier, HostRows, HostTensor};
use crate::error::Result;
use crate::model::sites::WholeTensor;
use crate::model::{ModelConfig, SiteKind};
use crate::nn::{Adapter, Delta, Dora, LowRank, Rows};

impl HostAdapter {
    /// Puts the factors on `device`; on an autodiff device they are parameters.
    ///
    /// # Errors
    /// Input: a pair that does not fit the model.
    pub fn attach(&self, config: &ModelConfig, device: &Device) -> Result<Adapter> {
        self.check_against(config)?;
        let mut adapter = Adapter::default();
        let tensor = |values: &[f32], rows, columns, device: &Device| {
            Tensor::<2>::from_data(TensorData::new(values.to_vec(), [rows, columns]), device)
        };
        let parameter = |values: &[f32], rows, columns| Param::from_tensor(tensor(values, rows, columns, device));
        let frozen = device.clone().inner();
        adapter.by_site = vec![None; config.modules().len()];
        for (number, site) in config.all_sites() {
            if let Some(pair) = self.pairs.get(&site.module) {
                adapter.by_site[number] = Some(adapter.deltas.len());
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
                    values: parameter(values, ids.len(), config.hidden_size),
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
            // A vector is one row; all dimensions of a convolution but the first are its columns.
            let rows = if let [rows, _, ..] = **shape { rows } else { 1 };
            adapter.whole.push(parameter(values, rows, values.len() / rows.max(1)));
        }
        adapter.score = self.classifier.as_ref().map(|HostClassifier { labels, weight }| {
            parameter(weight, labels.len(), weight.len() / labels.len().max(1))
        });
        Ok(adapter)
    }

    /// This adapter with the values that `trained` holds now.
    pub fn with_values(&self, config: &ModelConfig, trained: &Adapter) -> Self {
        let trained = trained.valid();
        let mut adapter = self.clone();
        for (number, site) in config.all_sites() {
            let Some(delta) = trained.at(number) else { continue };
            let (low_rank, magnitude) = match delta {
                Delta::LowRank(low_rank) => (low_rank, None),
                Delta::Dora(dora) => (&dora.pair, Some(values_of(&dora.magnitude))),
                Delta::Rows(rows) => {
                    let own = adapter.rows.as_mut().and_then(|own| own.values.get_mut(&site.module));
                    if let Some(own) = own {
                        *own = values_of(&rows.values);
                    }
                    continue;
                }
            };
            let Some(pair) = adapter.pairs.get_mut(&site.module) else { continue };
            (pair.a, pair.b) = (values_of(&low_rank.a), values_of(&low_rank.b));
            pair.magnitude = magnitude;
        }
        // In the order in which `attach` made them.
        for (tensor, matrix) in adapter.whole.values_mut().zip(&trained.whole) {
            tensor.values = values_of(matrix);
        }
        if let (Some(classifier), Some(score)) = (&mut adapter.classifier, &trained.score) {
            classifier.weight = values_of(score);
        }
        adapter
    }
}

/// The values of a matrix on the host.
fn values_of(matrix: &Param<Tensor<2>>) -> Vec<f32> {
    matrix.val().into_data().iter::<f32>().collect()
}
