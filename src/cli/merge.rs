//! `burnish merge`: folds an adapter into its base.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::model::Model;
use super::terminal::Terminal;
use crate::adapter::merge::{FloatType, MergeOptions, MergeReport, merge};
use crate::error::{Error, Result};

/// Fold an adapter into its base and write a Hugging Face folder
#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Type of the weights: f32, f16 or bf16 [default: as in the base; f32 for a packed base]
    #[arg(long = "type", value_name = "TYPE")]
    float_type: Option<FloatType>,
    /// Files of weights grow to this many bytes
    #[arg(long, default_value_t = 5_000_000_000, value_name = "BYTES")]
    max_shard_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Merged {
    out: PathBuf,
    #[serde(flatten)]
    report: MergeReport,
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let (base, adapter) = arguments.model.open(terminal)?;
    let adapter = adapter.ok_or_else(|| {
        Error::input("--adapter", "is missing").hint("name the adapter's folder, as `--adapter adapters/my-run`")
    })?;
    let options = MergeOptions {
        float_type: arguments.float_type,
        max_shard_bytes: arguments.max_shard_bytes,
        force: arguments.model.force,
    };
    let report =
        merge(&base.files, &adapter, &arguments.out, &options, |folder| base.encoder.tokenizer().save(folder))?;
    terminal.result(&Merged { out: arguments.out.clone(), report })
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MergeReport { modules_changed, tensors, bytes, tensors_compared, max_difference, .. } = &self.report;
        let megabytes = bytes / 1_000_000;
        write!(
            f,
            "{}: {tensors} tensors, {megabytes} MB, {modules_changed} changed; read back and compared {tensors_compared}, \
             greatest difference {max_difference:.1e}",
            self.out.display()
        )?;
        if self.report.untied_head {
            write!(f, "\nthe head is no longer tied to the embedding: the adapter changes it")?;
        }
        if let Some(quant) = &self.report.trained_over {
            write!(f, "\nthe adapter was trained over {quant} weights; it was merged into the original ones")?;
        }
        Ok(())
    }
}
