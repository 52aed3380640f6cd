//! The form in which a weight stays in memory, by device, quantisation and precision.

use super::base::{BaseFiles, StoredWeight};
use super::load::{LoadOptions, dtype};
use crate::error::{Error, Place, Result};
use crate::files::{Dtype, FloatType};
use crate::ops::frozen::FrozenWeight;
use crate::ops::is_processor;
use crate::quant::{Compute, Quant, nf4};

/// The form of a weight that is not packed, on the processor.
enum Dense {
    /// The bytes of the file: floats that the kernels read, or GGUF blocks that stay.
    AsStored,
    /// Encoded anew.
    Encoded(FloatType),
}

impl Dense {
    fn of(stored: Dtype, quant: Quant, compute: Compute) -> Self {
        match (quant, stored, compute) {
            (Quant::Keep, Dtype::Block(_), _) => Self::AsStored,
            (_, Dtype::Bf16, _) | (_, Dtype::F32 | Dtype::F16, Compute::F32) => Self::AsStored,
            (_, _, Compute::F32) => Self::Encoded(FloatType::F32),
            (_, _, Compute::Bf16) => Self::Encoded(FloatType::Bf16),
        }
    }
}

impl LoadOptions {
    /// Bytes that a tensor of `base` will take in memory.
    pub fn bytes_of(&self, base: &BaseFiles, name: &str) -> usize {
        let shape = base.shape(name).unwrap_or_default();
        let values: usize = shape.iter().product();
        let [rows, _] = *shape else { return 4 * values };
        let is_projection = base.is_projection(name);
        let is_nf4 = is_projection && (base.is_packed(name) || self.quant.nf4_double().is_some());
        if !is_nf4 && !is_processor(&self.device) {
            return dtype(self.compute).size() * values;
        }
        if base.is_packed(name) {
            return base.stored_bytes(name) + base.stored_scale_bytes(name);
        }
        if let Some(double) = self.quant.nf4_double().filter(|_| is_projection) {
            let blocks = values.div_ceil(nf4::BLOCK);
            let scales = if double { blocks + 4 * blocks.div_ceil(nf4::NESTED_BLOCK) } else { 4 * blocks };
            return nf4::packed_bytes(values) + scales;
        }
        if self.quant == Quant::Int8 && is_projection {
            return values + 4 * rows;
        }
        match Dense::of(base.dtype(name).unwrap_or(Dtype::F32), self.quant, self.compute) {
            Dense::AsStored => base.stored_bytes(name),
            Dense::Encoded(float_type) => float_type.dtype().bytes_of(&[values]).unwrap_or(0),
        }
    }
}

impl LoadOptions {
    /// Of [`Self::bytes_of`], the bytes that are read where they lie in the mapped file. Those of vectors are not.
    pub fn mapped_bytes_of(&self, base: &BaseFiles, name: &str) -> usize {
        let is_matrix = base.shape(name).is_some_and(|shape| shape.len() == 2);
        if !is_matrix || !is_processor(&self.device) || !base.is_mapped(name) {
            return 0;
        }
        let (is_packed, is_projection) = (base.is_packed(name), base.is_projection(name));
        match base.dtype(name) {
            // The scales of rows are copied.
            _ if is_packed && base.storage_name(name).as_deref() == Some("INT8") => base.stored_bytes(name),
            _ if is_packed => self.bytes_of(base, name),
            _ if is_projection && self.quant.is_packing() => 0,
            Some(stored) if matches!(Dense::of(stored, self.quant, self.compute), Dense::AsStored) => {
                base.stored_bytes(name)
            }
            _ => 0,
        }
    }
}

/// A weight on its way to the device.
pub(super) struct Placing<'a> {
    /// The weight's name in errors.
    pub place: &'a str,
    /// Whether it is the weight of a layer's projection, which quantisation packs.
    pub is_projection: bool,
    /// Device, precision and quantisation.
    pub options: &'a LoadOptions,
}

impl Placing<'_> {
    /// The weight where the device wants it.
    ///
    /// # Errors
    /// Input: a value that is not finite; int8 or GGUF blocks that would stay packed anywhere but on the processor.
    pub fn weight(&self, stored: StoredWeight, rows: usize, columns: usize) -> Result<FrozenWeight> {
        let keeps_blocks = self.options.quant == Quant::Keep;
        let quant = if self.is_projection || keeps_blocks { self.options.quant } else { Quant::None };
        let packed = stored.packed(self.place, quant)?;
        if is_processor(&self.options.device) {
            return on_processor(packed, quant, self.options.compute, rows, columns);
        }
        self.on_gpu(packed, quant, rows, columns)
    }

    /// A GPU holds the layers' projections packed in NF4 or dense, and all else dense, in the precision of the activations:
    /// rows of an embedding are looked up, which a packed weight is slow at there.
    fn on_gpu(&self, packed: StoredWeight, quant: Quant, rows: usize, columns: usize) -> Result<FrozenWeight> {
        match packed {
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            StoredWeight::Nf4(tensor) if self.is_projection => {
                Ok(FrozenWeight::from_nf4(&tensor, rows, columns, &self.options.device))
            }
            StoredWeight::Int8(_) => Err(only_on_the_processor()),
            StoredWeight::Dense(raw) if quant == Quant::Keep && matches!(raw.dtype, Dtype::Block(_)) => {
                Err(only_on_the_processor())
            }
            stored => {
                let LoadOptions { device, compute, .. } = self.options;
                Ok(FrozenWeight::from_values(stored.to_f32()?, rows, columns, device, dtype(*compute)))
            }
        }
    }
}

#[cfg(feature = "cpu")]
fn on_processor(
    packed: StoredWeight,
    quant: Quant,
    compute: Compute,
    rows: usize,
    columns: usize,
) -> Result<FrozenWeight> {
    use crate::ops::cpu::matrix::{Matrix, Storage};

    let storage = match packed {
        StoredWeight::Nf4(tensor) => Storage::Nf4(tensor),
        StoredWeight::Int8(tensor) => Storage::Int8(tensor),
        StoredWeight::Dense(raw) => {
            let (dtype, bytes) = match Dense::of(raw.dtype, quant, compute) {
                Dense::AsStored => (raw.dtype, raw.bytes.clone()),
                Dense::Encoded(float_type) => {
                    let bytes = raw.encoded(float_type)?.into();
                    raw.bytes.release();
                    (float_type.dtype(), bytes)
                }
            };
            match dtype {
                Dtype::Block(block) => Storage::Blocks(block, bytes),
                Dtype::Bf16 => Storage::Bf16(bytes),
                Dtype::F16 => Storage::F16(bytes),
                _ => Storage::F32(bytes),
            }
        }
    };
    Ok(FrozenWeight::from_matrix(Matrix::new(rows, columns, storage)))
}

#[cfg(not(feature = "cpu"))]
fn on_processor(_: StoredWeight, _: Quant, _: Compute, _: usize, _: usize) -> Result<FrozenWeight> {
    unreachable!("without the processor's kernels no device is the processor")
}

/// Int8 and GGUF blocks have kernels on the processor only.
pub(super) fn only_on_the_processor() -> Error {
    Error::input(Place::setting("base.quant"), "int8 weights and GGUF blocks stay packed with `--device cpu` only")
        .hint("this device has `quant = \"nf4\"`, `\"nf4-double\"` and `\"none\"`, for a base that is not itself int8")
}
