//! An adapter in mlx-lm's own format: `adapters.safetensors` and `adapter_config.json`.
//!
//! The format has one rank and one scale for all modules (`tuner/utils.py`, `linear_to_lora_layers`). A pair of a smaller rank is filled
//! up with zeros, and a scale that is another one is multiplied into `B`: the update is the same. `keys` are paths within a layer,
//! taken in the last `num_layers` layers, or whole paths.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::json;

use super::lora::{check_language_model_alone, has_head_tensor, refuse_whole};
use super::model::ExportReport;
use crate::adapter::host::{HostAdapter, HostPair};
use crate::adapter::peft::{
    CONFIG_FILE, MLX_A_SUFFIX, MLX_B_SUFFIX, MLX_MAGNITUDE_SUFFIX, MLX_WEIGHTS_FILE, transposed,
};
use crate::error::{Error, Place, Result};
use crate::files::safetensors::{self, TensorHeader};
use crate::files::staging::Staging;
use crate::files::{Bytes, Dtype, atomic};
use crate::model::{ModelConfig, SiteKind, families};
use crate::quant::float;

/// Writes `adapter`, for a base of this configuration that is known as `base_name`, to the folder `out`, reads it again and compares.
///
/// # Errors
/// Input: `out` exists, a module that mlx-lm does not have. Failed: a full disk, a folder that reads back as something else. After
/// any of them nothing is there.
pub fn write_mlx(config: &ModelConfig, adapter: &HostAdapter, base_name: &str, out: &Path) -> Result<ExportReport> {
    Staging::check_free(out)?;
    let adapter = &*adapter.without_subtraction();
    let pairs = pairs(config, adapter)?;
    let has_magnitudes = pairs.values().any(|pair| pair.magnitude.is_some());
    let rank = pairs.values().map(|pair| pair.rank).max().unwrap_or_default();
    let scale = pairs.values().next().map_or(1.0, |pair| pair.scale);
    let (keys, layers) = keys(config, adapter);
    let settings = json!({
        "fine_tune_type": if has_magnitudes { "dora" } else { "lora" },
        "lora_parameters": { "dropout": adapter.dropout, "keys": keys, "rank": rank, "scale": scale },
        "model": base_name,
        "num_layers": layers,
    });
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for (module, pair) in &pairs {
        let (input, output) = (pair.input, pair.output);
        let (a, b) = match families::is_embedding(module) {
            true => ((vec![output, rank], pair.b.clone()), (vec![rank, input], pair.a.clone())),
            false => {
                ((vec![input, rank], transposed(&pair.a, rank)), (vec![rank, output], transposed(&pair.b, output)))
            }
        };
        tensors.insert(format!("{module}{MLX_A_SUFFIX}"), a);
        tensors.insert(format!("{module}{MLX_B_SUFFIX}"), b);
        if let Some(magnitude) = &pair.magnitude {
            tensors.insert(format!("{module}{MLX_MAGNITUDE_SUFFIX}"), (vec![output], magnitude.clone()));
        }
    }
    let headers: Vec<TensorHeader> = tensors
        .iter()
        .map(|(name, (shape, _))| TensorHeader { name: name.clone(), dtype: Dtype::F32, shape: shape.clone() })
        .collect();
    let mut metadata = adapter.metadata.clone();
    metadata.insert("format".to_owned(), "mlx".to_owned());
    let staging = Staging::beside(out)?;
    safetensors::write(&staging.path().join(MLX_WEIGHTS_FILE), &metadata, &headers, |header| {
        let values = tensors.get(&header.name).map(|(_, values)| values.as_slice()).unwrap_or_default();
        Ok(Bytes::from(float::encode_f32(values)))
    })?;
    atomic::write_bytes(&staging.path().join(CONFIG_FILE), format!("{settings:#}\n").as_bytes())?;
    let found = HostAdapter::load(staging.path())?;
    if found.pairs != pairs || found.metadata != adapter.metadata {
        return Err(
            Error::failed(out.display(), "reads back as another adapter").hint("nothing was kept; is the disk sound?")
        );
    }
    staging.publish(out)?;
    Ok(ExportReport {
        files: vec![MLX_WEIGHTS_FILE.to_owned(), CONFIG_FILE.to_owned()],
        tensors: headers.len(),
        formats: BTreeMap::from([(Dtype::F32.name(), headers.len())]),
        bytes: tensors.values().map(|(_, values)| 4 * values.len() as u64).sum(),
        modules: pairs.len(),
        ..ExportReport::default()
    })
}

/// Whether the adapter changes projections of a feed-forward network that mlx-lm cuts apart (`models/granitemoehybrid.py`,
/// `sanitize`).
pub(super) fn splits_feed_forward(config: &ModelConfig, adapter: &HostAdapter) -> bool {
    config.family.model_type == "granitemoehybrid"
        && config.sites().iter().any(|site| site.kind == SiteKind::Mlp && adapter.pairs.contains_key(&site.module))
}

/// The pairs under mlx-lm's paths, all of one rank and one scale.
fn pairs(config: &ModelConfig, adapter: &HostAdapter) -> Result<BTreeMap<String, HostPair>> {
    check_language_model_alone(config, adapter)?;
    let rank = adapter.pairs.values().map(|pair| pair.rank).max().unwrap_or_default();
    let scale = common_scale(adapter);
    let has_head = !config.tied_head && has_head_tensor(config);
    let mut errors = Vec::from_iter(refuse_whole(adapter, "mlx-lm reads low-rank pairs only"));
    let mut pairs = BTreeMap::new();
    for (module, pair) in &adapter.pairs {
        let place = Place::tensor("adapter", module);
        if module == config.names.head && !has_head {
            let message = "shares the embedding's matrix: mlx-lm has no module for the change of the head alone";
            errors.push(Error::input(place, message).hint("`burnish merge` gives the head a matrix of its own"));
            continue;
        }
        if module == config.names.embedding && config.tied_head {
            let message = "shares its matrix with the head: mlx-lm would change both";
            errors.push(Error::input(place, message).hint("`burnish merge` gives the head a matrix of its own"));
            continue;
        }
        pairs.insert(mlx_path(config, module), widened(pair, rank, scale));
    }
    if splits_feed_forward(config, adapter) {
        let message = "changes the feed-forward network, whose fused projections mlx-lm cuts apart";
        errors.push(Error::input("adapter", message).hint("merge it, and convert the merged folder with mlx-lm"));
    }
    Error::none_of(errors, pairs)
}

/// The scale that the most pairs have; never 0.
fn common_scale(adapter: &HostAdapter) -> f32 {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for pair in adapter.pairs.values() {
        *counts.entry(pair.scale.to_bits()).or_insert(0) += 1;
    }
    let common = counts.into_iter().max_by_key(|(_, count)| *count).map(|(bits, _)| f32::from_bits(bits));
    common.filter(|scale| *scale != 0.0).unwrap_or(1.0)
}

/// The same update with this rank, which is no smaller, and this scale.
fn widened(pair: &HostPair, rank: usize, scale: f32) -> HostPair {
    let mut a = pair.a.clone();
    a.resize(rank * pair.input, 0.0);
    let factor = f64::from(pair.scale) / f64::from(scale);
    let mut b = Vec::with_capacity(pair.output * rank);
    for row in pair.b.chunks_exact(pair.rank.max(1)) {
        b.extend(row.iter().map(|value| if factor == 1.0 { *value } else { (f64::from(*value) * factor) as f32 }));
        b.resize(b.len() + rank - pair.rank, 0.0);
    }
    HostPair { a, b, rank, scale, ..pair.clone() }
}

/// The path of a module in mlx-lm.
fn mlx_path(config: &ModelConfig, module: &str) -> String {
    let within = config.stored_prefixes().filter(|_| config.is_part());
    let mut prefixes = config.family.mlx_prefixes.iter().chain(within);
    let found = prefixes.find_map(|(mlx, usual)| Some(format!("{mlx}{}", module.strip_prefix(usual)?)));
    found.unwrap_or_else(|| module.to_owned())
}

/// `keys` and `num_layers`. Where the last layers have the same modules changed, the keys are paths within a layer, as users of mlx-lm
/// write them; else they are whole paths, which are taken whatever the number of layers is.
fn keys(config: &ModelConfig, adapter: &HostAdapter) -> (Vec<String>, usize) {
    let mut by_layer: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    let mut outer = Vec::new();
    for site in config.sites().iter().filter(|site| adapter.pairs.contains_key(&site.module)) {
        match site.layer {
            Some(layer) => {
                let start = format!("{}.{layer}.", config.names.layers);
                let within = site.module.strip_prefix(&start).unwrap_or(&site.module);
                by_layer.entry(layer).or_default().insert(within.to_owned());
            }
            None => outer.push(mlx_path(config, &site.module)),
        }
    }
    let count = by_layer.len();
    let is_last = by_layer.keys().copied().eq(config.layers - count..config.layers);
    let mut alike = by_layer.values().collect::<BTreeSet<_>>().into_iter();
    match (alike.next(), alike.next()) {
        (Some(keys), None) if is_last => (keys.iter().cloned().chain(outer).collect(), count),
        _ => (adapter.pairs.keys().map(|module| mlx_path(config, module)).collect(), config.layers),
    }
}
