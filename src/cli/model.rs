//! The arguments that name a model, shared by the commands that run one.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::Global;
use super::progress::Downloads;
use super::terminal::Terminal;
use crate::adapter::file::{HostAdapter, provenance};
use crate::device;
use crate::error::{Error, Result};
use crate::model::Decoder;
use crate::model::load;
use crate::run::OpenBase;

/// A base and perhaps an adapter.
#[derive(Debug, Args)]
pub(super) struct Model {
    /// The base: smollm2-135m-instruct, hf:ORG/REPO, a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "BASE")]
    pub(super) base: String,
    /// An adapter folder in PEFT's format
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Precision of the frozen matrix products
    #[arg(long, value_enum, default_value_t = Compute::F32, value_name = "TYPE")]
    compute: Compute,
    /// How the frozen weights are kept in memory
    #[arg(long, value_enum, default_value_t = Quant::None, value_name = "SCHEME")]
    quant: Quant,
    /// Use the adapter though it says that it belongs to another base
    #[arg(long)]
    pub(super) force: bool,
}

/// Precision of the frozen matrix products.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Compute {
    /// Exact
    F32,
    /// Faster; f32 sums
    Bf16,
}

/// How the frozen weights are kept in memory.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Quant {
    /// As floats
    None,
    /// The blocks of a GGUF file as they are
    Keep,
    /// 4-bit NormalFloat
    Nf4,
    /// 4-bit NormalFloat with quantised scales
    Nf4Double,
    /// 8-bit, one scale a row
    Int8,
}

/// A model ready to run.
pub(super) struct Ready {
    pub(super) base: OpenBase,
    pub(super) adapter: Option<HostAdapter>,
    pub(super) decoder: Decoder,
}

impl Model {
    /// Opens the base and the adapter; their weights are not loaded yet.
    pub(super) fn open(&self, terminal: &Terminal) -> Result<(OpenBase, Option<HostAdapter>)> {
        let mut downloads = Downloads::new(terminal);
        let base = OpenBase::open(&self.base, &mut |event| downloads.show(event))?;
        let adapter = match &self.adapter {
            Some(folder) => Some(HostAdapter::load_for(folder, base.files.config())?),
            None => None,
        };
        if let (Some(adapter), Some(folder), false) = (&adapter, &self.adapter, self.force)
            && let Some(expected) = adapter.metadata.get(provenance::BASE_SHA256)
            && *expected != base.files.content_hash()?
        {
            let message = format!("was trained on another base ({} differs)", provenance::BASE_SHA256);
            return Err(Error::input(folder.display(), message).hint("`--force` uses it all the same"));
        }
        Ok((base, adapter))
    }

    /// Loads everything.
    pub(super) fn load(&self, global: &Global, terminal: &Terminal) -> Result<Ready> {
        let device = device::open(&global.device)?;
        let (base, adapter) = self.open(terminal)?;
        let compute = match self.compute {
            Compute::F32 => load::Compute::F32,
            Compute::Bf16 => load::Compute::Bf16,
        };
        let quant = match self.quant {
            Quant::None => load::Quant::None,
            Quant::Keep => load::Quant::Keep,
            Quant::Nf4 => load::Quant::Nf4 { double: false },
            Quant::Nf4Double => load::Quant::Nf4 { double: true },
            Quant::Int8 => load::Quant::Int8,
        };
        let decoder = base.load(&device, compute, quant)?;
        Ok(Ready { base, adapter, decoder })
    }
}
