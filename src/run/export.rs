//! Exporting a model for other programs.

use std::path::Path;

use super::base::OpenBase;
use crate::adapter::host::HostAdapter;
use crate::error::Result;
use crate::export::lora::write_lora;
use crate::export::model::ModelPlan;
use crate::export::ollama;
use crate::export::{ExportOptions, ExportReport};

/// Writes `base`, with `adapter` folded in where there is one, as GGUF: `out`, or the files that it is split into.
///
/// # Errors
/// Those of [`ModelPlan::new`] and [`ModelPlan::write`].
pub fn gguf(
    base: &OpenBase,
    adapter: Option<&HostAdapter>,
    out: &Path,
    options: &ExportOptions,
) -> Result<ExportReport> {
    ModelPlan::new(&base.files, adapter, base.encoder.tokenizer(), &base.short_name(), options)?.write(out)
}

/// Writes `adapter` as GGUF-LoRA to `out`, for llama.cpp's own file of `base`.
///
/// # Errors
/// Those of [`write_lora`].
pub fn gguf_lora(base: &OpenBase, adapter: &HostAdapter, out: &Path) -> Result<ExportReport> {
    write_lora(base.files.config(), adapter, &base.short_name(), out)
}

/// Writes `base`, with `adapter` folded in where there is one, as a folder for Ollama at `out`.
///
/// # Errors
/// Those of [`ModelPlan::new`] and [`ollama::write_folder`].
pub fn ollama(
    base: &OpenBase,
    adapter: Option<&HostAdapter>,
    out: &Path,
    options: &ExportOptions,
) -> Result<ExportReport> {
    let plan = ModelPlan::new(&base.files, adapter, base.encoder.tokenizer(), &base.short_name(), options)?;
    ollama::write_folder(plan, &base.encoder, out)
}
