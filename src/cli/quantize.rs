//! `burnish quantize`: writes a base packed, for transformers and bitsandbytes.

use std::fmt;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::progress::Downloads;
use super::terminal::Terminal;
use crate::bytes::Size;
use crate::error::Result;
use crate::files::FloatType;
use crate::model::quantize::{QuantizeOptions, QuantizeReport, quantize};
use crate::quant::Quant;
use crate::run::OpenBase;

/// Write a base as a checkpoint packed the way bitsandbytes does it, which transformers loads
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The base: smollm2-135m-instruct, hf:ORG/REPO, a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "BASE")]
    base: String,
    /// The folder to write; it must not exist
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Format of the layers' projections
    #[arg(long, value_parser = packing_schemes(), default_value_t = Quant::Nf4, value_name = "SCHEME")]
    scheme: Quant,
    /// Type of everything else: f32, f16 or bf16 [default: as in the base where that has 16 bits, else bf16]
    #[arg(long = "type", value_name = "TYPE")]
    float_type: Option<FloatType>,
    /// Files of weights grow to this size, as 2GiB, 500MB or a number of bytes
    #[arg(long, default_value = "5GB", value_name = "SIZE")]
    max_shard_bytes: Size,
}

#[derive(Debug, Serialize)]
struct Quantized {
    out: PathBuf,
    #[serde(flatten)]
    report: QuantizeReport,
}

/// Accepts the schemes that pack a projection.
fn packing_schemes() -> impl TypedValueParser<Value = Quant> {
    let values = Quant::PACKING.iter().filter_map(ValueEnum::to_possible_value);
    PossibleValuesParser::new(values).try_map(|name| name.parse::<Quant>())
}

pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<()> {
    let mut downloads = Downloads::new(terminal);
    let base = OpenBase::open(&arguments.base, &mut |event| downloads.show(event))?;
    let options = QuantizeOptions {
        scheme: arguments.scheme,
        float_type: arguments.float_type,
        max_shard_bytes: arguments.max_shard_bytes.0,
    };
    let report = quantize(&base.files, &arguments.out, &options, |folder| base.encoder.tokenizer().save(folder))?;
    terminal.licences_left_out(&arguments.out, &report.licences_left_out);
    base.parts_beside_the_decoder().into_iter().for_each(|notice| terminal.message(notice));
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
