//! Merging an adapter into the weights that suit it, and measuring which do.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::base::OpenBase;
use super::verify::{Agreement, Examination, Expected, Hardware};
use crate::adapter::host::HostAdapter;
use crate::adapter::merge::{self, MergeBase, MergeOptions, MergeReport};
use crate::data::EncodedSet;
use crate::error::{Error, Result, counted};
use crate::eval::loss::{example_number, mean_loss};
use crate::files::atomic;
use crate::model::load::LoadOptions;
use crate::model::{BaseFiles, Decoder};
use crate::quant::Quant;
use crate::train::evaluate::evaluate;

/// The name of the report in a merged folder.
const REPORT_FILE: &str = "merge_report.json";

/// A merged folder, and the closeness of its model to base and adapter.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Merged {
    /// The folder's content.
    #[serde(flatten)]
    pub report: MergeReport,
    /// The comparison of what both compute; `None` where it was not asked for.
    pub agreement: Option<Agreement>,
}

/// Merges into a folder at `out`. With an `examination`, the same texts go through base and adapter and through the files that were
/// written, and the folder only gets its name if they agree; the report stands in the folder.
///
/// # Errors
/// Those of [`merge::merge`]; the merged model computes something else.
pub fn merge(
    base: &OpenBase,
    adapter: &HostAdapter,
    out: &Path,
    options: &MergeOptions,
    examination: Option<Examination>,
) -> Result<Merged> {
    let quant = options.weights.quant();
    let expected = examination.map(|examination| Expected::of(base, Some(adapter), quant, examination)).transpose()?;
    let (staging, report) =
        merge::stage(&base.files, adapter, out, options, |folder| base.encoder.tokenizer().save(folder))?;
    let agreement = expected.map(|expected| expected.check(staging.path())).transpose()?;
    let merged = Merged { report, agreement };
    let text = serde_json::to_string_pretty(&merged).map_err(|error| Error::failed(REPORT_FILE, error.to_string()))?;
    atomic::write_bytes(&staging.path().join(REPORT_FILE), format!("{text}\n").as_bytes())?;
    staging.publish(out)?;
    Ok(merged)
}

/// The losses that tell which weights an adapter belongs to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MergeCheck {
    /// How the base was packed.
    pub packed_as: &'static str,
    /// Trained tokens of the data.
    pub tokens: usize,
    /// The adapter over the packed base, as it was trained.
    pub adapter_on_packed: f64,
    /// The folder merged into the base's own weights.
    pub merged_on_original: f64,
    /// The folder merged into the packed weights, decoded.
    pub merged_on_dequantized: f64,
    /// `original` or `dequantized`: whose loss is nearer to the first.
    pub nearer: &'static str,
}

/// The fate of the folders that a comparison merges. They grow beside the path.
#[derive(Debug, Clone, Copy)]
pub enum MergedFolder<'a> {
    /// The one that the options ask for gets this name.
    Keep(&'a Path),
    /// None stays.
    Discard(&'a Path),
}

/// Merges both ways and measures all three on `set`.
///
/// # Errors
/// Those of merging and of loading.
pub fn compare(
    base: &OpenBase,
    adapter: &HostAdapter,
    packing: Quant,
    set: &EncodedSet,
    hardware: &Hardware,
    options: &MergeOptions,
    folder: MergedFolder<'_>,
) -> Result<(MergeCheck, Option<MergeReport>)> {
    let (out, scratch) = match folder {
        MergedFolder::Keep(out) => (Some(out), out),
        MergedFolder::Discard(scratch) => (None, scratch),
    };
    let (adapter_on_packed, features) = {
        let load = LoadOptions { device: hardware.device.clone(), compute: hardware.compute, quant: packing };
        let decoder = base.load(&load, |_, _| {})?;
        base.keep_vision(&decoder, &load, adapter)?;
        let attached = adapter.attach(decoder.config(), &hardware.device)?;
        let losses = evaluate(&decoder, Some(&attached), &set.sequences, &mut |_| Ok(()))?;
        (mean_loss(&losses, example_number)?, decoder.features().clone())
    };
    let mut kept = None;
    let mut loss_of = |weights: MergeBase| {
        let save = |folder: &Path| base.encoder.tokenizer().save(folder);
        let both = MergeOptions { weights, ..*options };
        let (staging, report) = merge::stage(&base.files, adapter, scratch, &both, save)?;
        let files = BaseFiles::open(staging.path())?;
        let load = LoadOptions { device: hardware.device.clone(), compute: hardware.compute, quant: Quant::None };
        let decoder = Decoder::load(&files, &load, |_, _| {})?;
        // Merged tower and connector see otherwise.
        let decoder = match adapter.changes_vision(base.files.config()) {
            true => decoder.with_features(&base.features_by(&files, &load)?),
            false => decoder.with_features(&features),
        };
        let loss = mean_loss(&evaluate(&decoder, None, &set.sequences, &mut |_| Ok(()))?, example_number)?;
        if weights == options.weights {
            kept = Some((staging, report));
        }
        Ok::<_, Error>(loss)
    };
    let merged_on_original = loss_of(MergeBase::Original)?;
    let merged_on_dequantized = loss_of(MergeBase::Dequantized(packing))?;
    let original_is_nearer =
        (merged_on_original - adapter_on_packed).abs() < (merged_on_dequantized - adapter_on_packed).abs();
    let report = match (kept, out) {
        (Some((staging, report)), Some(out)) => {
            staging.publish(out)?;
            Some(report)
        }
        _ => None,
    };
    let comparison = MergeCheck {
        packed_as: packing.name(),
        tokens: set.trained_tokens,
        adapter_on_packed,
        merged_on_original,
        merged_on_dequantized,
        nearer: if original_is_nearer { "original" } else { "dequantized" },
    };
    Ok((comparison, report))
}

impl fmt::Display for MergeCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packed_as, tokens, adapter_on_packed, merged_on_original, merged_on_dequantized, nearer } = self;
        writeln!(f, "validation loss over {}", counted(*tokens, "token"))?;
        writeln!(f, "  adapter on {packed_as:<20} {adapter_on_packed:.4}")?;
        writeln!(f, "  merged into original weights    {merged_on_original:.4}")?;
        writeln!(f, "  merged into dequantized weights {merged_on_dequantized:.4}")?;
        write!(f, "nearer to what was trained: {nearer}")
    }
}
