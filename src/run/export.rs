//! Exporting a model for other programs.

use std::path::Path;

use serde::Serialize;

use super::base::OpenBase;
use super::verify::{Agreement, Examination, Expected, Hardware};
use crate::adapter::host::HostAdapter;
use crate::data::{self, LongPolicy, Shape};
use crate::error::{Error, Place, Result};
use crate::export::importance::{Importance, MAX_TOKENS};
use crate::export::lora::write_lora;
use crate::export::mlx::write_mlx;
use crate::export::model::ModelPlan;
use crate::export::ollama;
use crate::export::{ExportOptions, ExportReport};
use crate::quant::Quant;

/// A written model, and its closeness to base and adapter.
#[derive(Debug, Clone, Serialize)]
pub struct Exported {
    /// The files' content.
    #[serde(flatten)]
    pub report: ExportReport,
    /// The comparison of what both compute; `None` where it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agreement: Option<Agreement>,
}

/// Writes `base`, with `adapter` folded in where there is one, as GGUF: `out`, or the files that it is split into. With an
/// `examination`, the same texts go through base and adapter and through the file.
///
/// # Errors
/// Those of [`ModelPlan::new`] and [`ModelPlan::write`]; the written model computes something else.
pub fn gguf(
    base: &OpenBase,
    adapter: Option<&HostAdapter>,
    out: &Path,
    options: &ExportOptions,
    importance: Option<&Importance>,
    examination: Option<Examination>,
) -> Result<Exported> {
    examined(base, adapter, options, examination, |plan, examine| plan.weighted(importance).write(out, examine))
}

/// The importance matrix by which the blocks of `base` with `adapter` are to be made: that in llama.cpp's file where `path` ends
/// in `.gguf`, or else measured on the examples of a data file, with the base quantised as `quant` says.
///
/// # Errors
/// Those of [`Importance::read`], [`Importance::measure`] and of reading and encoding the data.
pub fn importance(
    base: &OpenBase,
    adapter: Option<&HostAdapter>,
    quant: Quant,
    hardware: &Hardware,
    path: &Path,
) -> Result<Importance> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) {
        return Importance::read(path);
    }
    // A row has one token or more.
    let rows = data::read(path, Shape::with_columns(None))?;
    let rows = &rows[..rows.len().min(MAX_TOKENS)];
    let set = base.encoder.encode_all(rows, base.files.config().max_positions, LongPolicy::TruncatePrompt)?;
    let options = hardware.load_options(&base.files, quant);
    let attached = adapter.map(|adapter| adapter.attach(base.files.config(), &hardware.device)).transpose()?;
    Importance::measure(&base.files, &options, &set.sequences, attached.as_ref())
}

/// Writes `adapter` as GGUF-LoRA to `out`, for llama.cpp's own file of `base`.
///
/// # Errors
/// Those of [`write_lora`].
pub fn gguf_lora(base: &OpenBase, adapter: &HostAdapter, out: &Path) -> Result<ExportReport> {
    write_lora(base.files.config(), adapter, &base.short_name(), out)
}

/// Writes `adapter` in mlx-lm's own format to the folder `out`.
///
/// # Errors
/// Those of [`write_mlx`].
pub fn mlx(base: &OpenBase, adapter: &HostAdapter, out: &Path) -> Result<ExportReport> {
    write_mlx(base.files.config(), adapter, &base.hub_name(), out)
}

/// Writes `base`, with `adapter` folded in where there is one, as a folder for Ollama at `out`; `examination` as in [`gguf`].
///
/// # Errors
/// Input: the file is to be split, and the Modelfile names one. /// Those of [`ModelPlan::new`] and [`ollama::write_folder`]; the written model computes something else.
pub fn ollama(
    base: &OpenBase,
    adapter: Option<&HostAdapter>,
    out: &Path,
    options: &ExportOptions,
    importance: Option<&Importance>,
    examination: Option<Examination>,
) -> Result<Exported> {
    if options.split_bytes.is_some() {
        let message = "does not go with `--format ollama`, whose Modelfile names one file";
        return Err(Error::input(Place::argument("--split-size"), message));
    }
    examined(base, adapter, options, examination, |plan, examine| {
        ollama::write_folder(plan.weighted(importance), &base.encoder, out, examine)
    })
}

/// Plans an export, and has `write` write it, with an examination of the file before it gets its name.
fn examined<'a>(
    base: &'a OpenBase,
    adapter: Option<&'a HostAdapter>,
    options: &ExportOptions,
    examination: Option<Examination>,
    write: impl FnOnce(ModelPlan<'a>, &mut dyn FnMut(&Path) -> Result<()>) -> Result<ExportReport>,
) -> Result<Exported> {
    let plan = ModelPlan::new(&base.files, adapter, base.encoder.tokenizer(), &base.short_name(), options)?;
    let quant = options.weights.quant();
    let expected = examination.map(|examination| Expected::of(base, adapter, quant, examination)).transpose()?;
    let mut agreement = None;
    let report = write(plan, &mut |path| {
        agreement = expected.as_ref().map(|expected| expected.check(path)).transpose()?;
        Ok(())
    })?;
    Ok(Exported { report, agreement })
}
