//! Folding an adapter into its base: `W' = W + scale * B * A` (with DoRA its rows at their magnitudes), written as a Hugging Face folder and checked.
//!
//! One tensor at a time is in memory, in f32 and as it will be stored. The sum is taken in f32 and rounded once.
//! The folder grows under a temporary name beside its place, is read again and compared with sums formed
//! independently, and only then gets its name.

mod plan;
mod product;
mod source;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::adapter::host::{HostAdapter, provenance};
use crate::error::{Error, Result};
use crate::files::shards::Entry;
use crate::files::staging::Staging;
use crate::files::{FloatType, RawTensor, hex};
use crate::model::BaseFiles;
use crate::model::folder::{Extent, check_folder_name, untie, write_configs};
use crate::quant::Quant;

pub use plan::{Change, Changes};
use plan::{Plan, Planned};
pub use source::Source;

/// The weights that the adapter is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeBase {
    /// The base's own.
    Original,
    /// The base's projections packed by this scheme and decoded again: what an adapter trained over packed weights has
    /// seen. A base that is stored packed has no other weights.
    Dequantized(Quant),
}

/// The options of a merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MergeOptions {
    /// The weights that the adapter is added to.
    pub weights: MergeBase,
    /// The type of every tensor. `None`: as the base stores it, and f32 for what it stores in blocks, which no
    /// 16-bit float holds exactly.
    pub float_type: Option<FloatType>,
    /// Files of weights grow to this size; a single tensor above it gets a file of its own.
    pub max_shard_bytes: u64,
    /// Merge though the adapter says that it belongs to another base.
    pub force: bool,
}

impl MergeBase {
    /// The quantisation of a base with these weights.
    pub fn quant(self) -> Quant {
        match self {
            Self::Original => Quant::None,
            Self::Dequantized(quant) => quant,
        }
    }
}

impl Default for MergeOptions {
    fn default() -> Self {
        Self { weights: MergeBase::Original, float_type: None, max_shard_bytes: 5_000_000_000, force: false }
    }
}

/// The outcome of a merge, and of the comparison after it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergeReport {
    /// Modules that the adapter changes.
    pub modules: usize,
    /// Of these, the ones of which a value as stored differs from the base's. A pair that is zero changes none, nor does an
    /// update below the rounding of the stored type.
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
    /// The quantisation of the base while the adapter learned, if there was one.
    pub trained_over: Option<&'static str>,
    /// `original` or `dequantized`: what the adapter was added to.
    pub merged_into: &'static str,
    /// Tensors that were read again and compared with an independent sum: every one.
    pub tensors_compared: usize,
    /// Values compared: 32 rows of every matrix that was changed or converted, all values of every other tensor.
    pub values_compared: usize,
    /// Greatest difference between a changed value as stored and the exact sum; its bound is the rounding.
    pub max_difference: f64,
    /// Licences of the base that are not in the folder, because they are larger than any licence.
    pub licences_left_out: Vec<String>,
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
    let (staging, report) = stage(base, adapter, out, options, write_tokenizer)?;
    staging.publish(out)?;
    Ok(report)
}

/// [`merge`] without the last step: the merged folder, checked, under a temporary name beside `out`.
///
/// # Errors
/// Those of [`merge`].
pub fn stage(
    base: &BaseFiles,
    adapter: &HostAdapter,
    out: &Path,
    options: &MergeOptions,
    write_tokenizer: impl FnOnce(&Path) -> Result<()>,
) -> Result<(Staging, MergeReport)> {
    let base_matches = check(base, adapter, out, options)?;
    let plan = Plan::new(base, adapter, options)?;
    let source = Source { base, weights: options.weights };
    let staging = Staging::beside(out)?;
    let (mut changed, mut sha256) = (BTreeSet::new(), BTreeMap::new());
    plan.shards.write(staging.path(), |planned| {
        // The tensors before this one are written.
        base.release();
        let merged = merged_tensor(&source, planned)?;
        // Weight and bias of a module are one.
        let module = planned.header.name.rsplit_once('.').map_or(&*planned.header.name, |(module, _)| module);
        changed.extend(merged.is_changed.then(|| module.to_owned()));
        sha256.insert(planned.header.name.clone(), hex::sha256_of(&merged.tensor.bytes));
        Ok(merged.tensor.bytes)
    })?;
    let licences_left_out = write_configs(base, Extent::Whole, plan.matrix_dtype, staging.path(), |config| {
        if plan.untied_head {
            untie(config);
        }
    })?;
    write_tokenizer(staging.path())?;
    let checked = verify::reread(&source, &plan, &sha256, staging.path())?;
    let report = MergeReport {
        modules: adapter.modules(),
        modules_changed: changed.len(),
        tensors: plan.shards.entries().count(),
        files: plan.shards.files(),
        bytes: plan.shards.bytes()?,
        untied_head: plan.untied_head,
        base_matches,
        trained_over: adapter.trained_over()?.map(Quant::name),
        merged_into: match options.weights {
            MergeBase::Original => "original",
            MergeBase::Dequantized(_) => "dequantized",
        },
        tensors_compared: checked.tensors,
        values_compared: checked.values,
        max_difference: checked.max_difference,
        licences_left_out,
    };
    Ok((staging, report))
}

/// Whether merging can start at all; every obstacle in one error. Returns whether the adapter names this base.
fn check(base: &BaseFiles, adapter: &HostAdapter, out: &Path, options: &MergeOptions) -> Result<Option<bool>> {
    let mut errors = Vec::new();
    errors.extend(check_folder_name(out).err());
    errors.extend(Staging::check_free(out).err());
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

/// A tensor as it goes into the file.
struct Merged {
    tensor: RawTensor,
    /// Whether the adapter changed a value of it.
    is_changed: bool,
}

/// Makes one tensor of the merged model: the base's bytes untouched where nothing changes.
fn merged_tensor(source: &Source<'_>, planned: &Planned<'_>) -> Result<Merged> {
    let Entry { header, origin } = planned;
    let tensor = source.tensor(&origin.source)?;
    let dtype = origin.float_type.dtype();
    if matches!(origin.change, Change::Nothing) && tensor.dtype == dtype {
        return Ok(Merged { tensor, is_changed: false });
    }
    let mut values = tensor.to_f32()?;
    drop(tensor);
    let mut bytes = origin.float_type.encode(&values);
    let mut is_changed = false;
    match origin.change {
        Change::Nothing => {}
        Change::Pair(pair) => product::adapt(&mut values, pair),
        Change::Whole(_) | Change::Rows(..) => {
            let columns = if let [_, columns] = *header.shape { columns } else { 1 };
            let rows = values.chunks_mut(columns.max(1)).enumerate();
            rows.for_each(|(index, row)| origin.change.apply_to_row(row, index));
        }
    }
    if !matches!(origin.change, Change::Nothing) {
        let changed = origin.float_type.encode(&values);
        is_changed = changed != bytes;
        bytes = changed;
    }
    let bytes = bytes.into();
    let stored = RawTensor { dtype, shape: header.shape.clone(), bytes };
    match stored.check_finite("") {
        Ok(()) => Ok(Merged { tensor: stored, is_changed }),
        Err(_) => {
            let message = format!("a merged value is beyond what {dtype} holds");
            Err(Error::failed(format_args!("tensor {}", header.name), message)
                .hint("merge with `--type bf16` or `--type f32`"))
        }
    }
}
