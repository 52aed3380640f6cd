//! Reading packed weights from a checkpoint: every contradiction between the parts of one is an error naming the part.

use std::sync::Arc;

use serde_json::Value;

use super::{Int8Tensor, NF4_STATE, Nf4Scales, Nf4Tensor, STATE, row_scales_name};
use crate::error::{Error, Place, Result};
use crate::files::safetensors::SafeTensorsFile;
use crate::files::{Dtype, Floats, RawTensor, json};
use crate::quant::nf4;

/// The JSON beside a weight has about 150.
const MAX_STATE_BYTES: usize = 64 << 10;
const BLOCK_SIZES: [u64; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];

/// Reads a row-wise int8 weight.
pub fn read_int8(file: &SafeTensorsFile, weight: &str) -> Result<Int8Tensor> {
    let problem = |message: String| Error::input(Place::tensor(file.place(), weight), message);
    let codes = file.tensor(weight)?;
    let (Dtype::I8, &[rows, columns]) = (codes.dtype, codes.shape.as_slice()) else {
        return Err(problem(format!("is {} of shape {:?}; an 8-bit weight is I8 [out, in]", codes.dtype, codes.shape)));
    };
    let scales_name = row_scales_name(weight).unwrap_or_default();
    let row_absmax = scales(file, &scales_name, rows)?;
    Ok(Int8Tensor { shape: [rows, columns], codes: codes.bytes, row_absmax: row_absmax.to_vec().into() })
}

/// Reads a 4-bit weight. Every contradiction between its parts is an error naming the part.
pub fn read_nf4(file: &SafeTensorsFile, weight: &str) -> Result<Nf4Tensor> {
    let problem = |message: String| Error::input(Place::tensor(file.place(), weight), message);
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
                return Err(Error::input(Place::tensor(file.place(), absmax), message));
            }
            let nested = self::scales(file, &format!("{weight}.nested_absmax"), blocks.div_ceil(block))?;
            let map = nested_map(file, &format!("{weight}.nested_quant_map"))?;
            Nf4Scales::Nested { codes: codes.bytes, absmax: nested.to_vec().into(), block, offset, map }
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
        let problem = |message: String| Error::input(Place::tensor(file.place(), weight), message);
        let prefix = format!("{weight}{STATE}");
        let states: Vec<&str> = file.names_from(&prefix).collect();
        let name = match states.as_slice() {
            [one] if one.ends_with(NF4_STATE) => (*one).to_owned(),
            [other] => return Err(problem(format!("is quantised as {other}; supported is bitsandbytes__nf4"))),
            [] => return Err(problem(format!("has scales but no `{weight}{NF4_STATE}`"))),
            several => return Err(problem(format!("has {} quantisation states; expected one", several.len()))),
        };
        let place = Place::tensor(file.place(), &name);
        // A copy: the bytes of a mapped file may change while they are read as text.
        let bytes = part(file, &name)?.bytes.to_vec();
        if bytes.len() > MAX_STATE_BYTES {
            return Err(Error::input(place, format!("has {} bytes; at most {MAX_STATE_BYTES}", bytes.len())));
        }
        let state = json::parse(&place, &bytes)?;
        Self::from_json(&place, &state).and_then(|state| state.check_nesting(file, weight))
    }

    fn from_json(place: &Place, state: &Value) -> Result<Self> {
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
                let offset = field("nested_offset").and_then(Value::as_f64).map(|offset| offset as f32);
                let offset = offset.filter(|offset| offset.is_finite());
                let offset = offset.ok_or_else(|| problem("`nested_offset` is not a number of f32".to_owned()))?;
                Some((block_size("nested_blocksize")?, offset))
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
                return Err(Error::input(Place::tensor(file.place(), name), message));
            }
        }
        Ok(self)
    }
}

/// A tensor beside a weight, of which a missing one is damage.
fn part(file: &SafeTensorsFile, name: &str) -> Result<RawTensor> {
    if !file.has(name) {
        let message = "is missing beside its quantised weight";
        return Err(Error::input(Place::tensor(file.place(), name), message));
    }
    file.tensor(name)
}

/// `count` scales, finite and not negative.
fn scales(file: &SafeTensorsFile, name: &str, count: usize) -> Result<Floats> {
    let problem = |message: String| Error::input(Place::tensor(file.place(), name), message);
    let tensor = part(file, name)?;
    if tensor.dtype != Dtype::F32 || tensor.elements() != count {
        let message = format!("{} {} values; expected {count} scales of F32", tensor.elements(), tensor.dtype);
        return Err(problem(message));
    }
    let scales = Floats::from(tensor.bytes);
    match scales.iter().position(|scale| !(scale.is_finite() && *scale >= 0.0)) {
        Some(index) => Err(problem(format!("scale {index} is {}; expected 0 or more", scales[index]))),
        None => Ok(scales),
    }
}

fn check_code_table(file: &SafeTensorsFile, weight: &str) -> Result<()> {
    let name = format!("{weight}.quant_map");
    let table = part(file, &name)?;
    if table.dtype != Dtype::F32 || table.to_f32()? != nf4::CODE {
        return Err(Error::input(Place::tensor(file.place(), name), "is not NF4's table of 16 values"));
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
            Err(Error::input(Place::tensor(file.place(), name), message))
        }
    }
}
