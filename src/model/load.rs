//! From base files to a decoder: one tensor at a time, each put where the device wants it.

use burn::tensor::{DType, Device};

use super::base::BaseFiles;
use super::config::ModelConfig;
use super::decoder::{Decoder, SITES_PER_LAYER, geometry};
use super::names;
use crate::error::{Error, Result};
use crate::files::{Dtype, RawTensor};
use crate::nn::{Layer, Projection};
use crate::ops::frozen::FrozenWeight;

/// Precision of the frozen products and of the activations. Adapters are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compute {
    F32,
    Bf16,
}

/// What becomes of the base's weights in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quant {
    /// As stored if dense; GGUF blocks are decoded.
    None,
    /// GGUF blocks stay as they are.
    Keep,
}

/// How to load a base.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    pub device: Device,
    pub compute: Compute,
    pub quant: Quant,
}

impl Decoder {
    /// Loads a base. `progress` is told (tensors done, tensors in all).
    ///
    /// # Errors
    /// A tensor that cannot be read, or that holds a value that is not finite; bf16 on a device without it.
    pub fn load(base: &BaseFiles, options: &LoadOptions, mut progress: impl FnMut(usize, usize)) -> Result<Self> {
        let compute = match options.compute {
            Compute::F32 => DType::F32,
            Compute::Bf16 => DType::BF16,
        };
        if !options.device.supports_dtype(compute) {
            return Err(Error::input("base.compute", "this device does not compute in bf16")
                .hint("set `compute = \"f32\"` under [base]"));
        }
        let config = base.config().clone();
        let total = base.tensor_names().count();
        let mut done = 0;
        let mut loader = Loader {
            base,
            options,
            config: &config,
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
        let geometry = geometry(&config);
        Ok(Self { config, device: options.device.clone(), compute, embedding, layers, norm, head, geometry })
    }
}

struct Loader<'a> {
    base: &'a BaseFiles,
    options: &'a LoadOptions,
    config: &'a ModelConfig,
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
        })
    }

    fn vector(&mut self, name: &str) -> Result<Vec<f32>> {
        let values = self.base.tensor(name)?.to_f32()?;
        (self.advance)();
        Ok(values)
    }

    fn weight(&mut self, name: &str) -> Result<FrozenWeight> {
        let raw = self.base.tensor(name)?;
        (self.advance)();
        let &[rows, columns] = raw.shape.as_slice() else {
            return Err(Error::input(format!("{}: tensor {name}", self.base.path().display()), "is not a matrix"));
        };
        place(raw, rows, columns, self.options)
    }
}

#[cfg(feature = "cpu")]
fn place(raw: RawTensor, rows: usize, columns: usize, options: &LoadOptions) -> Result<FrozenWeight> {
    use crate::files::Bytes;
    use crate::ops::cpu::matrix::{Matrix, Storage};
    use crate::quant::float;

    if options.device != Device::flex() {
        return elsewhere(&raw, rows, columns, options);
    }
    let storage = match (raw.dtype, options.compute, options.quant) {
        (Dtype::Block(block), _, Quant::Keep) => Storage::Blocks(block, raw.bytes),
        (Dtype::Bf16, _, _) => Storage::Bf16(raw.bytes),
        (Dtype::F32, Compute::F32, _) => Storage::F32(raw.bytes),
        (Dtype::F16, Compute::F32, _) => Storage::F16(raw.bytes),
        (_, Compute::F32, _) => Storage::F32(Bytes::from(float::encode_f32(&raw.to_f32()?))),
        (_, Compute::Bf16, _) => Storage::Bf16(Bytes::from(float::encode_bf16(&raw.to_f32()?))),
    };
    Ok(FrozenWeight::from_matrix(Matrix::new(rows, columns, storage)))
}

#[cfg(not(feature = "cpu"))]
fn place(raw: RawTensor, rows: usize, columns: usize, options: &LoadOptions) -> Result<FrozenWeight> {
    elsewhere(&raw, rows, columns, options)
}

/// Any other device holds dense f32 tensors.
fn elsewhere(raw: &RawTensor, rows: usize, columns: usize, options: &LoadOptions) -> Result<FrozenWeight> {
    if matches!((raw.dtype, options.quant), (Dtype::Block(_), Quant::Keep)) {
        return Err(Error::input("base.quant", "blocks that stay packed need `--device cpu`"));
    }
    Ok(FrozenWeight::from_values(raw.to_f32()?, rows, columns, &options.device))
}
