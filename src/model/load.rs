//! From base files to a decoder: one tensor at a time, each put where the device wants it.

use std::sync::Arc;

use burn::tensor::{DType, Device};

use super::base::{BaseFiles, StoredWeight};
use super::config::{ModelConfig, RopeConfig};
use super::decoder::Decoder;
use super::rope::rope;
use super::spec::{LinearSpec, NormSpec};
use crate::error::{Error, Place, Result};
use crate::files::Dtype;
use crate::nn::block::{Build, Qkv};
use crate::nn::{Layer, Norm, Projection};
use crate::ops::attention::{Geometry, QkvLayout, Rope};
use crate::ops::frozen::FrozenWeight;
use crate::quant::nf4;
pub use crate::quant::{Compute, Quant};

/// The tensor format of the activations.
fn dtype(compute: Compute) -> DType {
    match compute {
        Compute::F32 => DType::F32,
        Compute::Bf16 => DType::BF16,
    }
}

/// How to load a base.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: Device,
    pub compute: Compute,
    pub quant: Quant,
}

impl LoadOptions {
    /// Whether the device can do this, as far as that does not depend on the base.
    ///
    /// # Errors
    /// Input: bf16 on a device without it; int8 anywhere but on the processor.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        if !self.device.supports_dtype(dtype(self.compute)) {
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

impl LoadOptions {
    /// Bytes that a tensor of `base` will take in memory.
    pub fn bytes_of(&self, base: &BaseFiles, name: &str) -> usize {
        let shape = base.shape(name).unwrap_or_default();
        let values: usize = shape.iter().product();
        let [rows, _] = *shape else { return 4 * values };
        let stored = base.dtype(name);
        let is_projection = base.is_projection(name);
        let is_nf4 = is_projection && (base.is_packed(name) || self.quant.nf4_double().is_some());
        if !is_nf4 && !is_processor(&self.device) {
            return 4 * values;
        }
        if base.is_packed(name) {
            return base.stored_bytes(name) + 4 * values / nf4::BLOCK;
        }
        if let Some(double) = self.quant.nf4_double().filter(|_| is_projection) {
            let blocks = values.div_ceil(nf4::BLOCK);
            let scales = if double { blocks + 4 * blocks.div_ceil(nf4::NESTED_BLOCK) } else { 4 * blocks };
            return nf4::packed_bytes(values) + scales;
        }
        match (self.quant, stored, self.compute) {
            (Quant::Int8, _, _) if is_projection => values + 4 * rows,
            (Quant::Keep, Some(Dtype::Block(_)), _) => base.stored_bytes(name),
            (_, Some(Dtype::Bf16), _) | (_, Some(Dtype::F16), Compute::F32) | (_, _, Compute::Bf16) => 2 * values,
            _ => 4 * values,
        }
    }
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
        let quant = if self.base.is_projection(name) || self.options.quant == Quant::Keep {
            self.options.quant
        } else {
            Quant::None
        };
        match stored {
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            stored if !is_processor(&self.options.device) => {
                let packed = stored.packed(&place, quant)?;
                elsewhere(packed, self.base.is_projection(name), quant, rows, columns, &self.options.device)
            }
            stored => place_matrix(&place, stored, quant, rows, columns, self.options.compute),
        }
    }
}

#[cfg(feature = "cpu")]
fn is_processor(device: &Device) -> bool {
    *device == Device::flex()
}

#[cfg(not(feature = "cpu"))]
fn is_processor(_: &Device) -> bool {
    false
}

#[cfg(feature = "cpu")]
fn place_matrix(
    place: &str,
    stored: StoredWeight,
    quant: Quant,
    rows: usize,
    columns: usize,
    compute: Compute,
) -> Result<FrozenWeight> {
    use crate::files::{Bytes, FloatType};
    use crate::ops::cpu::matrix::{Matrix, Storage};

    let storage = match stored.packed(place, quant)? {
        StoredWeight::Nf4(tensor) => Storage::Nf4(tensor),
        StoredWeight::Int8(tensor) => Storage::Int8(tensor),
        StoredWeight::Dense(raw) => {
            let encoded = |float_type| {
                let bytes = raw.encoded(float_type);
                raw.bytes.release();
                bytes.map(Bytes::from)
            };
            match (quant, raw.dtype, compute) {
                (Quant::Keep, Dtype::Block(block), _) => Storage::Blocks(block, raw.bytes.clone()),
                (_, Dtype::Bf16, _) => Storage::Bf16(raw.bytes.clone()),
                (_, Dtype::F32, Compute::F32) => Storage::F32(raw.bytes.clone()),
                (_, Dtype::F16, Compute::F32) => Storage::F16(raw.bytes.clone()),
                (_, _, Compute::F32) => Storage::F32(encoded(FloatType::F32)?),
                (_, _, Compute::Bf16) => Storage::Bf16(encoded(FloatType::Bf16)?),
            }
        }
    };
    Ok(FrozenWeight::from_matrix(Matrix::new(rows, columns, storage)))
}

#[cfg(not(feature = "cpu"))]
fn place_matrix(_: &str, _: StoredWeight, _: Quant, _: usize, _: usize, _: Compute) -> Result<FrozenWeight> {
    unreachable!("without the processor's kernels no device is the processor")
}

/// Int8 and GGUF blocks have kernels on the processor only.
fn only_on_the_processor() -> Error {
    Error::input(Place::setting("base.quant"), "int8 weights and GGUF blocks stay packed with `--device cpu` only")
        .hint("this device has `quant = \"nf4\"`, `\"nf4-double\"` and `\"none\"`, for a base that is not itself int8")
}

/// Any other device holds the layers' projections packed in NF4 or dense, and all else dense, in f32: rows of an
/// embedding are looked up, which a packed weight is slow at there.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn elsewhere(
    stored: StoredWeight,
    is_projection: bool,
    quant: Quant,
    rows: usize,
    columns: usize,
    device: &Device,
) -> Result<FrozenWeight> {
    match stored {
        StoredWeight::Nf4(tensor) if is_projection => Ok(FrozenWeight::from_nf4(&tensor, rows, columns, device)),
        StoredWeight::Int8(_) => Err(only_on_the_processor()),
        StoredWeight::Dense(raw) if quant == Quant::Keep && matches!(raw.dtype, Dtype::Block(_)) => {
            Err(only_on_the_processor())
        }
        stored => Ok(FrozenWeight::from_values(stored.to_f32()?, rows, columns, device)),
    }
}
