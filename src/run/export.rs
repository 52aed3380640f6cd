//! Exporting a model for other programs.

use std::path::Path;

use super::base::OpenBase;
use crate::adapter::host::HostAdapter;
use crate::error::Result;
use crate::export::model::ModelPlan;
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
