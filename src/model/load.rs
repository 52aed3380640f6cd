//! From base files to a decoder: one tensor at a time, each put where the device wants it.

use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use super::base::BaseFiles;
use super::config::{ModelConfig, RopeConfig};
use super::decoder::Decoder;
use super::place::{Placing, only_on_the_processor};
use super::rope::rope;
use super::spec::{LinearSpec, NormSpec};
use super::vision::{Features, features};
use crate::error::{Error, Place, Result};
use crate::files::FloatType;
use crate::files::fetch::Fetcher;
use crate::nn::block::{Build, Qkv};
use crate::nn::{Adapter, Layer, Norm, Observer, Pass, Projection};
use crate::ops::attention::{Geometry, QkvLayout, Rope};
use crate::ops::frozen::FrozenWeight;
use crate::ops::is_processor;
pub use crate::quant::{Compute, Quant};

/// The tensor format of the activations.
pub(super) fn dtype(compute: Compute) -> DType {
    match compute {
        Compute::F32 => DType::F32,
        Compute::Bf16 => DType::BF16,
    }
}

/// The number format of the activations in files and in estimates of memory.
pub fn float_type(compute: Compute) -> FloatType {
    match compute {
        Compute::F32 => FloatType::F32,
        Compute::Bf16 => FloatType::Bf16,
    }
}

/// The options of loading a base.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// The device that the weights are placed on.
    pub device: Device,
    /// Precision of the frozen products and of the activations.
    pub compute: Compute,
    /// The form of the weights in memory.
    pub quant: Quant,
}

impl LoadOptions {
    /// Whether the device can do this, as far as that does not depend on the base.
    ///
    /// # Errors
    /// Input: bf16 on a device without it; int8 anywhere but on the processor.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        if !computes_in(&self.device, self.compute) {
            problems.push(
                Error::input(Place::setting("base.compute"), "this device does not compute in bf16")
                    .hint("set `compute = \"f32\"` under [base]"),
            );
        }
        if self.quant == Quant::Int8 && !is_processor(&self.device) {
            problems.push(only_on_the_processor());
        }
        Error::none_of(problems, ())
    }
}

/// Whether `device` computes in this precision.
pub fn computes_in(device: &Device, compute: Compute) -> bool {
    device.supports_dtype(dtype(compute))
}

impl Decoder {
    /// Loads a base. Calls `progress(done, total)` after each tensor.
    ///
    /// # Errors
    /// Input: a tensor that cannot be read, or that holds a value that is not finite; what [`LoadOptions::check`] says; a
    /// weight that would stay in int8 or GGUF blocks anywhere but on the processor.
    pub fn load(base: &BaseFiles, options: &LoadOptions, progress: impl FnMut(usize, usize)) -> Result<Self> {
        Self::load_with(base, options, false, progress)
    }

    /// [`Self::load`] for a model that need not fit into memory: weights that lie in the base's files as the kernels read them are
    /// read from there whenever a layer is needed, and let go after it.
    ///
    /// # Errors
    /// Those of [`Self::load`]; the system starts no thread.
    pub fn load_streamed(base: &BaseFiles, options: &LoadOptions, progress: impl FnMut(usize, usize)) -> Result<Self> {
        let started = Fetcher::start();
        let fetcher =
            started.map_err(|error| Error::failed(base.path().display(), format!("no thread to read it: {error}")))?;
        let mut decoder = Self::load_with(base, options, true, progress)?;
        decoder.fetcher = Some(fetcher);
        Ok(decoder)
    }

    fn load_with(
        base: &BaseFiles,
        options: &LoadOptions,
        releases: bool,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<Self> {
        options.check()?;
        let total = base.tensor_names().count();
        let mut done = 0;
        let mut advance = || {
            done += 1;
            progress(done, total);
        };
        let mut loader = Loader { releases, ..Loader::new(base, options, &mut advance) };
        let mut decoder = loader.ends()?;
        decoder.layers = (0..base.config().layers).map(|layer| loader.layer(layer)).collect::<Result<_>>()?;
        Ok(decoder)
    }

    /// Runs texts through a base of which one layer at a time is in memory, once with each of `adapters`, and hands the
    /// logits to `visit`: the first position, and `[positions, vocabulary]` for each of `adapters`, at most `rows` positions at
    /// once. The values are those of [`Self::logits`].
    ///
    /// # Shapes
    /// - `ids`: `[tokens]`, texts of these `lengths` end to end
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn stream_logits(
        base: &BaseFiles,
        options: &LoadOptions,
        (ids, lengths): (&[u32], &[usize]),
        adapters: &[Option<&Adapter>],
        rows: usize,
        visit: &mut dyn FnMut(usize, &[Vec<f32>]),
    ) -> Result<()> {
        let passes: Vec<Pass<'_>> =
            adapters.iter().map(|adapter| Pass { adapter: *adapter, ..Pass::default() }).collect();
        let (decoder, hidden) = Self::stream(base, options, (ids, lengths), &passes)?;
        for first in (0..ids.len()).step_by(rows.max(1)) {
            let count = rows.max(1).min(ids.len() - first);
            let logits = hidden.iter().zip(&passes).map(|(x, pass)| {
                let logits = decoder.head_logits(x.clone().narrow(0, first, count), pass);
                logits.cast(DType::F32).into_data().iter::<f32>().collect()
            });
            visit(first, &logits.collect::<Vec<Vec<f32>>>());
        }
        base.release();
        Ok(())
    }

    /// Runs texts through the layers of a base, of which one at a time is in memory; `observer` gets the inputs of their
    /// projections.
    ///
    /// # Shapes
    /// - `ids`: `[tokens]`, texts of these `lengths` end to end
    ///
    /// # Errors
    /// Those of [`Self::load`].
    pub fn stream_inputs(
        base: &BaseFiles,
        options: &LoadOptions,
        texts: (&[u32], &[usize]),
        adapter: Option<&Adapter>,
        observer: &dyn Observer,
    ) -> Result<()> {
        let pass = Pass { adapter, observer: Some(observer), noise: None };
        Self::stream(base, options, texts, &[pass]).map(drop)
    }

    /// The model without its layers, and the hidden states of the texts after them, of each pass.
    fn stream(
        base: &BaseFiles,
        options: &LoadOptions,
        (ids, lengths): (&[u32], &[usize]),
        passes: &[Pass<'_>],
    ) -> Result<(Self, Vec<Tensor<2>>)> {
        options.check()?;
        if features::has_features(ids) {
            return Err(Error::input(
                base.path().display(),
                "is run a layer at a time, without the pictures of the examples",
            )
            .hint("give examples without pictures"));
        }
        let mut advance = || {};
        let mut loader = Loader::new(base, options, &mut advance);
        let decoder = loader.ends()?;
        let mut hidden: Vec<Tensor<2>> = passes.iter().map(|pass| decoder.embed(ids, lengths, pass)).collect();
        for layer in 0..base.config().layers {
            let layer = loader.layer(layer)?;
            hidden = hidden.into_iter().zip(passes).map(|(x, pass)| layer.forward(x, lengths, pass)).collect();
            drop(layer);
            base.release();
        }
        Ok((decoder, hidden))
    }
}

/// The rotary embeddings of a model, each made once.
struct Ropes<'a> {
    made: Vec<(&'a RopeConfig, Arc<Rope>)>,
}

impl<'a> Ropes<'a> {
    fn new(config: &'a ModelConfig) -> Self {
        let configs = std::iter::once(&config.rope).chain(&config.local_rope);
        Self { made: configs.map(|config| (config, Arc::new(rope(config)))).collect() }
    }

    fn of(&self, config: &RopeConfig) -> Option<Arc<Rope>> {
        self.made.iter().find(|(made, _)| *made == config).map(|(_, rope)| rope.clone())
    }
}

/// The shape of attention in a layer.
fn geometry(config: &ModelConfig, ropes: &Ropes<'_>, layer: usize, qkv: &Qkv<Projection>) -> Geometry {
    let usual = Geometry::new(config.heads, config.kv_heads, config.head_dim);
    Geometry {
        scale: config.attention_multiplier.map_or(usual.scale, |scale| scale as f32),
        softcap: config.attention_softcap.map(|cap| cap as f32),
        window: config.window_of(layer),
        rope: config.rope_of(layer).and_then(|rope| ropes.of(rope)),
        layout: match qkv {
            Qkv::Separate(_) | Qkv::Fused(_) => QkvLayout::SideBySide,
            Qkv::FusedByHead(_) => QkvLayout::ByHead,
        },
        ..usual
    }
}

struct Loader<'a> {
    base: &'a BaseFiles,
    options: &'a LoadOptions,
    ropes: Ropes<'a>,
    /// The number of the next projection.
    next_site: usize,
    /// The number of the next norm.
    next_norm: usize,
    /// Whether the memory of mapped weights is returned once they are checked.
    releases: bool,
    /// Called after each tensor.
    advance: &'a mut dyn FnMut(),
}

impl<'a> Loader<'a> {
    fn new(base: &'a BaseFiles, options: &'a LoadOptions, advance: &'a mut dyn FnMut()) -> Self {
        Self {
            base,
            options,
            ropes: Ropes::new(base.config()),
            next_site: 0,
            next_norm: base.config().sites().len(),
            releases: false,
            advance,
        }
    }

    /// The model without its layers. Its head is numbered after the sites in them, its norm after theirs.
    fn ends(&mut self) -> Result<Decoder> {
        let config = self.base.config();
        let embedding = self.weight(&config.embedding_name())?;
        if !config.tied_head {
            // Of a mapped file, the rows of a step's tokens are read.
            embedding.release();
        }
        let norm = Norm { number: config.decoder_modules().len() - 1, ..self.norm(config.final_norm())? };
        // The embedding is the last site.
        let site = config.sites().len() - 2;
        let head = match config.tied_head {
            true => Projection { weight: embedding.clone(), bias: None, site },
            false => Projection { site, ..self.projection(config.head())? },
        };
        (self.next_site, self.next_norm) = (0, config.sites().len());
        let (config, device) = (config.clone(), self.options.device.clone());
        let (compute, layers, features) = (dtype(self.options.compute), Vec::new(), Features::default());
        Ok(Decoder { config, device, compute, embedding, features, layers, norm, head, fetcher: None })
    }

    /// The next layer, which has this number.
    fn layer(&mut self, layer: usize) -> Result<Layer> {
        let config = self.base.config();
        let block = config.block(layer).build(self)?;
        let geometry = geometry(config, &self.ropes, layer, &block.attention.qkv);
        Ok(Layer::new(block, geometry))
    }
}

impl Build<LinearSpec, NormSpec> for Loader<'_> {
    type Projection = Projection;
    type Norm = Norm;
    type Error = Error;

    fn projection(&mut self, spec: LinearSpec) -> Result<Projection> {
        let site = self.next_site;
        self.next_site += 1;
        Ok(Projection {
            weight: self.weight(&format!("{}.weight", spec.module))?,
            bias: spec.bias.then(|| self.vector(&format!("{}.bias", spec.module))).transpose()?,
            site,
        })
    }

    fn norm(&mut self, spec: NormSpec) -> Result<Norm> {
        let mut weight = self.vector(&format!("{}.weight", spec.module))?;
        if spec.style.offset != 0.0 {
            weight.iter_mut().for_each(|value| *value += spec.style.offset);
        }
        let bias = spec.style.bias.then(|| self.vector(&format!("{}.bias", spec.module))).transpose()?;
        let number = self.next_norm;
        self.next_norm += 1;
        Ok(Norm { kind: spec.style.kind, weight, offset: spec.style.offset, bias, eps: spec.eps, number })
    }
}

impl Loader<'_> {
    fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let values = self.base.tensor(name)?.to_f32()?;
        (self.advance)();
        Ok(values)
    }

    fn weight(&mut self, name: &str) -> Result<FrozenWeight> {
        let stored = self.base.weight(name)?;
        (self.advance)();
        let place = format!("{}: tensor {name}", self.base.path().display());
        let &[rows, columns] = stored.shape() else {
            return Err(Error::input(place, "is not a matrix"));
        };
        let place = Placing { place: &place, is_projection: self.base.is_projection(name), options: self.options };
        let weight = place.weight(stored, rows, columns)?;
        if self.releases {
            weight.release();
        }
        Ok(weight)
    }
}
