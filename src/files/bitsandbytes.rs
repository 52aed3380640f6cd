//! Weights that bitsandbytes quantised, kept packed: NF4 (plain and double-quantised) and row-wise int8.
//!
//! In a safetensors file a 4-bit weight `<w>` is several tensors (bitsandbytes `QuantState.as_dict`):
//! `<w>` packed codes, `<w>.absmax` block scales, `<w>.quant_map` the code table,
//! `<w>.quant_state.bitsandbytes__nf4` JSON with shape and block size, and for double quantisation
//! `<w>.nested_absmax` and `<w>.nested_quant_map`. An 8-bit `<m>.weight` has `<m>.SCB` beside it.

use std::sync::Arc;

use serde_json::Value;

use super::safetensors::SafeTensorsFile;
use super::{Bytes, Dtype, RawTensor, json};
use crate::error::{Error, Result};
use crate::quant::{int8, nf4};

const STATE: &str = ".quant_state.";
const NF4_STATE: &str = ".quant_state.bitsandbytes__nf4";
/// What may stand behind a 4-bit weight's name.
const PARTS: [&str; 4] = [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
const BLOCK_SIZES: [u64; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// A weight in NF4. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Nf4Tensor {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Values that share a scale.
    pub block: usize,
    /// Two codes a byte, the first in the high nibble.
    pub packed: Bytes,
    pub scales: Nf4Scales,
}

/// Block scales of an [`Nf4Tensor`].
#[derive(Debug, Clone)]
pub enum Nf4Scales {
    /// One per block.
    Single(Arc<[f32]>),
    /// `map[code] * absmax + offset`.
    Nested {
        /// One per block.
        codes: Bytes,
        /// One per `block` codes.
        absmax: Arc<[f32]>,
        block: usize,
        offset: f32,
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

    /// Bytes that the scales take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Single(scales) => 4 * scales.len(),
            Self::Nested { codes, absmax, .. } => codes.len() + 4 * absmax.len(),
        }
    }
}

impl Nf4Tensor {
    /// Quantises `values` of this shape, with nested scales where `double`. A value that is not finite is
    /// an error naming `place`.
    pub fn quantise(place: &str, shape: &[usize], values: &[f32], double: bool) -> Result<Self> {
        if shape.iter().product::<usize>() != values.len() {
            return Err(Error::input(place, format!("{} values do not fit shape {shape:?}", values.len())));
        }
        let mut packed = vec![0; nf4::packed_bytes(values.len())];
        let mut scales = vec![0.0; values.len().div_ceil(nf4::BLOCK)];
        quantise_parallel(values, &mut packed, &mut scales);
        if scales.iter().any(|scale| !scale.is_finite()) || values.iter().any(|value| value.is_nan()) {
            return Err(Error::input(place, "holds a value that is infinite or not a number"));
        }
        let scales = if double { nested(&scales) } else { Nf4Scales::Single(scales.into()) };
        Ok(Self { shape: shape.to_vec(), block: nf4::BLOCK, packed: packed.into(), scales })
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

/// [`nf4::quantise`] in pieces of whole blocks.
fn quantise_parallel(values: &[f32], packed: &mut [u8], scales: &mut [f32]) {
    use rayon::prelude::*;
    const BLOCKS: usize = 1024;
    let pieces = values.par_chunks(BLOCKS * nf4::BLOCK);
    let packed = packed.par_chunks_mut(BLOCKS * nf4::BLOCK / 2);
    let scales = scales.par_chunks_mut(BLOCKS);
    pieces.zip(packed).zip(scales).for_each(|((values, packed), scales)| nf4::quantise(values, packed, scales));
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
    /// Quantises `values` of shape `[rows, columns]`. A value that is not finite is an error naming `place`.
    pub fn quantise(place: &str, shape: [usize; 2], values: &[f32]) -> Result<Self> {
        use rayon::prelude::*;
        let [rows, columns] = shape;
        if rows * columns != values.len() || columns == 0 {
            return Err(Error::input(place, format!("{} values do not fit shape {shape:?}", values.len())));
        }
        let mut codes = vec![0u8; values.len()];
        let row_absmax: Vec<f32> = codes
            .par_chunks_mut(columns)
            .zip(values.par_chunks(columns))
            .map(|(codes, row)| {
                let finite = row.iter().all(|value| value.is_finite());
                if finite { int8::quantise_row(row, bytemuck::cast_slice_mut(codes)) } else { f32::NAN }
            })
            .collect();
        if row_absmax.iter().any(|absmax| absmax.is_nan()) {
            return Err(Error::input(place, "holds a value that is infinite or not a number"));
        }
        Ok(Self { shape, codes: codes.into(), row_absmax: row_absmax.into() })
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

/// How a weight is stored in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    Dense,
    FourBit,
    EightBit,
}

/// How `file` stores the weight of this name, judging by what lies beside it.
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

/// Reads a row-wise int8 weight.
pub fn read_int8(file: &SafeTensorsFile, weight: &str) -> Result<Int8Tensor> {
    let problem = |message: String| Error::input(format_args!("{}: tensor {weight}", file.place()), message);
    let codes = file.tensor(weight)?;
    let (Dtype::I8, &[rows, columns]) = (codes.dtype, codes.shape.as_slice()) else {
        return Err(problem(format!("is {} of shape {:?}; an 8-bit weight is I8 [out, in]", codes.dtype, codes.shape)));
    };
    let scales_name = row_scales_name(weight).unwrap_or_default();
    let row_absmax = scales(file, &scales_name, rows)?;
    Ok(Int8Tensor { shape: [rows, columns], codes: codes.bytes, row_absmax })
}

/// Reads a 4-bit weight. Every contradiction between its parts is an error naming the part.
pub fn read_nf4(file: &SafeTensorsFile, weight: &str) -> Result<Nf4Tensor> {
    let problem = |message: String| Error::input(format_args!("{}: tensor {weight}", file.place()), message);
    let state = State::read(file, weight)?;
    check_code_table(file, weight)?;
    let values = state.shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size));
    let values = values.ok_or_else(|| problem(format!("has the impossible shape {:?}", state.shape)))?;
    let packed = file.tensor(weight)?.bytes;
    if packed.len() != nf4::packed_bytes(values) {
        let message = format!("{} bytes of codes; shape {:?} needs {}", packed.len(), state.shape, values.div_ceil(2));
        return Err(problem(message));
    }
    let blocks = values.div_ceil(state.block);
    let absmax = format!("{weight}.absmax");
    let scales = match state.nested {
        None => Nf4Scales::Single(scales(file, &absmax, blocks)?),
        Some((block, offset)) => {
            let codes = part(file, &absmax)?;
            if codes.dtype != Dtype::U8 || codes.elements() != blocks {
                let message = format!("{} {} values; nested scales are {blocks} of U8", codes.elements(), codes.dtype);
                return Err(Error::input(format_args!("{}: tensor {absmax}", file.place()), message));
            }
            let nested = self::scales(file, &format!("{weight}.nested_absmax"), blocks.div_ceil(block))?;
            let map = nested_map(file, &format!("{weight}.nested_quant_map"))?;
            Nf4Scales::Nested { codes: codes.bytes, absmax: nested, block, offset, map }
        }
    };
    Ok(Nf4Tensor { shape: state.shape, block: state.block, packed, scales })
}

/// The JSON beside a 4-bit weight.
struct State {
    shape: Vec<usize>,
    block: usize,
    /// Block size and offset of nested scales.
    nested: Option<(usize, f32)>,
}

impl State {
    fn read(file: &SafeTensorsFile, weight: &str) -> Result<Self> {
        let problem = |message: String| Error::input(format_args!("{}: tensor {weight}", file.place()), message);
        let prefix = format!("{weight}{STATE}");
        let states: Vec<&str> = file.names_from(&prefix).collect();
        let name = match states.as_slice() {
            [one] if one.ends_with(NF4_STATE) => (*one).to_owned(),
            [other] => return Err(problem(format!("is quantised as {other}; supported is bitsandbytes__nf4"))),
            [] => return Err(problem(format!("has scales but no `{weight}{NF4_STATE}`"))),
            several => return Err(problem(format!("has {} quantisation states; expected one", several.len()))),
        };
        let place = format!("{}: tensor {name}", file.place());
        let state = json::parse(&place, &part(file, &name)?.bytes)?;
        Self::from_json(&place, &state).and_then(|state| state.check_nesting(file, weight))
    }

    fn from_json(place: &str, state: &Value) -> Result<Self> {
        let problem = |message: String| Error::input(place, message);
        let field = |name: &str| state.get(name).filter(|value| !value.is_null());
        if field("quant_type").and_then(Value::as_str) != Some("nf4") {
            return Err(problem("`quant_type` is not \"nf4\"".to_owned()));
        }
        let block_size = |name: &str| {
            let size = field(name).and_then(Value::as_u64).filter(|size| BLOCK_SIZES.contains(size));
            size.map(|size| size as usize).ok_or_else(|| {
                let found = state.get(name).unwrap_or(&Value::Null);
                problem(format!("`{name}` is {found}; bitsandbytes has the block sizes {BLOCK_SIZES:?}"))
            })
        };
        let size = |value: &Value| value.as_u64().filter(|&size| size > 0).and_then(|size| usize::try_from(size).ok());
        let shape = field("shape").and_then(Value::as_array).and_then(|shape| shape.iter().map(size).collect());
        let shape = shape.filter(|shape: &Vec<usize>| !shape.is_empty());
        let shape = shape.ok_or_else(|| problem("`shape` is not a list of sizes".to_owned()))?;
        let keys = ["nested_blocksize", "nested_offset"].map(|name| field(name).is_some());
        let nested = match keys {
            [false, false] => None,
            [true, true] => {
                let offset = field("nested_offset").and_then(Value::as_f64).filter(|offset| offset.is_finite());
                let offset = offset.ok_or_else(|| problem("`nested_offset` is not a number".to_owned()))?;
                Some((block_size("nested_blocksize")?, offset as f32))
            }
            _ => return Err(problem("has only one of `nested_blocksize` and `nested_offset`".to_owned())),
        };
        Ok(Self { shape, block: block_size("blocksize")?, nested })
    }

    /// Nested tensors where the state says so, and only there.
    fn check_nesting(self, file: &SafeTensorsFile, weight: &str) -> Result<Self> {
        for name in ["nested_absmax", "nested_quant_map"] {
            let name = format!("{weight}.{name}");
            if file.has(&name) != self.nested.is_some() {
                let message = if self.nested.is_some() {
                    format!("is missing, and the quantisation state of {weight} is nested")
                } else {
                    format!("is there, and the quantisation state of {weight} is not nested")
                };
                return Err(Error::input(format_args!("{}: tensor {name}", file.place()), message));
            }
        }
        Ok(self)
    }
}

/// A tensor beside a weight, of which a missing one is damage.
fn part(file: &SafeTensorsFile, name: &str) -> Result<RawTensor> {
    if !file.has(name) {
        let message = "is missing beside its quantised weight";
        return Err(Error::input(format_args!("{}: tensor {name}", file.place()), message));
    }
    file.tensor(name)
}

/// `count` scales, finite and not negative.
fn scales(file: &SafeTensorsFile, name: &str, count: usize) -> Result<Arc<[f32]>> {
    let problem = |message: String| Error::input(format_args!("{}: tensor {name}", file.place()), message);
    let tensor = part(file, name)?;
    if tensor.dtype != Dtype::F32 || tensor.elements() != count {
        let message = format!("{} {} values; expected {count} scales of F32", tensor.elements(), tensor.dtype);
        return Err(problem(message));
    }
    let scales = tensor.to_f32()?;
    match scales.iter().position(|scale| !(scale.is_finite() && *scale >= 0.0)) {
        Some(index) => Err(problem(format!("scale {index} is {}; expected 0 or more", scales[index]))),
        None => Ok(scales.into()),
    }
}

fn check_code_table(file: &SafeTensorsFile, weight: &str) -> Result<()> {
    let name = format!("{weight}.quant_map");
    let table = part(file, &name)?;
    if table.dtype != Dtype::F32 || table.to_f32()? != nf4::CODE {
        return Err(Error::input(format_args!("{}: tensor {name}", file.place()), "is not NF4's table of 16 values"));
    }
    Ok(())
}

/// The file's own map: it differs in the last bit between versions of torch.
fn nested_map(file: &SafeTensorsFile, name: &str) -> Result<Arc<[f32; 256]>> {
    let tensor = part(file, name)?;
    let values = if tensor.dtype == Dtype::F32 { tensor.to_f32()? } else { Vec::new() };
    match <[f32; 256]>::try_from(values) {
        Ok(map) if map.iter().all(|value| value.abs() <= 1.0) => Ok(Arc::new(map)),
        _ => {
            let message = "is not a map of 256 F32 values from -1 to 1";
            Err(Error::input(format_args!("{}: tensor {name}", file.place()), message))
        }
    }
}
