//! From base files to a decoder: one tensor at a time, each put where the device wants it.

use std::sync::Arc;

use burn::tensor::{DType, Device};

use super::base::{BaseFiles, StoredWeight};
use super::config::ModelConfig;
use super::decoder::{Decoder, SITES_PER_LAYER, geometry, rope};
use super::names;
use crate::error::{Error, Place, Result};
use crate::files::Dtype;
use crate::nn::{Layer, Projection};
use crate::ops::attention::Rope;
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
        let is_projection = names::is_projection(name);
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
    /// Loads a base. `progress` is told (tensors done, tensors in all).
    ///
    /// # Errors
    /// A tensor that cannot be read, or that holds a value that is not finite; what [`LoadOptions::check`] says; a
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
            config: &config,
            rope: Arc::new(rope(&config)),
            advance: &mut || {
                done += 1;
                progress(done, total);
            },
        };
        let embedding = loader.weight(names::EMBEDDING)?;
        let layers = (0..config.layers).map(|layer| loader.layer(layer)).collect::<Result<_>>()?;
        let norm = loader.vector(names::FINAL_NORM)?;
        let head = if config.tied_head { embedding.clone() } else { loader.weight(names::HEAD)? };
        let head = Projection { weight: head, bias: None, site: config.layers * SITES_PER_LAYER };
        Ok(Self { config, device: options.device.clone(), compute, embedding, layers, norm, head })
    }
}

struct Loader<'a> {
    base: &'a BaseFiles,
    options: &'a LoadOptions,
    config: &'a ModelConfig,
    rope: Arc<Rope>,
    advance: &'a mut dyn FnMut(),
}

impl Loader<'_> {
    fn layer(&mut self, layer: usize) -> Result<Layer> {
        let modules = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"];
        let mlp = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"];
        let mut projections = modules.iter().chain(&mlp).enumerate().map(|(index, module)| {
            let bias = names::layer(layer, module, "bias");
            Ok(Projection {
                weight: self.weight(&names::layer(layer, module, "weight"))?,
                bias: if self.base.has(&bias) { Some(self.vector(&bias)?) } else { None },
                site: layer * SITES_PER_LAYER + index,
            })
        });
        let mut next = || projections.next().unwrap_or_else(|| unreachable!("seven projections a layer"));
        let (q, k, v, o) = (next()?, next()?, next()?, next()?);
        let (gate, up, down) = (next()?, next()?, next()?);
        drop(projections);
        Ok(Layer {
            attention_norm: self.vector(&names::layer(layer, "input_layernorm", "weight"))?,
            q,
            k,
            v,
            o,
            mlp_norm: self.vector(&names::layer(layer, "post_attention_layernorm", "weight"))?,
            gate,
            up,
            down,
            norm_eps: self.config.norm_eps,
            geometry: geometry(self.config, &self.rope, layer),
        })
    }

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
        let quant = if names::is_projection(name) || self.options.quant == Quant::Keep {
            self.options.quant
        } else {
            Quant::None
        };
        match stored {
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            stored if !is_processor(&self.options.device) => {
                let packed = stored.packed(&place, quant)?;
                elsewhere(packed, names::is_projection(name), quant, rows, columns, &self.options.device)
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
