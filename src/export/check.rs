//! Checks of an export: before it is written, that the file would open as the same model with the same tokenizer; after it,
//! that every byte is there.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::model::{Content, ModelPlan};
use crate::error::{Error, Place, Result};
use crate::files::Dtype;
use crate::files::gguf::write::TensorDigest;
use crate::files::gguf::{Gguf, TensorInfo, Value};
use crate::model::config::GgufHead;
use crate::model::{BaseFiles, ModelConfig};

/// Opens the planned file and compares it with what it is made from.
///
/// # Errors
/// Input: everything that comes out otherwise.
pub(super) fn comes_out_the_same(plan: &ModelPlan<'_>, base: &BaseFiles) -> Result<()> {
    // A file of the same architecture has been read as this very model before.
    if base.is_gguf() {
        return Ok(());
    }
    let values = plan.tensors.iter().filter_map(|planned| match &planned.content {
        Content::Values(values) => Some((planned.info.name.clone(), values.clone())),
        Content::Rows { .. } | Content::Stored => None,
    });
    let values: Vec<(String, Vec<f32>)> = values.collect();
    let place = base.path().display().to_string();
    compare(base.config(), &Gguf::planned(&place, &plan.metadata, &plan.infos(), &values)?)
}

/// Whether a GGUF file can express a model of this configuration at all.
///
/// # Errors
/// Input: everything that comes out otherwise.
pub(super) fn is_expressible(config: &ModelConfig) -> Result<()> {
    let described = config.to_gguf()?;
    let mut specs = config.tensors();
    if config.tied_head && config.family.gguf_head == GgufHead::Always {
        specs.extend(config.head().tensors(false));
    }
    check_tensors(config, !config.tied_head)?;
    let infos = specs.into_iter().map(|spec| TensorInfo { name: spec.gguf, dtype: Dtype::F32, shape: spec.shape });
    let infos: Vec<TensorInfo> = infos.collect();
    let place = config.family.class_name;
    compare(config, &Gguf::planned(place, &described.metadata, &infos, &described.tensors)?)
}

/// Whether llama.cpp loads a file with these tensors: some architectures have no place for a head of their own or for
/// some of the biases (`src/models/*.cpp`, `load_arch_tensors`).
///
/// # Errors
/// Input: the tensors that it does not load, or misses.
pub(super) fn check_tensors(config: &ModelConfig, has_head: bool) -> Result<()> {
    /// Beyond the biases of q, k and v, which every architecture may have.
    const WITH_ALL_BIASES: [&str; 3] = ["llama", "granite", "gptneox"];
    let architecture = config.family.gguf;
    let has_place = WITH_ALL_BIASES.contains(&architecture);
    let problems = [
        (
            has_head && config.family.gguf_head == GgufHead::Never,
            "has a head of its own; llama.cpp uses the embedding as that of this architecture",
        ),
        (config.o_bias && !has_place, "has a bias on attention's output, which llama.cpp does not load"),
        (config.mlp_bias && !has_place, "has biases in the feed-forward network, which llama.cpp does not load"),
        (architecture == "gptneox" && !config.qkv_bias, "has no biases in attention, which llama.cpp requires"),
    ];
    let errors = problems.into_iter().filter(|(holds, _)| *holds).map(|(_, message)| {
        Error::input(format_args!("{} as GGUF of architecture {architecture}", config.family.class_name), message)
            .hint("a Hugging Face folder holds the model as it is")
    });
    Error::none_of(errors.collect(), ())
}

fn compare(config: &ModelConfig, planned: &Gguf) -> Result<()> {
    let found = ModelConfig::from_gguf(planned).map_err(|error| {
        let message = format!("cannot be expressed as a GGUF file of architecture {}", config.family.gguf);
        Error::join([Error::input(config.family.class_name, message), error.clone()]).unwrap_or(error)
    })?;
    let errors = differences(config, &found).into_iter().map(|(field, own, found)| {
        let message = format!(
            "is {own}; in a GGUF file of architecture {} llama.cpp takes it for {found}, so the model would be another",
            config.family.gguf
        );
        Error::input(format_args!("{}: {field}", config.family.class_name), message)
    });
    let errors = Error::join(errors.collect::<Vec<_>>());
    match errors {
        None => Ok(()),
        Some(error) => Err(error.hint("a Hugging Face folder holds the model as it is")),
    }
}

/// The fields in which two configurations compute differently: name, own value, found value.
fn differences(own: &ModelConfig, found: &ModelConfig) -> Vec<(&'static str, String, String)> {
    let mut differences = Vec::new();
    let mut same = |field: &'static str, own: &dyn Debug, found: &dyn Debug| {
        let (own, found) = (format!("{own:?}"), format!("{found:?}"));
        if own != found {
            differences.push((field, own, found));
        }
    };
    same("vocab_size", &own.vocab_size, &found.vocab_size);
    same("hidden_size", &own.hidden_size, &found.hidden_size);
    same("intermediate_size", &own.intermediate_size, &found.intermediate_size);
    same("num_hidden_layers", &own.layers, &found.layers);
    same("num_attention_heads", &own.heads, &found.heads);
    same("num_key_value_heads", &own.kv_heads, &found.kv_heads);
    same("head_dim", &own.head_dim, &found.head_dim);
    same("max_position_embeddings", &own.max_positions, &found.max_positions);
    same("hidden_act", &own.activation, &found.activation);
    same("attention_bias", &(own.qkv_bias, own.o_bias), &(found.qkv_bias, found.o_bias));
    same("mlp_bias", &own.mlp_bias, &found.mlp_bias);
    same("use_parallel_residual", &own.parallel_residual, &found.parallel_residual);
    for layer in 0..own.layers.min(found.layers) {
        same("layer_types", &own.window_of(layer), &found.window_of(layer));
    }
    let head_factor =
        |config: &ModelConfig| config.attention_multiplier.unwrap_or(1.0 / (config.head_dim as f64).sqrt());
    let factor = |value: Option<f64>| value.unwrap_or(1.0);
    let cap = |value: Option<f64>| value.unwrap_or(f64::INFINITY);
    for (field, own, found) in [
        ("norm_eps", own.norm_eps, found.norm_eps),
        ("attention_multiplier", head_factor(own), head_factor(found)),
        ("embedding_multiplier", own.embedding_multiplier.value(), found.embedding_multiplier.value()),
        ("residual_multiplier", factor(own.residual_multiplier), factor(found.residual_multiplier)),
        ("logits_scaling", 1.0 / factor(own.logit_multiplier), 1.0 / factor(found.logit_multiplier)),
        ("attn_logit_softcapping", cap(own.attention_softcap), cap(found.attention_softcap)),
        ("final_logit_softcapping", cap(own.logit_softcap), cap(found.logit_softcap)),
    ] {
        // GGUF holds f32.
        if own != found && (own - found).abs() > 1e-6 * own.abs() {
            differences.push((field, own.to_string(), found.to_string()));
        }
    }
    let rotations = (0..own.layers.min(found.layers)).find(|layer| !rotates_alike(own, found, *layer));
    if let Some(layer) = rotations {
        let described = |config: &ModelConfig| match config.rope_of(layer) {
            None => format!("no rotation in layer {layer}"),
            Some(rope) => format!("base {} with scaling {:?} in layer {layer}", rope.theta, rope.scaling),
        };
        differences.push(("rope_parameters", described(own), described(found)));
    }
    differences.dedup_by_key(|(field, ..)| *field);
    differences
}

/// Whether a layer has the same frequencies, but for the rounding of f32.
fn rotates_alike(own: &ModelConfig, found: &ModelConfig, layer: usize) -> bool {
    match (own.rope_of(layer), found.rope_of(layer)) {
        (None, None) => true,
        (Some(own), Some(found)) => own.is_near(found),
        _ => false,
    }
}

/// The remark on a sliding window that llama.cpp passes over.
pub(super) fn window_notice(config: &ModelConfig) -> Option<String> {
    /// The architectures with a window in llama.cpp (`src/models/*.cpp`, `n_swa`).
    const WITH_WINDOW: [&str; 2] = ["gemma2", "gemma3"];
    let window = config.sliding_window.filter(|window| *window < config.max_positions)?;
    (!WITH_WINDOW.contains(&config.family.gguf)).then(|| {
        format!(
            "llama.cpp passes over the sliding window of a {}: texts of more than {window} tokens come out otherwise there",
            config.family.gguf
        )
    })
}

/// Opens what was written: every key and the bytes of every tensor are those that were sent to it.
///
/// # Errors
/// Failed: a difference.
pub(super) fn reads_back(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[TensorInfo],
    digests: &[TensorDigest],
) -> Result<()> {
    let differs = |place: Place, what: &str| {
        Error::failed(place, format!("reads back with {what} than was written"))
            .hint("nothing was kept; is the disk sound?")
    };
    let found = Gguf::open(path).map_err(|error| {
        let main = Error::failed(path.display(), "the written file does not open again");
        Error::join([main, error.clone()]).unwrap_or(error).into_failure()
    })?;
    let expected: BTreeMap<String, Value> = metadata.iter().cloned().collect();
    if *found.metadata() != expected {
        return Err(differs(Place::file(path), "other metadata"));
    }
    if found.names().count() != tensors.len() {
        return Err(differs(Place::file(path), "other tensors"));
    }
    for (info, digest) in tensors.iter().zip(digests) {
        let tensor = found.tensor(&info.name).map_err(Error::into_failure)?;
        let place = || Place::tensor(path, &info.name);
        if (tensor.dtype, &tensor.shape) != (info.dtype, &info.shape) {
            return Err(differs(place(), "another format or shape"));
        }
        if TensorDigest::from(Sha256::digest(&tensor.bytes[..])) != *digest {
            return Err(differs(place(), "other bytes"));
        }
        tensor.bytes.release();
    }
    Ok(())
}
