//! The arguments that name a model, shared by the commands that run one.

use std::path::PathBuf;

use clap::Args;

use super::Global;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::adapter::host::HostAdapter;
use crate::adapter::peft::PeftConfig;
use crate::data::{Columns, Shape};
use crate::device;
use crate::error::{Error, Place, Result};
use crate::export::{ExportOptions, GgufType, Importance};
use crate::generate::engine::{EngineOptions, Precision};
use crate::model::Decoder;
use crate::ops::attention::CacheFormat;
use crate::ops::is_processor;
use crate::quant::{Compute, Quant};
use crate::run::model::{LoadedModel, ModelChoice};
use crate::run::named::{AdapterFolder, NamedModels};
use crate::run::verify::{Examination, Hardware, Texts};
use crate::run::{OpenBase, export};

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

    /// Whether the adapter is a classifier; false where it cannot be read, which opening it reports.
    pub(super) fn is_classifier(&self) -> bool {
        self.adapter.as_ref().is_some_and(|folder| PeftConfig::read(folder).is_ok_and(|config| config.is_classifier))
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

    /// The device and the precision to examine a model with: exact, unless an argument says otherwise.
    fn exact_hardware(&self, global: &Global) -> Result<Hardware> {
        Ok(Hardware { compute: self.compute.unwrap_or(Compute::F32), device: device::open(&global.device)? })
    }

    /// The device and precision to compute with.
    pub(super) fn hardware(&self, adapter: Option<&HostAdapter>, global: &Global) -> Result<Hardware> {
        let device = device::open(&global.device)?;
        Ok(Hardware { compute: self.choice().compute(adapter, &device)?, device })
    }
}

/// The form in which a base and its adapters by name are held to answer.
#[derive(Debug, Args)]
pub(super) struct NamedForm {
    /// Precision of the frozen matrix products [default: bf16, with activations in int8 where the weights
    /// are quantised]
    #[arg(long, value_enum, value_name = "TYPE")]
    compute: Option<Compute>,
    /// Quantisation of the frozen weights in memory [default: as the adapters were trained, if they agree; or
    /// else the blocks of a GGUF file]
    #[arg(long, value_enum, value_name = "SCHEME")]
    quant: Option<Quant>,
    /// Use adapters although they were trained on another base
    #[arg(long)]
    force: bool,
}

impl NamedForm {
    /// Loads the base and the adapters.
    pub(super) fn load(
        &self,
        base: &str,
        adapters: &[AdapterFolder],
        global: &Global,
        terminal: &Terminal,
    ) -> Result<NamedModels> {
        let Self { compute, quant, force } = *self;
        let choice = ModelChoice { base: base.to_owned(), adapter: None, compute, quant, force };
        NamedModels::load(&choice, adapters, &global.device, &mut TrainProgress::new(terminal))
    }
}

/// The form of an engine's memory.
#[derive(Debug, Args)]
pub(super) struct EngineForm {
    /// Number format of the keys and values in memory; int8 takes about half as much as bf16 [default: bf16, with `--compute f32`
    /// f32]
    #[arg(long, value_enum, value_name = "TYPE")]
    cache: Option<CacheFormat>,
}

impl EngineForm {
    /// The options of an engine for `decoder`, without a limit of its cache.
    pub(super) fn options(&self, decoder: &Decoder, compute: Compute) -> Result<EngineOptions> {
        match self.cache {
            Some(cache) if !is_processor(decoder.device()) => {
                Err(Error::input(Place::argument("--cache"), format!("is {cache}; only the processor has a choice"))
                    .hint("leave it out: on other devices keys and values are in f32"))
            }
            cache => Ok(EngineOptions { cache, ..EngineOptions::unbounded(Precision::of(compute)) }),
        }
    }
}

/// The importance matrix of a quantised file.
#[derive(Debug, Args)]
pub(super) struct ImportanceMatrix {
    /// Make quantised blocks by an importance matrix: measured on the examples of this data file, the training data best, or
    /// llama.cpp's own file of one (.gguf)
    #[arg(long, value_name = "FILE")]
    pub(super) imatrix: Option<PathBuf>,
}

impl ImportanceMatrix {
    /// The matrix, if one is asked for.
    pub(super) fn importance(
        &self,
        model: &Model,
        base: &OpenBase,
        adapter: Option<&HostAdapter>,
        options: &ExportOptions,
        global: &Global,
    ) -> Result<Option<Importance>> {
        let Some(path) = &self.imatrix else { return Ok(None) };
        if !options.gguf_type.is_some_and(GgufType::takes_importance) {
            let found = options.gguf_type.map_or("no `--type`".to_owned(), |gguf_type| format!("`--type {gguf_type}`"));
            return Err(Error::input(Place::argument("--imatrix"), format!("makes no difference with {found}"))
                .hint("q4_0, q4_1, q5_0, q5_1, q4_k_m, q5_k_m and q6_k take one"));
        }
        let hardware = model.exact_hardware(global)?;
        export::importance(base, adapter, options.weights.quant(), &hardware, path).map(Some)
    }
}

/// The comparison of a written model with base and adapter.
#[derive(Debug, Args)]
pub(super) struct Comparison {
    /// Do not run the written model on texts to compare it with base and adapter
    #[arg(long)]
    no_verify: bool,
    /// The data file to compare on, in any of the shapes that train reads [default: the validation examples of the adapter's
    /// run, or else built-in texts]
    #[arg(long, value_name = "FILE")]
    pub(super) data: Option<PathBuf>,
    /// Other names of its keys, as `[data.columns]` maps them: prompt=question,completion=answer
    #[arg(long, requires = "data", value_name = "KEY=NAME,...")]
    pub(super) columns: Option<Columns>,
}

impl Comparison {
    /// The examination of a model that is written from `base` and `adapter`, unless there is none.
    pub(super) fn examination(
        &self,
        model: &Model,
        base: &OpenBase,
        adapter: Option<&HostAdapter>,
        global: &Global,
        terminal: &Terminal,
    ) -> Result<Option<Examination>> {
        if self.no_verify {
            return Ok(None);
        }
        let hardware = model.exact_hardware(global)?;
        let texts = match (&self.data, adapter.zip(model.adapter.as_deref())) {
            (Some(data), _) => Texts::of_data(&base.encoder, data, Shape::with_columns(self.columns.as_ref()))?,
            (None, Some((adapter, folder))) => {
                let (texts, notice) = Texts::of_run(&base.encoder, folder, adapter)?;
                notice.into_iter().for_each(|notice| terminal.message(notice));
                texts
            }
            (None, None) => Texts::built_in(&base.encoder)?,
        };
        Ok(Some(Examination { hardware, texts }))
    }
}
