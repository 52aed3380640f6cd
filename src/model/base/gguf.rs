//! A GGUF file's tensors in Hugging Face's form: the order of rows and the offset of values undone.

use crate::error::{Error, Result};
use crate::files::gguf::Gguf;
use crate::files::{Bytes, Dtype, RawTensor};
use crate::model::spec::{GgufRows, TensorSpec};
use crate::quant::float;

/// Reads a tensor. Whole rows move, so blocks stay as they are; a tensor with an offset becomes `F32`.
///
/// # Errors
/// Input: a value that is not finite, rows that do not divide into the heads.
pub(super) fn read(gguf: &Gguf, spec: &TensorSpec) -> Result<RawTensor> {
    let tensor = gguf.tensor(&spec.gguf)?;
    let place = format!("{}: tensor {}", gguf.place(), spec.gguf);
    tensor.check_finite(&place)?;
    let tensor = match spec.gguf_rows.moves_rows() {
        false => tensor,
        true => in_order(&tensor, spec.gguf_rows).ok_or_else(|| {
            Error::input(place, format!("has shape {:?}, which does not divide into the heads", tensor.shape))
        })?,
    };
    if spec.gguf_offset == 0.0 {
        return Ok(tensor);
    }
    let values: Vec<f32> = tensor.to_f32()?.into_iter().map(|value| value - spec.gguf_offset).collect();
    Ok(RawTensor { dtype: Dtype::F32, shape: tensor.shape, bytes: float::encode_f32(&values).into() })
}

/// The tensor with its rows in Hugging Face's order. `None` where they do not divide into the heads.
fn in_order(tensor: &RawTensor, rows: GgufRows) -> Option<RawTensor> {
    let order = rows.order(*tensor.shape.first()?)?;
    let row_bytes = tensor.bytes.len().checked_div(order.len())?;
    let mut bytes = vec![0; row_bytes * order.len()];
    for (row, from) in order.into_iter().zip(tensor.bytes.chunks_exact(row_bytes.max(1))) {
        bytes.get_mut(row * row_bytes..(row + 1) * row_bytes)?.copy_from_slice(from);
    }
    Some(RawTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes: Bytes::from(bytes) })
}
