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
    let order: Option<(usize, SourceRow)> = match spec.gguf_rows {
        GgufRows::Same => None,
        GgufRows::RotatedPairs { heads } => Some((heads, from_rotated_pairs)),
        GgufRows::SplitByHead { heads } => Some((heads, from_split)),
    };
    let tensor = match order {
        None => tensor,
        Some((heads, source)) => in_order(&tensor, heads, source).ok_or_else(|| {
            Error::input(place, format!("has shape {:?}, which does not divide into {heads} heads", tensor.shape))
        })?,
    };
    if spec.gguf_offset == 0.0 {
        return Ok(tensor);
    }
    let values: Vec<f32> = tensor.to_f32()?.into_iter().map(|value| value - spec.gguf_offset).collect();
    Ok(RawTensor { dtype: Dtype::F32, shape: tensor.shape, bytes: float::encode_f32(&values).into() })
}

/// The GGUF row that becomes `row` of `head`, both in Hugging Face's order; of heads with `head_rows` rows.
type SourceRow = fn(heads: usize, head_rows: usize, head: usize, row: usize) -> usize;

/// Undoes llama.cpp's `permute` (`conversion/llama.py`), so that rotary embedding of pairs becomes rotary embedding of
/// halves: within each head, GGUF row `2 j + p` is Hugging Face row `p · head_dim / 2 + j`.
fn from_rotated_pairs(_: usize, head_rows: usize, head: usize, row: usize) -> usize {
    let half = head_rows / 2;
    head * head_rows + 2 * (row % half) + row / half
}

/// Joins the rows of q, k and v of each head, which llama.cpp's converter splits (`conversion/gptneox.py`): row
/// `p · head_dim + i` of a head, `p` of q, k and v, comes from row `head · head_dim + i` of part `p`.
fn from_split(heads: usize, head_rows: usize, head: usize, row: usize) -> usize {
    let head_dim = head_rows / 3;
    let (part, within) = (row / head_dim, row % head_dim);
    (part * heads + head) * head_dim + within
}

/// The tensor with its rows taken from where `source` says. `None` where they do not divide into the heads.
fn in_order(tensor: &RawTensor, heads: usize, source: SourceRow) -> Option<RawTensor> {
    let rows = *tensor.shape.first()?;
    let head_rows = rows.checked_div(heads)?;
    if head_rows < 2 || head_rows * heads != rows || !tensor.bytes.len().is_multiple_of(rows) {
        return None;
    }
    let row_bytes = tensor.bytes.len() / rows;
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for head in 0..heads {
        for row in 0..head_rows {
            let from = source(heads, head_rows, head, row);
            bytes.extend_from_slice(tensor.bytes.get(from * row_bytes..(from + 1) * row_bytes)?);
        }
    }
    Some(RawTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes: Bytes::from(bytes) })
}
