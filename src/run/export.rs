//! Exporting a model for other programs.

use std::path::Path;

use serde::Serialize;

use super::base::OpenBase;
use super::verify::{Agreement, Examination, Expected};
use crate::adapter::host::HostAdapter;
use crate::error::{Error, Place, Result};
use crate::export::lora::write_lora;
use crate::export::model::ModelPlan;
use crate::export::ollama;
use crate::export::{ExportOptions, ExportReport};

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
    examination: Option<Examination>,
) -> Result<Exported> {
    examined(base, adapter, options, examination, |plan, examine| plan.write(out, examine))
}

/// Writes `adapter` as GGUF-LoRA to `out`, for llama.cpp's own file of `base`.
///
/// # Errors
/// Those of [`write_lora`].
pub fn gguf_lora(base: &OpenBase, adapter: &HostAdapter, out: &Path) -> Result<ExportReport> {
    write_lora(base.files.config(), adapter, &base.short_name(), out)
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
    examination: Option<Examination>,
) -> Result<Exported> {
    if options.split_bytes.is_some() {
        let message = "does not go with `--format ollama`, whose Modelfile names one file";
        return Err(Error::input(Place::argument("--split-size"), message));
    }
    examined(base, adapter, options, examination, |plan, examine| ollama::write_folder(plan, &base.encoder, out, examine))
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
