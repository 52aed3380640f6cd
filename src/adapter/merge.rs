//! Folding an adapter into its base: `W' = W + scale * B * A`, written as a Hugging Face folder and checked.
//!
//! One tensor at a time is in memory, in f32 and as it will be stored. The sum is taken in f32 and rounded once.
//! The folder grows under a temporary name beside its place, is read again and compared with sums formed
//! independently, and only then gets its name.

mod folder;
mod plan;
mod product;
mod verify;

use std::path::Path;
use std::str::FromStr;

use serde::Serialize;

use crate::adapter::file::{HostAdapter, provenance};
use crate::error::{Error, Result};
use crate::files::{Dtype, RawTensor};
use crate::model::BaseFiles;
use crate::quant::float;

use plan::{Plan, Planned};

/// A number format that merged weights can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::Bf16,
        }
    }
}

impl FromStr for FloatType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(format!("unknown type `{name}`; there are f32, f16, bf16")),
        }
    }
}

/// How to merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeOptions {
    /// The type of every tensor. `None`: as the base stores it, and f32 for what it stores in blocks, which no
    /// 16-bit float holds exactly.
    pub float_type: Option<FloatType>,
    /// Files of weights grow to this size; a single tensor above it gets a file of its own.
    pub max_shard_bytes: u64,
    /// Merge though the adapter says that it belongs to another base.
    pub force: bool,
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { float_type: None, max_shard_bytes: 5_000_000_000, force: false }
    }
}

/// What was merged, and what the comparison after it found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergeReport {
    /// Modules that were changed: as many as the adapter has pairs.
    pub modules_changed: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Files of weights, in order.
    pub files: Vec<String>,
    /// Size of the weights.
    pub bytes: u64,
    /// The head shared the embedding's matrix, the adapter changes it, so now it has its own.
    pub untied_head: bool,
    /// The adapter names this very base. `None`: it names none.
    pub base_matches: Option<bool>,
    /// How the base was quantised while the adapter learned, if it was: the merged weights are not.
    pub trained_over: Option<String>,
    /// Tensors compared with an independent sum after reading them again: every one.
    pub tensors_compared: usize,
    /// Values compared: some rows of what was changed, all of what was not.
    pub values_compared: usize,
    /// Greatest difference between a changed value as stored and the exact sum; its bound is the rounding.
    pub max_difference: f64,
}

/// Merges `adapter` into `base` and writes a Hugging Face folder at `out`, where nothing may be yet.
///
/// `write_tokenizer` writes the tokenizer's files into the folder it is given.
///
/// # Errors
/// Bad input: `out` exists, the adapter does not fit the base, or names another base (unless `force`).
/// Failures: the disk is full, a sum overflows the stored type, what was written reads back as something else.
/// After any of them there is nothing at `out` and nothing beside it.
pub fn merge(
    base: &BaseFiles,
    adapter: &HostAdapter,
    out: &Path,
    options: &MergeOptions,
    write_tokenizer: impl FnOnce(&Path) -> Result<()>,
) -> Result<MergeReport> {
    let base_matches = check(base, adapter, out, options)?;
    let plan = Plan::new(base, adapter, options)?;
    let staging = folder::Staging::beside(out)?;
    for shard in &plan.shards {
        shard.write(staging.path(), |planned| merged_tensor(base, planned))?;
    }
    folder::write_index(&plan, staging.path())?;
    folder::write_configs(base, &plan, options, staging.path())?;
    write_tokenizer(staging.path())?;
    let checked = verify::reread(base, &plan, staging.path())?;
    staging.publish(out)?;
    Ok(MergeReport {
        modules_changed: adapter.pairs.len(),
        tensors: plan.tensors().count(),
        files: plan.shards.iter().map(|shard| shard.file.clone()).collect(),
        bytes: plan.bytes()?,
        untied_head: plan.untied_head,
        base_matches,
        trained_over: adapter.metadata.get(provenance::QUANT).filter(|quant| *quant != "none").cloned(),
        tensors_compared: checked.tensors,
        values_compared: checked.values,
        max_difference: checked.max_difference,
    })
}

/// Whether merging can start at all; every obstacle in one error. Returns whether the adapter names this base.
fn check(base: &BaseFiles, adapter: &HostAdapter, out: &Path, options: &MergeOptions) -> Result<Option<bool>> {
    let mut errors = Vec::new();
    if out.symlink_metadata().is_ok() {
        errors.push(Error::input(out.display(), "exists already").hint("name a folder that does not exist"));
    }
    if options.max_shard_bytes == 0 {
        errors.push(Error::input("max_shard_bytes", "expected at least 1, found 0"));
    }
    if adapter.pairs.is_empty() {
        errors.push(Error::input("adapter", "holds no low-rank pair"));
    }
    errors.extend(adapter.check_against(base.config()).err());
    let base_matches = match adapter.metadata.get(provenance::BASE_SHA256) {
        Some(expected) => Some(*expected == base.content_hash()?),
        None => None,
    };
    if base_matches == Some(false) && !options.force {
        let message = format!("is not the base that the adapter was trained on ({} differs)", provenance::BASE_SHA256);
        errors.push(Error::input(base.path().display(), message).hint("`--force` merges all the same"));
    }
    Error::none_of(errors, base_matches)
}

/// A tensor as it goes into the file: the base's bytes untouched where nothing changes.
fn merged_tensor(base: &BaseFiles, planned: &Planned<'_>) -> Result<RawTensor> {
    let tensor = base.tensor(&planned.source)?;
    if planned.pair.is_none() && tensor.dtype == planned.header.dtype {
        return Ok(tensor);
    }
    let mut values = tensor.to_f32()?;
    drop(tensor);
    if let Some(pair) = planned.pair {
        product::add_low_rank(&mut values, pair);
    }
    let stored = RawTensor {
        dtype: planned.header.dtype,
        shape: planned.header.shape.clone(),
        bytes: encode(planned.header.dtype, &values).into(),
    };
    match stored.check_finite("") {
        Ok(()) => Ok(stored),
        Err(_) => Err(Error::failed(
            format_args!("tensor {}", planned.header.name),
            format!("a merged value is beyond what {} holds", planned.header.dtype),
        )
        .hint("merge with `--type bf16` or `--type f32`")),
    }
}

/// Values rounded once to `dtype`, one of the three floats.
fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => float::encode_f16(values),
        Dtype::Bf16 => float::encode_bf16(values),
        _ => float::encode_f32(values),
    }
}
