//! `burnish merge`: folds an adapter into its base.

use std::fmt;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Global;
use super::export::Exported;
use super::model::{Comparison, ImportanceMatrix, Model};
use super::terminal::Terminal;
use crate::adapter::host::HostAdapter;
use crate::adapter::merge::{MergeBase, MergeOptions, MergeReport};
use crate::bytes::Size;
use crate::data::{self, LongPolicy, Shape};
use crate::error::{Error, Place, Result};
use crate::export::{ExportOptions, GgufType};
use crate::files::FloatType;
use crate::quant::Quant;
use crate::run::merge::{self, MergeCheck, MergedFolder};
use crate::run::{OpenBase, export};

/// Fold an adapter into its base and write a Hugging Face folder, or the model for other programs
#[derive(Debug, Args)]
#[command(after_help = "An adapter trained over packed weights (QLoRA) has learned to make up for their rounding: it \
                        belongs to those weights, decoded. --compare measures whether that is so.")]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The folder to write, or the .gguf file; it must not exist
    #[arg(long, value_name = "PATH", required_unless_present = "compare")]
    out: Option<PathBuf>,
    /// The format [default: gguf for an output that ends in .gguf, else hf]
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Option<Format>,
    /// The weights that the adapter is added to [default: those that it was trained over]
    #[arg(long, value_enum, value_name = "WEIGHTS")]
    merge_base: Option<Weights>,
    /// Type of the weights: f32, f16 or bf16; of a GGUF file also q8_0, q4_0, q4_1, q5_0, q5_1, q4_k_m, q5_k_m or q6_k
    /// [default: as in the base; f32 for a packed base]
    #[arg(long = "type", value_enum, value_name = "TYPE", hide_possible_values = true)]
    gguf_type: Option<GgufType>,
    /// Files of weights of a Hugging Face folder grow to this size, as 2GiB, 500MB or a number of bytes [default: 5GB]
    #[arg(long, value_name = "SIZE")]
    max_shard_bytes: Option<Size>,
    /// Split a GGUF file that would be larger, as 2GiB, 500MB or a number of bytes
    #[arg(long, value_name = "SIZE")]
    split_size: Option<Size>,
    /// Measure the adapter on the packed weights and merged both ways; without --out nothing is kept
    #[arg(long, requires = "data")]
    compare: bool,
    #[command(flatten)]
    importance: ImportanceMatrix,
    #[command(flatten)]
    examined: Comparison,
}

/// The format of a merged model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A Hugging Face folder
    Hf,
    /// A GGUF file, for llama.cpp and what builds on it
    Gguf,
    /// A folder with a GGUF file and a Modelfile, for Ollama
    Ollama,
}

/// The weights that an adapter is added to.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Weights {
    /// The base's own
    Original,
    /// The base's weights as they were packed in training, decoded
    Dequantized,
}

#[derive(Debug, Serialize)]
struct Merged {
    #[serde(flatten)]
    written: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<MergeCheck>,
}

#[derive(Debug, Serialize)]
struct Written {
    out: PathBuf,
    #[serde(flatten)]
    merged: merge::Merged,
}

impl Arguments {
    /// The format asked for, or else the one that the output's name ends in.
    fn format(&self) -> Format {
        let is_gguf = |out: &PathBuf| out.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        self.format.unwrap_or(if self.out.as_ref().is_some_and(is_gguf) { Format::Gguf } else { Format::Hf })
    }

    /// The type of a Hugging Face folder.
    fn float_type(&self) -> Result<Option<FloatType>> {
        let Some(gguf_type) = self.gguf_type else { return Ok(None) };
        gguf_type.float_type().map(Some).ok_or_else(|| {
            let message =
                format!("is {gguf_type}, which is a type of GGUF files; a Hugging Face folder takes f32, f16 or bf16");
            Error::input(Place::argument("--type"), message).hint("`--format gguf` writes such a file")
        })
    }

    fn weights(&self, base: &OpenBase, packing: Option<Quant>) -> Result<MergeBase> {
        match (self.merge_base, packing) {
            (Some(Weights::Original), _) | (None, None) => Ok(MergeBase::Original),
            (_, Some(packing)) => Ok(MergeBase::Dequantized(packing)),
            // What the base itself packs has no other values than the decoded ones.
            (Some(Weights::Dequantized), None) if base.files.stores_packed_projections() => {
                Ok(MergeBase::Dequantized(Quant::None))
            }
            (Some(Weights::Dequantized), None) => Err(not_packed("--merge-base")),
        }
    }

    fn for_other_programs(
        &self,
        base: &OpenBase,
        adapter: &HostAdapter,
        weights: MergeBase,
        global: &Global,
        terminal: &Terminal,
    ) -> Result<Exported> {
        let Some(out) = self.out.as_deref().filter(|_| !self.compare) else {
            let error = Error::input(Place::argument("--compare"), "measures Hugging Face folders");
            return Err(error.hint("leave `--format` out, or `--compare`"));
        };
        let split_bytes = self.split_size.map(|size| size.0);
        let options = ExportOptions { weights, gguf_type: self.gguf_type, split_bytes };
        let importance = self.importance.importance(&self.model, base, Some(adapter), &options, global)?;
        let examination = self.examined.examination(&self.model, base, Some(adapter), global, terminal)?;
        let write = if self.format() == Format::Ollama { export::ollama } else { export::gguf };
        Ok(Exported::at(out, write(base, Some(adapter), out, &options, importance.as_ref(), examination)?))
    }
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let format = arguments.format();
    let float_type = if format == Format::Hf { arguments.float_type()? } else { None };
    if let Some(size) = arguments.split_size.filter(|_| format == Format::Hf) {
        let message = format!("is {size}, and splits GGUF files; the output is a Hugging Face folder");
        return Err(
            Error::input(Place::argument("--split-size"), message).hint("`--max-shard-bytes` is that of a folder")
        );
    }
    if let Some(size) = arguments.max_shard_bytes.filter(|_| format != Format::Hf) {
        let message = format!("is {size}, and is that of a Hugging Face folder; the output is a GGUF file");
        return Err(
            Error::input(Place::argument("--max-shard-bytes"), message).hint("`--split-size` splits a GGUF file")
        );
    }
    let (base, adapter) = arguments.model.open(terminal)?;
    let (Some(adapter), Some(folder)) = (adapter, &arguments.model.adapter) else {
        return Err(Error::input(Place::argument("--adapter"), "is missing")
            .hint("name the adapter's folder, as `--adapter adapters/my-run`"));
    };
    let choice = arguments.model.choice();
    let quant = choice.quant(&base, Some(&adapter))?;
    let packing = quant.is_packing().then_some(quant);
    let weights = arguments.weights(&base, packing)?;
    if format != Format::Hf {
        let exported = arguments.for_other_programs(&base, &adapter, weights, global, terminal)?;
        return exported.print(&base, terminal);
    }
    if arguments.importance.imatrix.is_some() {
        return Err(Error::input(Place::argument("--imatrix"), "goes with a quantised GGUF file")
            .hint("`--format gguf --type q4_k_m`, say"));
    }
    let options = MergeOptions {
        weights,
        float_type,
        max_shard_bytes: arguments.max_shard_bytes.map_or(MergeOptions::default().max_shard_bytes, |size| size.0),
        force: arguments.model.force,
    };
    let (report, comparison) = match &arguments.examined.data {
        Some(data) if arguments.compare => {
            let packing = packing.ok_or_else(|| not_packed("--compare"))?;
            let rows = data::read(data, Shape::with_columns(arguments.examined.columns.as_ref()))?;
            let positions = base.files.config().max_positions;
            let set = base.encoder.encode_all(&rows, positions, LongPolicy::Error)?;
            let hardware = arguments.model.hardware(Some(&adapter), global)?;
            let scratch = folder.join("merged");
            let place = arguments.out.as_deref().map_or_else(|| MergedFolder::Discard(&scratch), MergedFolder::Keep);
            let (comparison, report) = merge::compare(&base, &adapter, packing, &set, &hardware, &options, place)?;
            (report.map(|report| merge::Merged { report, agreement: None }), Some(comparison))
        }
        _ => match &arguments.out {
            Some(out) => {
                let Arguments { model, examined, .. } = arguments;
                let examination = examined.examination(model, &base, Some(&adapter), global, terminal)?;
                (Some(merge::merge(&base, &adapter, out, &options, examination)?), None)
            }
            None => (None, None),
        },
    };
    if let (Some(merge::Merged { report, .. }), Some(out)) = (&report, &arguments.out) {
        terminal.licences_left_out(out, &report.licences_left_out);
        base.parts_passed_over().into_iter().for_each(|notice| terminal.message(notice));
    }
    let written = report.zip(arguments.out.clone()).map(|(merged, out)| Written { out, merged });
    terminal.result(&Merged { written, comparison })
}

fn not_packed(option: &str) -> Error {
    Error::input(
        option,
        "the adapter was not trained over weights that burnish packed: there is one base to merge into",
    )
    .hint("name the quantisation of training with `--quant nf4` (or nf4-double, int8)")
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(comparison) = &self.comparison {
            write!(f, "{comparison}")?;
        }
        let Some(Written { out, merged: merge::Merged { report, agreement } }) = &self.written else { return Ok(()) };
        if self.comparison.is_some() {
            writeln!(f)?;
        }
        let MergeReport { modules, modules_changed, tensors, bytes, tensors_compared, max_difference, .. } = report;
        let megabytes = bytes / 1_000_000;
        write!(
            f,
            "{}: {tensors} tensors, {megabytes} MB, {modules_changed} modules changed; read back and compared \
             {tensors_compared}, greatest difference {max_difference:.1e}",
            out.display()
        )?;
        if let Some(agreement) = agreement {
            write!(f, "\n{agreement}")?;
        }
        match modules - modules_changed {
            0 => {}
            same if same == *modules => {
                write!(f, "\nthe adapter changes nothing: every weight equals the base's {} one", report.merged_into)?
            }
            same => write!(
                f,
                "\n{same} of the {modules} modules with a low-rank pair keep the base's values: their update is zero, or \
                 below the rounding of the type they are stored in"
            )?,
        }
        if report.untied_head {
            write!(f, "\nthe head is no longer tied to the embedding: the adapter changes it")?;
        }
        // The blocks of a base are its weights.
        if let Some(quant) = report.trained_over.filter(|quant| *quant != Quant::Keep.name()) {
            write!(
                f,
                "\nthe adapter was trained over {quant} weights; it was merged into the {} ones",
                report.merged_into
            )?;
        }
        Ok(())
    }
}
