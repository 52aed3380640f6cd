//! An adapter as GGUF-LoRA, which llama.cpp adds to its own file of the base.
//!
//! The file has one `alpha`; llama.cpp multiplies `B · A` by `alpha / rank`, where the rank is that of each pair
//! (`src/llama-adapter.h`, `get_scale`). A scale that is another one (a pattern) is multiplied into `B`. The rows of `B` are
//! rows of the weight, so they stand in the same order.

use std::collections::BTreeMap;
use std::path::Path;

use super::check;
use super::model::ExportReport;
use super::types::GgufType;
use crate::adapter::host::{HostAdapter, HostPair};
use crate::adapter::peft::transposed;
use crate::error::{Error, Place, Result};
use crate::files::Dtype;
use crate::files::gguf::write::write;
use crate::files::gguf::{TensorInfo, Value};
use crate::files::staging::Staging;
use crate::model::ModelConfig;
use crate::model::config::GgufHead;
use crate::model::spec::{GgufRows, LinearSpec};
use crate::nn::block::Part;
use crate::quant::float;

/// A tensor of the file with its values.
struct Factor {
    info: TensorInfo,
    values: Vec<f32>,
}

/// Writes `adapter` for a base of this configuration to `out`, reads it again and compares; `name` is its name in the file.
///
/// # Errors
/// Input: `out` exists, a pair that llama.cpp has no tensor for. Failed: a full disk, a file that reads back as something
/// else. After any of them nothing is there.
pub fn write_lora(config: &ModelConfig, adapter: &HostAdapter, name: &str, out: &Path) -> Result<ExportReport> {
    Staging::check_free(out)?;
    let adapter = &*adapter.without_subtraction();
    let alpha = common_alpha(adapter);
    let mut factors = factors(config, adapter, alpha)?;
    let infos: Vec<TensorInfo> = factors.iter().map(|factor| factor.info.clone()).collect();
    let text = |text: &str| Value::String(text.to_owned());
    let metadata = [
        ("general.architecture", text(config.family.gguf)),
        ("general.type", text("adapter")),
        ("general.name", text(name)),
        ("general.file_type", Value::U32(GgufType::F32.file_type())),
        ("adapter.type", text("lora")),
        ("adapter.lora.alpha", Value::F32(alpha as f32)),
    ];
    let metadata = metadata.map(|(key, value)| (key.to_owned(), value));
    let staging = Staging::beside(out)?;
    let file_name = out.file_name().unwrap_or_default();
    let path = staging.path().join(file_name);
    let mut next = factors.iter_mut();
    let digests = write(&path, &metadata, &infos, |info, writer| match next.next() {
        Some(factor) => writer.write(&float::encode_f32(&std::mem::take(&mut factor.values))),
        None => Err(Error::failed(&info.name, "was not planned")),
    })?;
    check::reads_back(&path, &metadata, &infos, &digests)?;
    staging.publish_files(&[out.to_owned()])?;
    Ok(ExportReport {
        files: vec![file_name.to_string_lossy().into_owned()],
        tensors: infos.len(),
        formats: BTreeMap::from([(Dtype::F32.name(), infos.len())]),
        bytes: infos.iter().map(TensorInfo::bytes).sum::<Result<u64>>()?,
        modules: adapter.pairs.len(),
        ..ExportReport::default()
    })
}

/// The numerator that the most pairs have: `scale · rank`. Never 0, by which llama.cpp means that there is none.
fn common_alpha(adapter: &HostAdapter) -> f64 {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for pair in adapter.pairs.values() {
        *counts.entry(alpha_of(pair).to_bits()).or_insert(0) += 1;
    }
    let common = counts.into_iter().max_by_key(|(_, count)| *count).map(|(bits, _)| f64::from_bits(bits));
    common.filter(|alpha| *alpha != 0.0 && alpha.is_finite()).unwrap_or(1.0)
}

fn alpha_of(pair: &HostPair) -> f64 {
    // A scale is alpha / rank or alpha / sqrt(rank) rounded to f32: without that rounding pairs of one alpha agree.
    let alpha = f64::from(pair.scale) * pair.rank as f64;
    f64::from(alpha as f32)
}

/// Both factors of every pair, under llama.cpp's names.
fn factors(config: &ModelConfig, adapter: &HostAdapter, alpha: f64) -> Result<Vec<Factor>> {
    let mut linears: BTreeMap<String, LinearSpec> = BTreeMap::new();
    for layer in 0..config.layers {
        for part in config.block(layer).parts() {
            if let Part::Attention(linear) | Part::Mlp(linear) = part {
                linears.insert(linear.module.clone(), linear.clone());
            }
        }
    }
    let head = config.head();
    let head_module = head.module.clone();
    linears.insert(head_module.clone(), head);
    check_language_model_alone(config, adapter)?;
    let mut factors = Vec::new();
    let mut errors = Vec::from_iter(refuse_whole(adapter, "llama.cpp adds low-rank pairs only"));
    for (module, pair) in &adapter.pairs {
        if module == config.names.embedding {
            match config.tied_head {
                true => {
                    let message = "shares its matrix with the head: llama.cpp would change both";
                    errors.push(
                        Error::input(Place::tensor("adapter", module), message)
                            .hint("`merge --format gguf` gives the head a matrix of its own"),
                    );
                }
                false => factors.extend(embedding_factors(pair, alpha_of(pair) / alpha)),
            }
            continue;
        }
        let Some(linear) = linears.get(module) else {
            errors.push(Error::failed(module, "is no module of the base"));
            continue;
        };
        if pair.magnitude.is_some() {
            let message = "has DoRA's magnitudes: llama.cpp has no tensor for them";
            errors.push(
                Error::input(Place::tensor("adapter", module), message)
                    .hint("`merge --format gguf` has them in its weights"),
            );
            continue;
        }
        if *module == head_module && !has_head_tensor(config) {
            let message = "shares the embedding's matrix: llama.cpp has no tensor for the change of the head alone";
            errors.push(
                Error::input(Place::tensor("adapter", module), message)
                    .hint("`merge --format gguf` gives the head a matrix of its own"),
            );
            continue;
        }
        factors.extend(pair_factors(linear, pair, alpha_of(pair) / alpha)?);
    }
    Error::none_of(errors, factors)
}

/// Checks that the adapter changes the language model alone, which is all that these files hold.
///
/// # Errors
/// Input: it changes the tower or the connector.
pub(super) fn check_language_model_alone(config: &ModelConfig, adapter: &HostAdapter) -> Result<()> {
    let Some(name) = adapter.of_vision(config).next() else { return Ok(()) };
    let message = "changes the tower or the connector, and the file would hold the language model alone";
    Err(Error::input(Place::tensor("adapter", name), message).hint("`burnish merge` puts it into the whole model"))
}

/// The error for tensors that are trained as wholes, for rows of tokens, and for heads of labels.
pub(super) fn refuse_whole(adapter: &HostAdapter, reason: &str) -> Option<Error> {
    if let Err(error) = adapter.check_gives_text("adapter") {
        return Some(error);
    }
    let rows = adapter.rows.iter().flat_map(|rows| rows.values.keys());
    let name = adapter.whole.keys().chain(rows).next()?;
    let message = format!("is trained in part or as a whole: {reason}");
    let error = Error::input(Place::tensor("adapter", name), message);
    Some(error.hint("`burnish merge` puts it into the model"))
}

/// The factors of the embedding, which llama.cpp has transposed (`src/llama-adapter.cpp`, `token_embd`): `[tokens, rank]` and
/// `[width, rank]`.
fn embedding_factors(pair: &HostPair, factor: f64) -> [Factor; 2] {
    let info = |half: &str, shape| TensorInfo { name: format!("token_embd.weight.{half}"), dtype: Dtype::F32, shape };
    let b = transposed(&pair.a, pair.rank).into_iter().map(|value| (f64::from(value) * factor) as f32).collect();
    [
        Factor { info: info("lora_a", vec![pair.output, pair.rank]), values: pair.b.clone() },
        Factor { info: info("lora_b", vec![pair.input, pair.rank]), values: b },
    ]
}

/// Whether llama.cpp's file of the base has a tensor of the head.
pub(super) fn has_head_tensor(config: &ModelConfig) -> bool {
    match config.family.gguf_head {
        GgufHead::Never => false,
        GgufHead::Always => true,
        GgufHead::WhereUntied => !config.tied_head,
    }
}

fn pair_factors(linear: &LinearSpec, pair: &HostPair, factor: f64) -> Result<Vec<Factor>> {
    let order = linear.gguf_rows.order(linear.rows).ok_or_else(|| {
        Error::failed(&linear.module, format!("its {} rows do not divide into the heads", linear.rows))
    })?;
    let parts = match linear.gguf_rows {
        GgufRows::GateApart => {
            let half = linear.rows / 2;
            vec![(linear.gguf.replace("ffn_up", "ffn_gate"), 0..half), (linear.gguf.clone(), half..linear.rows)]
        }
        _ => vec![(linear.gguf.clone(), 0..linear.rows)],
    };
    let mut factors = Vec::new();
    for (name, range) in parts {
        let rows = order.get(range).unwrap_or_default();
        let b_rows = rows.iter().flat_map(|row| pair.b.iter().skip(row * pair.rank).take(pair.rank));
        let b: Vec<f32> = match factor {
            1.0 => b_rows.copied().collect(),
            _ => b_rows.map(|value| (f64::from(*value) * factor) as f32).collect(),
        };
        let info = |half: &str, shape| TensorInfo { name: format!("{name}.weight.{half}"), dtype: Dtype::F32, shape };
        factors.push(Factor { info: info("lora_a", vec![pair.rank, pair.input]), values: pair.a.clone() });
        factors.push(Factor { info: info("lora_b", vec![rows.len(), pair.rank]), values: b });
    }
    Ok(factors)
}
