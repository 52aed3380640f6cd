//! Writing an adapter folder. The keys are those that every PEFT since 0.6 knows.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::mlx::transposed;
use super::{
    A_SUFFIX, B_SUFFIX, CAUSAL_LM, CONFIG_FILE, EMBEDDING_A_SUFFIX, EMBEDDING_B_SUFFIX, MAGNITUDE_SUFFIX, PREFIX,
    ROWS_SUFFIX, SEQ_CLS, WEIGHTS_FILE,
};
use crate::adapter::host::{HostAdapter, HostClassifier, HostPair, HostRows, HostTensor, SCORE, provenance};
use crate::adapter::spec::Bias;
use crate::error::{Error, Result};
use crate::files::safetensors::{self, TensorHeader};
use crate::files::{Bytes, Dtype, atomic, temporary};
use crate::model::families;
use crate::model::sites::{TRANSFORMERS_HEAD, is_named};

/// The settings that [`HostAdapter::save`] writes beside the numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SaveOptions<'a> {
    /// `target_modules`: names of the modules with pairs, by PEFT's rule ([`AdapterSpec::target_names`](crate::adapter::spec::AdapterSpec::target_names)).
    pub targets: &'a [String],
    /// `base_model_name_or_path`: a hub name where one is known.
    pub base_name: Option<&'a str>,
    /// `revision`: the hub's branch, tag or commit that the base was taken from, if it is not the default one.
    pub revision: Option<&'a str>,
    /// The scales are `alpha / sqrt(rank)`.
    pub rslora: bool,
    /// `bias`: the biases that were trained.
    pub bias: Bias,
    /// The head's path in the base's files, where transformers has another one for it.
    pub head: Option<&'a str>,
}

impl SaveOptions<'_> {
    /// The path in transformers of a module.
    fn path<'m>(&self, module: &'m str) -> &'m str {
        if self.head == Some(module) { TRANSFORMERS_HEAD } else { module }
    }
}

impl HostAdapter {
    /// Writes the two files into the folder `dir`, which is made if need be; numbers in f32. Subtracted pairs become part of pairs
    /// of twice the rank.
    ///
    /// A folder that is there holds a whole adapter at every moment, unless its configuration changes: then a crash can
    /// leave a folder that every reader refuses for want of a configuration, never the weights of one adapter under the
    /// configuration of another.
    ///
    /// # Errors
    /// Failed: a file cannot be written; a pair is not among the targets.
    pub fn save(&self, dir: &Path, options: &SaveOptions<'_>) -> Result<()> {
        let mut whole = self.without_subtraction();
        if whole.rank != self.rank {
            // The same scale at another rank.
            let growth = whole.rank as f64 / self.rank as f64;
            whole.to_mut().alpha *= if options.rslora { growth.sqrt() } else { growth };
        }
        whole.save_whole(dir, options)
    }

    /// [`save`](Self::save) of an adapter without subtracted pairs.
    fn save_whole(&self, dir: &Path, options: &SaveOptions<'_>) -> Result<()> {
        let config = self.config_json(options)?;
        temporary::make_folders(dir).map_err(|error| Error::write(dir, &error))?.keep();
        let weights = dir.join(WEIGHTS_FILE);
        let weights = atomic::prepare(&weights, |writer| self.write_weights(writer, &weights, options))?;
        atomic::publish_described(weights, &dir.join(CONFIG_FILE), config.as_bytes())
    }

    /// The content of `adapter_model.safetensors`: `lora_A` `[rank, in]` and `lora_B` `[out, rank]` of every pair (of the
    /// embedding's, both transposed under other names), with magnitudes `lora_magnitude_vector` `[out]`, in f32.
    fn write_weights(&self, writer: &mut dyn Write, path: &Path, options: &SaveOptions<'_>) -> Result<()> {
        let mut metadata = self.metadata.clone();
        metadata.insert("format".to_owned(), "pt".to_owned());
        let mut headers = Vec::with_capacity(2 * self.pairs.len());
        let mut values: BTreeMap<String, Cow<'_, [f32]>> = BTreeMap::new();
        for (module, pair) in &self.pairs {
            let HostPair { a, b, rank, input, output, magnitude, .. } = pair;
            let halves: [(_, _, Cow<'_, [f32]>); 2] = match families::is_embedding(module) {
                true => [
                    (EMBEDDING_A_SUFFIX, vec![*rank, *output], transposed(b, *output).into()),
                    (EMBEDDING_B_SUFFIX, vec![*input, *rank], transposed(a, *rank).into()),
                ],
                false => [(A_SUFFIX, vec![*rank, *input], a.into()), (B_SUFFIX, vec![*output, *rank], b.into())],
            };
            let magnitude = magnitude.as_ref().map(|values| (MAGNITUDE_SUFFIX, vec![*output], values.into()));
            for (suffix, shape, numbers) in halves.into_iter().chain(magnitude) {
                let name = format!("{PREFIX}{}{suffix}", options.path(module));
                values.insert(name.clone(), numbers);
                headers.push(TensorHeader { name, dtype: Dtype::F32, shape });
            }
        }
        for (tensor, HostTensor { shape, values: numbers }) in &self.whole {
            let (module, parameter) = tensor.rsplit_once('.').unwrap_or((tensor, "weight"));
            // PEFT wraps a module with a pair.
            let wrapped = if self.pairs.contains_key(module) { ".base_layer" } else { "" };
            let name = format!("{PREFIX}{}{wrapped}.{parameter}", options.path(module));
            values.insert(name.clone(), numbers.into());
            headers.push(TensorHeader { name, dtype: Dtype::F32, shape: shape.clone() });
        }
        if let Some(HostClassifier { labels, weight }) = &self.classifier {
            metadata.insert(provenance::LABELS.to_owned(), json!(labels).to_string());
            let name = format!("{PREFIX}{SCORE}.weight");
            values.insert(name.clone(), weight.into());
            let shape = vec![labels.len(), weight.len() / labels.len().max(1)];
            headers.push(TensorHeader { name, dtype: Dtype::F32, shape });
        }
        if let Some(HostRows { ids, values: rows }) = &self.rows {
            for (module, numbers) in rows {
                let name = format!("{PREFIX}{}{ROWS_SUFFIX}", options.path(module));
                values.insert(name.clone(), numbers.into());
                let shape = vec![ids.len(), numbers.len() / ids.len().max(1)];
                headers.push(TensorHeader { name, dtype: Dtype::F32, shape });
            }
        }
        safetensors::write_to(writer, path, &metadata, &headers, |header| {
            let numbers = values.get(&header.name).map(|numbers| &numbers[..]).unwrap_or_default();
            Ok(Bytes::from(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()))
        })
    }

    /// `adapter_config.json`, keys sorted as PEFT writes them.
    fn config_json(&self, options: &SaveOptions<'_>) -> Result<String> {
        let mut ranks = Map::new();
        let mut alphas = Map::new();
        for (module, pair) in &self.pairs {
            let path = options.path(module);
            if !options.targets.iter().any(|target| is_named(path, target)) {
                return Err(Error::failed(module, "has a pair, and is not among the targets to be saved"));
            }
            if pair.rank != self.rank {
                ranks.insert(path.to_owned(), json!(pair.rank));
            }
            let root = if options.rslora { (pair.rank as f64).sqrt() } else { pair.rank as f64 };
            if pair.scale != (self.alpha / root) as f32 {
                alphas.insert(path.to_owned(), number(f64::from(pair.scale) * root));
            }
        }
        let weights = self.whole.keys().filter_map(|name| name.strip_suffix(".weight"));
        let score = self.classifier.iter().map(|_| SCORE);
        let saved: Vec<&str> = weights.map(|module| options.path(module)).chain(score).collect();
        let mut config = json!({
            "alpha_pattern": alphas,
            "base_model_name_or_path": options.base_name,
            "bias": options.bias.name(),
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": (!saved.is_empty()).then_some(saved),
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": ranks,
            "revision": options.revision,
            "target_modules": options.targets,
            "task_type": if self.classifier.is_some() { SEQ_CLS } else { CAUSAL_LM },
        });
        if let Some(HostRows { ids, values }) = &self.rows {
            let ids = values.keys().map(|module| (options.path(module).to_owned(), json!(ids)));
            config["trainable_token_indices"] = Value::Object(ids.collect());
        }
        if options.rslora {
            // Older PEFT does not know the key, so it stands only where it is needed.
            config["use_rslora"] = json!(true);
        }
        let with_magnitudes = self.pairs.values().filter(|pair| pair.magnitude.is_some()).count();
        if with_magnitudes > 0 {
            if let Some((module, _)) = self.pairs.iter().find(|(_, pair)| pair.magnitude.is_none()) {
                return Err(Error::failed(
                    module,
                    "has no magnitude, and other pairs have: PEFT knows only all or none",
                ));
            }
            config["use_dora"] = json!(true);
        }
        Ok(format!("{config:#}\n"))
    }
}

/// A whole number where it is one: PEFT's `lora_alpha` is an integer by convention.
fn number(value: f64) -> Value {
    const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT_INTEGERS { json!(value as i64) } else { json!(value) }
}
