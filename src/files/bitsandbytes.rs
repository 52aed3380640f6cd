//! Weights that bitsandbytes quantised, kept packed: NF4 (plain and double-quantised) and row-wise int8.
//!
//! In a safetensors file a 4-bit weight `<w>` is several tensors (bitsandbytes `QuantState.as_dict`):
//! `<w>` packed codes, `<w>.absmax` block scales, `<w>.quant_map` the code table,
//! `<w>.quant_state.bitsandbytes__nf4` JSON with shape and block size, and for double quantisation
//! `<w>.nested_absmax` and `<w>.nested_quant_map`. An 8-bit `<m>.weight` has `<m>.SCB` beside it.

mod read;
mod write;

use std::sync::Arc;

use rayon::prelude::*;

use super::safetensors::SafeTensorsFile;
use super::{Bytes, Floats, PIECE, RawTensor};
use crate::error::{Error, Result};
use crate::quant::{int8, nf4};

pub use read::{read_int8, read_nf4};
pub use write::{Part, quantization_config};

const STATE: &str = ".quant_state.";
const NF4_STATE: &str = ".quant_state.bitsandbytes__nf4";
/// Suffixes of the tensors that belong to a 4-bit weight.
const PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];

/// A weight in NF4. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Nf4Tensor {
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Number of values that share a scale.
    pub block: usize,
    /// The codes, two a byte, the first in the high nibble.
    pub packed: Bytes,
    /// The scales of the blocks.
    pub scales: Nf4Scales,
}

/// Block scales of an [`Nf4Tensor`].
#[derive(Debug, Clone)]
pub enum Nf4Scales {
    /// Plain: one scale per block.
    Single(Floats),
    /// Double quantisation: a scale is `map[code] * absmax + offset`.
    Nested {
        /// One per block.
        codes: Bytes,
        /// One per `block` codes.
        absmax: Arc<[f32]>,
        /// Number of codes that share an `absmax`.
        block: usize,
        /// The mean of the scales, subtracted before they were quantised.
        offset: f32,
        /// The value of each code.
        map: Arc<[f32; 256]>,
    },
}

impl Nf4Scales {
    /// The scale of block `index`.
    #[inline(always)]
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Self::Single(scales) => scales[index],
            Self::Nested { codes, absmax, block, offset, map } => {
                nf4::nested_scale(codes, absmax, map, *block, *offset, index)
            }
        }
    }

    /// One value or code for each block, as it is stored.
    pub fn stored(&self) -> &Bytes {
        match self {
            Self::Single(scales) => scales.bytes(),
            Self::Nested { codes, .. } => codes,
        }
    }

    /// Bytes that the scales take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Single(scales) => 4 * scales.len(),
            Self::Nested { codes, absmax, .. } => codes.len() + 4 * absmax.len(),
        }
    }
}

impl Nf4Tensor {
    /// Quantises `raw`, with nested scales where `double`; a piece at a time is decoded. A value that is not finite is
    /// an error naming `place`.
    pub fn quantise(place: &str, raw: &RawTensor, double: bool) -> Result<Self> {
        const _: () = assert!(PIECE.is_multiple_of(nf4::BLOCK));
        raw.check_size()?;
        let count = raw.elements();
        let mut packed = vec![0; nf4::packed_bytes(count)];
        let mut scales = vec![0.0; count.div_ceil(nf4::BLOCK)];
        let pieces = packed.par_chunks_mut(PIECE / 2).zip(scales.par_chunks_mut(PIECE / nf4::BLOCK));
        let finite = pieces.enumerate().map(|(piece, (packed, scales))| {
            let mut values = vec![0.0; PIECE.min(count - piece * PIECE)];
            raw.decode(piece * PIECE, &mut values);
            nf4::quantise(&values, packed, scales);
            values.iter().all(|value| value.is_finite())
        });
        if !finite.reduce(|| true, |all, one| all && one) {
            return Err(Error::input(place, "holds a value that is infinite or not a number"));
        }
        let scales = if double { nested(&scales) } else { Nf4Scales::Single(scales.into()) };
        Ok(Self { shape: raw.shape.clone(), block: nf4::BLOCK, packed: packed.into(), scales })
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that the codes and scales take.
    pub fn bytes(&self) -> usize {
        self.packed.len() + self.scales.bytes()
    }

    /// Decodes the values `first..first + out.len()`, which must lie inside the tensor.
    #[inline(always)]
    pub fn decode(&self, first: usize, out: &mut [f32]) {
        nf4::decode(&self.packed, self.block, |block| self.scales.get(block), first, out);
    }

    /// Every value.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements()];
        self.decode(0, &mut values);
        values
    }
}

fn nested(scales: &[f32]) -> Nf4Scales {
    let nested = nf4::quantise_scales(scales);
    Nf4Scales::Nested {
        codes: nested.codes.into(),
        absmax: nested.absmax.into(),
        block: nf4::NESTED_BLOCK,
        offset: nested.offset,
        map: Arc::new(nf4::DYNAMIC_MAP),
    }
}

/// A weight in row-wise int8. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Int8Tensor {
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// A signed byte per value.
    pub codes: Bytes,
    /// The largest magnitude of each row.
    pub row_absmax: Arc<[f32]>,
}

impl Int8Tensor {
    /// Quantises a matrix, decoded a row at a time. A value that is not finite is an error naming `place`, as is a
    /// tensor that is no matrix.
    pub fn quantise(place: &str, raw: &RawTensor) -> Result<Self> {
        raw.check_size()?;
        let &[rows, columns] = raw.shape.as_slice() else { return Err(Error::input(place, "is not a matrix")) };
        let mut codes = vec![0u8; raw.elements()];
        let row_absmax: Vec<f32> = codes
            .par_chunks_mut(columns.max(1))
            .enumerate()
            .map(|(row, codes)| {
                let mut values = vec![0.0; columns];
                raw.decode(row * columns, &mut values);
                let finite = values.iter().all(|value| value.is_finite());
                if finite { int8::quantise_row(&values, bytemuck::cast_slice_mut(codes)) } else { f32::NAN }
            })
            .collect();
        if row_absmax.iter().any(|absmax| absmax.is_nan()) {
            return Err(Error::input(place, "holds a value that is infinite or not a number"));
        }
        Ok(Self { shape: [rows, columns], codes: codes.into(), row_absmax: row_absmax.into() })
    }

    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape[0] * self.shape[1]
    }

    /// Bytes that the codes and scales take.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.row_absmax.len()
    }

    /// Decodes row `row` into `out`, as long as a row.
    #[inline(always)]
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let columns = self.shape[1];
        int8::decode_row(&self.codes[row * columns..(row + 1) * columns], self.row_absmax[row], out);
    }

    /// Every value.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements()];
        for (row, out) in values.chunks_exact_mut(self.shape[1].max(1)).enumerate() {
            self.decode_row(row, out);
        }
        values
    }
}

/// The storage of a weight in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// One dense tensor.
    Dense,
    /// NF4 codes with block scales.
    FourBit,
    /// int8 values with row scales.
    EightBit,
}

/// The storage of the weight of this name in `file`, judged by the tensors beside it.
pub fn storage(file: &SafeTensorsFile, weight: &str) -> Storage {
    let has_state = file.names_from(&format!("{weight}{STATE}")).next().is_some();
    if has_state || PARTS.iter().any(|part| file.has(&format!("{weight}{part}"))) {
        Storage::FourBit
    } else if row_scales_name(weight).is_some_and(|name| file.has(&name)) {
        Storage::EightBit
    } else {
        Storage::Dense
    }
}

/// The tensor with the scales of a packed weight: one value or code for each block, or one for each row; `None` for a dense
/// weight.
pub fn scales_name(file: &SafeTensorsFile, weight: &str) -> Option<String> {
    match storage(file, weight) {
        Storage::Dense => None,
        Storage::FourBit => Some(format!("{weight}.absmax")),
        Storage::EightBit => row_scales_name(weight),
    }
}

/// The weight that a tensor is a part of, where its name says that it is one: `<w>` of `<w>.absmax`,
/// `<m>.weight` of `<m>.SCB`.
pub fn weight_of_part(name: &str) -> Option<String> {
    if let Some((weight, _)) = name.split_once(STATE) {
        return Some(weight.to_owned());
    }
    if let Some(weight) = PARTS.iter().find_map(|part| name.strip_suffix(part)) {
        return Some(weight.to_owned());
    }
    let module = name.strip_suffix(".SCB").or_else(|| name.strip_suffix(".weight_format"))?;
    Some(format!("{module}.weight"))
}

fn row_scales_name(weight: &str) -> Option<String> {
    weight.strip_suffix(".weight").map(|module| format!("{module}.SCB"))
}
