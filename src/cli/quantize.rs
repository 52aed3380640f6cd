//! `burnish quantize`: writes a base packed, for transformers and bitsandbytes.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::progress::Downloads;
use super::terminal::Terminal;
use crate::error::Result;
use crate::files::FloatType;
use crate::model::load::Quant;
use crate::model::quantize::{QuantizeOptions, QuantizeReport, quantize};
use crate::run::OpenBase;
use crate::run::memory_plan::Size;

/// Write a base as a checkpoint packed the way bitsandbytes does it, which transformers loads
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The base: smollm2-135m-instruct, hf:ORG/REPO, a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "BASE")]
    base: String,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How the layers' projections are packed
    #[arg(long, value_enum, default_value_t = Scheme::Nf4, value_name = "SCHEME")]
    scheme: Scheme,
    /// Type of everything else: f32, f16 or bf16 [default: as in the base where that has 16 bits, else bf16]
    #[arg(long = "type", value_name = "TYPE")]
    float_type: Option<FloatType>,
    /// Files of weights grow to this size, as 2GiB, 500MB or a number of bytes
    #[arg(long, default_value = "5GB", value_name = "SIZE")]
    max_shard_bytes: Size,
}

/// How weights are packed.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Scheme {
    /// 4-bit NormalFloat
    Nf4,
    /// 4-bit NormalFloat with quantised scales
    Nf4Double,
    /// 8-bit, one scale a row
    Int8,
}

#[derive(Debug, Serialize)]
struct Quantized {
    out: PathBuf,
    #[serde(flatten)]
    report: QuantizeReport,
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let mut downloads = Downloads::new(terminal);
    let base = OpenBase::open(&arguments.base, &mut |event| downloads.show(event))?;
    let scheme = match arguments.scheme {
        Scheme::Nf4 => Quant::Nf4 { double: false },
        Scheme::Nf4Double => Quant::Nf4 { double: true },
        Scheme::Int8 => Quant::Int8,
    };
    let options =
        QuantizeOptions { scheme, float_type: arguments.float_type, max_shard_bytes: arguments.max_shard_bytes.0 };
    let report = quantize(&base.files, &arguments.out, &options, |folder| base.encoder.tokenizer().save(folder))?;
    terminal.result(&Quantized { out: arguments.out.clone(), report })
}

impl fmt::Display for Quantized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QuantizeReport { packed, tensors, bytes, base_bytes, .. } = &self.report;
        let (megabytes, before) = (bytes / 1_000_000, base_bytes / 1_000_000);
        write!(
            f,
            "{}: {packed} weights packed, {tensors} tensors, {megabytes} MB; the base has {before} MB",
            self.out.display()
        )
    }
}
