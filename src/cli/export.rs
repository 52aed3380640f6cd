//! `burnish export`: writes a model, or an adapter, for other programs.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Global;
use super::model::{Comparison, ImportanceMatrix, Model};
use super::terminal::Terminal;
use crate::adapter::host::HostAdapter;
use crate::adapter::merge::MergeBase;
use crate::bytes::Size;
use crate::error::{Error, Place, Result, counted};
use crate::export::{ExportOptions, ExportReport, GgufType};
use crate::run::{self, OpenBase};

/// Write a model for other programs, such as llama.cpp, with an adapter folded in if there is one
#[derive(Debug, Args)]
#[command(after_help = "Of a base in GGUF, metadata and tokenizer are carried over, and every tensor keeps its type \
                        unless --type gives another.")]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The format
    #[arg(long, value_enum, value_name = "FORMAT")]
    format: Format,
    /// The file to write, or the folder for Ollama or mlx-lm; it must not exist
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Type of the weights [default: as in the base; f32 for a base that bitsandbytes packed]
    #[arg(long = "type", value_enum, value_name = "TYPE")]
    gguf_type: Option<GgufType>,
    #[command(flatten)]
    importance: ImportanceMatrix,
    #[command(flatten)]
    comparison: Comparison,
    /// Split a file that would be larger, as 2GiB, 500MB or a number of bytes
    #[arg(long, value_name = "SIZE")]
    split_size: Option<Size>,
}

/// The format of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A GGUF file, for llama.cpp and what builds on it
    Gguf,
    /// The adapter alone, for llama.cpp's own file of the base
    GgufLora,
    /// A folder with a GGUF file and a Modelfile, for Ollama
    Ollama,
    /// The adapter alone as a folder for mlx-lm
    Mlx,
}

/// The file that was written.
#[derive(Debug, Serialize)]
pub(super) struct Exported {
    out: PathBuf,
    #[serde(flatten)]
    exported: run::export::Exported,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let (base, adapter) = arguments.model.open(terminal)?;
    let quant = arguments.model.choice().quant(&base, adapter.as_ref())?;
    let weights = if quant.is_packing() { MergeBase::Dequantized(quant) } else { MergeBase::Original };
    let split_bytes = arguments.split_size.map(|size| size.0);
    let options = ExportOptions { weights, gguf_type: arguments.gguf_type, split_bytes };
    let Arguments { model, comparison, out, .. } = arguments;
    let exported = match (arguments.format, &adapter) {
        (Format::Gguf | Format::Ollama, adapter) => {
            let adapter = adapter.as_ref();
            let importance = arguments.importance.importance(model, &base, adapter, &options, global)?;
            let examination = comparison.examination(model, &base, adapter, global, terminal)?;
            let write = if arguments.format == Format::Gguf { run::export::gguf } else { run::export::ollama };
            write(&base, adapter, out, &options, importance.as_ref(), examination)?
        }
        (Format::GgufLora, Some(adapter)) => arguments.alone("gguf-lora", &base, adapter, run::export::gguf_lora)?,
        (Format::Mlx, Some(adapter)) => arguments.alone("mlx", &base, adapter, run::export::mlx)?,
        (Format::GgufLora | Format::Mlx, None) => {
            return Err(Error::input(Place::argument("--adapter"), "is missing")
                .hint("name the adapter's folder, as `--adapter adapters/my-run`"));
        }
    };
    Exported::at(out, exported).print(&base, terminal)
}

impl Arguments {
    /// Has `write` write the adapter without its base.
    fn alone(
        &self,
        format: &str,
        base: &OpenBase,
        adapter: &HostAdapter,
        write: fn(&OpenBase, &HostAdapter, &Path) -> Result<ExportReport>,
    ) -> Result<run::export::Exported> {
        let given = [
            ("--type", self.gguf_type.is_some()),
            ("--split-size", self.split_size.is_some()),
            ("--data", self.comparison.data.is_some()),
            ("--imatrix", self.importance.imatrix.is_some()),
        ];
        let errors = given.into_iter().filter(|(_, is_given)| *is_given).map(|(argument, _)| {
            Error::input(
                Place::argument(argument),
                format!("does not go with `--format {format}`, which is one small file of weights in f32"),
            )
        });
        Error::none_of(errors.collect(), ())?;
        let report = write(base, adapter, &self.out)?;
        Ok(run::export::Exported { report, agreement: None })
    }
}

impl Exported {
    /// The export that was written to `out`.
    pub(super) fn at(out: &Path, exported: run::export::Exported) -> Self {
        Self { out: out.to_owned(), exported }
    }

    /// The remarks on stderr, the result on stdout.
    pub(super) fn print(&self, base: &OpenBase, terminal: &Terminal) -> Result<()> {
        self.exported.report.notices.iter().for_each(|notice| terminal.message(notice));
        base.parts_beside_the_decoder().into_iter().for_each(|notice| terminal.message(notice));
        terminal.result(self)
    }
}

impl fmt::Display for Exported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ExportReport { files, tensors, formats, bytes, modules, untied_head, .. } = &self.exported.report;
        let formats: Vec<String> = formats.iter().map(|(format, count)| format!("{count} {format}")).collect();
        let megabytes = bytes / 1_000_000;
        write!(f, "{}: ", self.out.display())?;
        if files.len() > 1 {
            write!(f, "{}, ", counted(files.len(), "file"))?;
        }
        write!(f, "{} ({}), {megabytes} MB", counted(*tensors, "tensor"), formats.join(", "))?;
        if *modules > 0 {
            write!(f, ", with the adapter's {}", counted(*modules, "module"))?;
        }
        write!(f, "; read back and compared")?;
        if let Some(agreement) = &self.exported.agreement {
            write!(f, "\n{agreement}")?;
        }
        if *untied_head {
            write!(f, "\nthe head is no longer tied to the embedding: the adapter changes it")?;
        }
        Ok(())
    }
}
