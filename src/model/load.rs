//! From base files to a decoder: one tensor at a time, each put where the device wants it.

use std::sync::Arc;

use burn::tensor::{DType, Device};

use super::base::BaseFiles;
use super::config::{ModelConfig, RopeConfig};
use super::decoder::Decoder;
use super::place::{Placing, only_on_the_processor};
use super::rope::rope;
use super::spec::{LinearSpec, NormSpec};
use crate::error::{Error, Place, Result};
use crate::nn::block::{Build, Qkv};
use crate::nn::{Layer, Norm, Projection};
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
    pub fn load(base: &BaseFiles, options: &LoadOptions, mut progress: impl FnMut(usize, usize)) -> Result<Self> {
        options.check()?;
        let compute = dtype(options.compute);
        let config = base.config().clone();
        let total = base.tensor_names().count();
        let mut done = 0;
        let mut loader = Loader {
            base,
            options,
            next_site: 0,
            advance: &mut || {
                done += 1;
                progress(done, total);
            },
        };
        let embedding = loader.weight(&config.embedding_name())?;
        let ropes = Ropes::new(&config);
        let layers = (0..config.layers).map(|layer| {
            let block = config.block(layer).build(&mut loader)?;
            let geometry = geometry(&config, &ropes, layer, &block.attention.qkv);
            Ok(Layer::new(block, geometry))
        });
        let layers = layers.collect::<Result<_>>()?;
        let norm = loader.norm(config.final_norm())?;
        let head = match config.tied_head {
            true => Projection { weight: embedding.clone(), bias: None, site: loader.next_site },
            false => loader.projection(config.head())?,
        };
        Ok(Self { config, device: options.device.clone(), compute, embedding, layers, norm, head })
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
    /// The number of the next projection.
    next_site: usize,
    advance: &'a mut dyn FnMut(),
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
        Ok(Norm { kind: spec.style.kind, weight, bias, eps: spec.eps })
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
        place.weight(stored, rows, columns)
    }
}
