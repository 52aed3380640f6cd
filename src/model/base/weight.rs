//! A base's weight: floats, GGUF blocks, or packed by bitsandbytes.

use crate::error::Result;
use crate::files::bitsandbytes::{Int8Tensor, Nf4Tensor};
use crate::files::{Dtype, RawTensor, hex};
use crate::quant::{Quant, float};

/// A weight in the form in which the base stores it.
#[derive(Debug, Clone)]
pub enum StoredWeight {
    /// Floats, or GGUF blocks.
    Dense(RawTensor),
    /// bitsandbytes' 4-bit format.
    Nf4(Nf4Tensor),
    /// bitsandbytes' 8-bit format.
    Int8(Int8Tensor),
}

/// The SHA-256 of the values that `quant` makes of a fixed matrix, by which one quantiser is told from another; `None` for a
/// scheme that packs nothing.
///
/// # Errors
/// Those of [`StoredWeight::packed`].
pub fn quantiser_sha256(quant: Quant) -> Result<Option<String>> {
    const SIDE: u64 = 128;
    if !quant.is_packing() {
        return Ok(None);
    }
    // Both signs, many magnitudes.
    let unit = |index: u64| (index * 2_654_435_761 % 65_521) as f32 / 65_521.0 - 0.5;
    let values: Vec<f32> = (0..SIDE * SIDE).map(|index| unit(index).powi(3)).collect();
    let bytes = float::encode_f32(&values).into();
    let matrix = RawTensor { dtype: Dtype::F32, shape: vec![SIDE as usize; 2], bytes };
    let packed = StoredWeight::Dense(matrix).packed("the fixed matrix", quant)?;
    Ok(Some(hex::sha256_of(&float::encode_f32(&packed.to_f32()?))))
}

impl StoredWeight {
    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Dense(tensor) => &tensor.shape,
            Self::Nf4(tensor) => &tensor.shape,
            Self::Int8(tensor) => &tensor.shape,
        }
    }

    /// Quantises a dense weight as `quant` says. Weights already packed, and all weights under a scheme that packs
    /// nothing, are returned unchanged. `place` names the weight in errors.
    ///
    /// # Errors
    /// Input: a value that is not finite; not a matrix.
    pub fn packed(self, place: &str, quant: Quant) -> Result<Self> {
        let Self::Dense(raw) = &self else { return Ok(self) };
        let packed = match quant {
            Quant::None | Quant::Keep => return Ok(self),
            Quant::Nf4 => Nf4Tensor::quantise(place, raw, false).map(Self::Nf4),
            Quant::Nf4Double => Nf4Tensor::quantise(place, raw, true).map(Self::Nf4),
            Quant::Int8 => Int8Tensor::quantise(place, raw).map(Self::Int8),
        };
        raw.bytes.release();
        packed
    }

    /// The weight as a dense tensor, packed ones decoded to `F32`.
    ///
    /// # Errors
    /// Input: bytes that do not fit the shape.
    pub fn into_dense(self) -> Result<RawTensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            packed => Ok(RawTensor {
                dtype: Dtype::F32,
                shape: packed.shape().to_vec(),
                bytes: float::encode_f32(&packed.to_f32()?).into(),
            }),
        }
    }

    /// Every value, decoded.
    ///
    /// # Errors
    /// Input: bytes that do not fit the shape.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self {
            Self::Dense(tensor) => tensor.to_f32(),
            Self::Nf4(tensor) => Ok(tensor.to_f32()),
            Self::Int8(tensor) => Ok(tensor.to_f32()),
        }
    }
}
