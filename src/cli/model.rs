//! The arguments that name a model, shared by the commands that run one.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::adapter::host::HostAdapter;
use crate::device;
use crate::error::Result;
use crate::quant::{Compute, Quant};
use crate::run::OpenBase;
use crate::run::merge::Hardware;
use crate::run::model::{LoadedModel, ModelChoice};

/// A base and perhaps an adapter.
#[derive(Debug, Args)]
pub(super) struct Model {
    /// The base: smollm2-135m-instruct, hf:ORG/REPO, a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "BASE")]
    pub(super) base: String,
    /// An adapter folder in PEFT's format
    #[arg(long, value_name = "DIR")]
    pub(super) adapter: Option<PathBuf>,
    /// Precision of the frozen matrix products [default: as the adapter was trained; without one, f32; for answers bf16, with
    /// activations in int8 where the weights are quantised]
    #[arg(long, value_enum, value_name = "TYPE")]
    compute: Option<Compute>,
    /// Quantisation of the frozen weights in memory [default: as the adapter was trained; without one, none; for answers the
    /// blocks of a GGUF file]
    #[arg(long, value_enum, value_name = "SCHEME")]
    quant: Option<Quant>,
    /// Use the adapter although it was trained on another base
    #[arg(long)]
    pub(super) force: bool,
}

impl Model {
    /// The model that the arguments name.
    pub(super) fn choice(&self) -> ModelChoice {
        let Self { base, adapter, compute, quant, force } = self;
        ModelChoice { base: base.clone(), adapter: adapter.clone(), compute: *compute, quant: *quant, force: *force }
    }

    /// Opens the base and the adapter; their weights are not loaded yet.
    pub(super) fn open(&self, terminal: &Terminal) -> Result<(OpenBase, Option<HostAdapter>)> {
        self.choice().open(&mut TrainProgress::new(terminal))
    }

    /// Loads everything.
    pub(super) fn load(&self, global: &Global, terminal: &Terminal) -> Result<LoadedModel> {
        self.choice().load(&global.device, &mut TrainProgress::new(terminal))
    }

    /// Loads everything for answers.
    pub(super) fn load_for_answers(&self, global: &Global, terminal: &Terminal) -> Result<LoadedModel> {
        self.choice().load_for_answers(&global.device, &mut TrainProgress::new(terminal))
    }

    /// The device and precision to examine a written model with: exact, unless an argument says otherwise.
    pub(super) fn examination(&self, global: &Global) -> Result<Hardware> {
        Ok(Hardware { compute: self.compute.unwrap_or(Compute::F32), device: device::open(&global.device)? })
    }

    /// The device and precision to compute with.
    pub(super) fn hardware(&self, adapter: Option<&HostAdapter>, global: &Global) -> Result<Hardware> {
        let device = device::open(&global.device)?;
        Ok(Hardware { compute: self.choice().compute(adapter, &device)?, device })
    }
}
