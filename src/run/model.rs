//! A model by name, ready to run: a base and perhaps an adapter, as evaluation and generation use them.

use std::path::PathBuf;

use burn::tensor::Device;

use super::adapter::OpenAdapter;
use super::base::OpenBase;
use super::watch::Watch;
use crate::adapter::host::HostAdapter;
use crate::device::{self, DeviceChoice};
use crate::error::{Place, Result};
use crate::model::Decoder;
use crate::model::load::{LoadOptions, computes_in};
use crate::nn::Adapter;
use crate::ops::is_processor;
use crate::quant::{Compute, Quant};

/// A base and perhaps an adapter, by name, and how their weights are held.
#[derive(Debug, Clone)]
pub struct ModelChoice {
    /// A known name, `hf:org/repo`, a Hugging Face folder or a `.gguf` file.
    pub base: String,
    /// The folder of an adapter in PEFT's format.
    pub adapter: Option<PathBuf>,
    /// Precision of the frozen products; `None` for that of the adapter's training, or else f32.
    pub compute: Option<Compute>,
    /// Quantisation of the frozen weights in memory; `None` for that of the adapter's training, or else none.
    pub quant: Option<Quant>,
    /// Use the adapter although it was trained on another base.
    pub force: bool,
}

/// A base and perhaps an adapter, on a device.
pub struct LoadedModel {
    /// The base with its tokenizer.
    pub base: OpenBase,
    /// The weights of the base.
    pub decoder: Decoder,
    /// The adapter as its file has it.
    pub adapter: Option<HostAdapter>,
    /// The adapter on the device.
    pub attached: Option<Adapter>,
    /// How the weights are held.
    pub quant: Quant,
    /// The precision of the products.
    pub compute: Compute,
}

impl LoadedModel {
    /// Shows the decoder the pictures that the encoder has met since it was loaded.
    ///
    /// # Errors
    /// Those of [`OpenBase::show_pictures`].
    pub fn show_pictures(&self, watch: &mut dyn Watch) -> Result<()> {
        let (device, compute, quant) = (self.decoder.device().clone(), self.compute, self.quant);
        let options = LoadOptions { device, compute, quant };
        self.base.show_pictures(&self.decoder, &options, &mut |done, total| watch.loading(done, total))
    }
}

impl ModelChoice {
    /// The base alone, in the default form.
    pub fn base(name: impl Into<String>) -> Self {
        Self { base: name.into(), adapter: None, compute: None, quant: None, force: false }
    }

    /// The same base with an adapter.
    pub fn with_adapter(self, folder: impl Into<PathBuf>) -> Self {
        Self { adapter: Some(folder.into()), ..self }
    }

    /// Opens the base and the adapter, which gives text; their weights are not loaded yet.
    ///
    /// # Errors
    /// Those of [`OpenBase::open`], [`OpenAdapter::open`] and [`HostAdapter::check_gives_text`].
    pub fn open(&self, watch: &mut dyn Watch) -> Result<(OpenBase, Option<HostAdapter>)> {
        let (base, adapter) = self.open_of_any_task(watch)?;
        if let (Some(folder), Some(adapter)) = (&self.adapter, &adapter) {
            adapter.check_gives_text(folder)?;
        }
        Ok((base, adapter))
    }

    /// [`Self::open`], whether the adapter gives text or labels.
    fn open_of_any_task(&self, watch: &mut dyn Watch) -> Result<(OpenBase, Option<HostAdapter>)> {
        let mut base = OpenBase::open(&self.base, &mut |event| watch.pull(event))?;
        let Some(folder) = &self.adapter else { return Ok((base, None)) };
        let OpenAdapter { adapter, notices } = OpenAdapter::open(folder, &mut base, self.force)?;
        notices.iter().for_each(|notice| watch.notice(notice));
        Ok((base, Some(adapter)))
    }

    /// Opens and loads everything, whether the adapter gives text or labels.
    ///
    /// # Errors
    /// Those of [`OpenBase::open`], [`OpenAdapter::open`], of the device and of loading; the base cannot be held as asked for.
    pub fn load(&self, choice: &DeviceChoice, watch: &mut dyn Watch) -> Result<LoadedModel> {
        let device = device::open(choice)?;
        let (base, adapter) = self.open_of_any_task(watch)?;
        let form = (self.quant(&base, adapter.as_ref())?, self.compute(adapter.as_ref(), &device)?);
        place(base, adapter, form, &device, watch)
    }

    /// Opens and loads everything for answers, in the fast form unless another one is asked for: on the processor bf16, and the
    /// blocks of a GGUF file as they are.
    ///
    /// # Errors
    /// Those of [`Self::load`] and [`HostAdapter::check_gives_text`].
    pub fn load_for_answers(&self, choice: &DeviceChoice, watch: &mut dyn Watch) -> Result<LoadedModel> {
        let device = device::open(choice)?;
        let (base, adapter) = self.open(watch)?;
        let (quant, compute) = (self.quant(&base, adapter.as_ref())?, self.compute(adapter.as_ref(), &device)?);
        let form = self.form_for_answers(&base, quant, compute, &device);
        place(base, adapter, form, &device, watch)
    }

    /// The fast form where nobody asked for another one; `quant` and `compute` are what is used otherwise.
    pub(super) fn form_for_answers(
        &self,
        base: &OpenBase,
        quant: Quant,
        compute: Compute,
        device: &Device,
    ) -> (Quant, Compute) {
        if !is_processor(device) {
            return (quant, compute);
        }
        let compute = self.compute.unwrap_or(Compute::Bf16);
        let is_fast = compute == Compute::Bf16 && base.files.is_gguf();
        match quant {
            Quant::None if self.quant.is_none() && is_fast => (Quant::Keep, compute),
            // The scheme keeps blocks of a GGUF file, and this base is no GGUF file.
            Quant::Keep if !base.files.is_gguf() => (Quant::None, compute),
            quant => (quant, compute),
        }
    }

    /// The precision asked for, or else that of the adapter's training, or else f32, as where `device` lacks what nobody asked for.
    ///
    /// # Errors
    /// Input: the adapter names a precision that this program does not know.
    pub fn compute(&self, adapter: Option<&HostAdapter>, device: &Device) -> Result<Compute> {
        let of_adapter = || adapter.map(HostAdapter::trained_in).transpose().map(Option::flatten);
        let of_adapter = || of_adapter().map_err(|error| error.within(self.adapter_place()));
        if let Some(compute) = self.compute {
            return Ok(compute);
        }
        let usual = of_adapter()?.unwrap_or(Compute::F32);
        Ok(if computes_in(device, usual) { usual } else { Compute::F32 })
    }

    /// The scheme asked for, or else the one that the adapter was trained over.
    ///
    /// # Errors
    /// Input: the base cannot be held so; the adapter names a scheme that this program does not know.
    pub fn quant(&self, base: &OpenBase, adapter: Option<&HostAdapter>) -> Result<Quant> {
        if let Some(quant) = self.quant {
            base.check_quant(Place::argument("--quant"), quant)?;
            return Ok(quant);
        }
        let trained_over = adapter.map(HostAdapter::trained_over).transpose();
        Ok(match trained_over.map_err(|error| error.within(self.adapter_place()))?.flatten() {
            // The scheme keeps blocks of a GGUF file, and this base is no GGUF file.
            Some(Quant::Keep) if !base.files.is_gguf() => Quant::None,
            Some(quant) => quant,
            None => Quant::None,
        })
    }

    fn adapter_place(&self) -> Place {
        self.adapter.as_ref().map_or(Place::Nowhere, Place::file)
    }
}

/// Loads the weights.
fn place(
    base: OpenBase,
    adapter: Option<HostAdapter>,
    (quant, compute): (Quant, Compute),
    device: &Device,
    watch: &mut dyn Watch,
) -> Result<LoadedModel> {
    let options = LoadOptions { device: device.clone(), compute, quant };
    let decoder = base.load(&options, |done, total| watch.loading(done, total))?;
    if let Some(adapter) = &adapter {
        base.keep_vision(&decoder, &options, adapter)?;
    }
    let attached = adapter.as_ref().map(|adapter| adapter.attach(decoder.config(), device)).transpose()?;
    Ok(LoadedModel { base, decoder, adapter, attached, quant, compute })
}
