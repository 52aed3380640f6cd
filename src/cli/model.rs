//! The arguments that name a model, shared by the commands that run one.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::progress::{Counter, Downloads};
use super::terminal::Terminal;
use crate::adapter::host::HostAdapter;
use crate::device;
use crate::error::{Place, Result, printable};
use crate::model::Decoder;
use crate::quant::{Compute, Quant};
use crate::run::merge::Hardware;
use crate::run::{OpenAdapter, OpenBase};

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
    /// Quantisation of the frozen weights in memory [default: as the adapter was trained; without one, none]
    #[arg(long, value_enum, value_name = "SCHEME")]
    quant: Option<Quant>,
    /// Use the adapter although it was trained on another base
    #[arg(long)]
    pub(super) force: bool,
}

/// A model ready to run.
pub(super) struct Ready {
    pub(super) base: OpenBase,
    pub(super) adapter: Option<HostAdapter>,
    pub(super) decoder: Decoder,
    pub(super) quant: Quant,
}

impl Model {
    /// Opens the base and the adapter; their weights are not loaded yet.
    pub(super) fn open(&self, terminal: &Terminal) -> Result<(OpenBase, Option<HostAdapter>)> {
        let mut downloads = Downloads::new(terminal);
        let mut base = OpenBase::open(&self.base, &mut |event| downloads.show(event))?;
        let Some(folder) = &self.adapter else { return Ok((base, None)) };
        let OpenAdapter { adapter, notices } = OpenAdapter::open(folder, &mut base, self.force)?;
        notices.iter().for_each(|notice| terminal.message(printable(notice)));
        Ok((base, Some(adapter)))
    }

    /// Loads everything.
    pub(super) fn load(&self, global: &Global, terminal: &Terminal) -> Result<Ready> {
        let device = device::open(&global.device)?;
        let (base, adapter) = self.open(terminal)?;
        let quant = self.quant(&base, adapter.as_ref())?;
        let mut loading = Counter::of_loading(terminal);
        let decoder = base.load(&device, self.compute(), quant, |done, total| loading.show(done, total))?;
        Ok(Ready { base, adapter, decoder, quant })
    }

    /// The device and precision to compute with.
    pub(super) fn hardware(&self, global: &Global) -> Result<Hardware> {
        Ok(Hardware { device: device::open(&global.device)?, compute: self.compute() })
    }

    /// The precision asked for.
    pub(super) fn compute(&self) -> Compute {
        self.compute
    }

    /// The scheme asked for, or else the one that the adapter was trained over.
    pub(super) fn quant(&self, base: &OpenBase, adapter: Option<&HostAdapter>) -> Result<Quant> {
        if let Some(quant) = self.quant {
            base.check_quant(Place::argument("--quant"), quant)?;
            return Ok(quant);
        }
        let trained_over = adapter
            .map(HostAdapter::trained_over)
            .transpose()
            .map_err(|error| error.within(self.adapter.as_ref().map_or(Place::Nowhere, Place::file)))?;
        let trained_over = trained_over.flatten();
        Ok(match trained_over {
            // The scheme keeps blocks of a GGUF file, and this base is no GGUF file.
            Some(Quant::Keep) if !base.files.is_gguf() => Quant::None,
            Some(quant) => quant,
            None => Quant::None,
        })
    }
}
