//! The rows of one GGUF tensor, made a piece at a time: taken from the base in GGUF's order, changed by the adapter, and
//! encoded. A piece is a few megabytes, whatever the size of the tensor.

use rayon::prelude::*;

use super::importance::Importance;
use super::model::{Content, Planned};
use crate::adapter::merge::Source;
use crate::error::{Error, Place, Result};
use crate::files::gguf::write::TensorWriter;
use crate::files::{Dtype, FloatType, RawTensor};
use crate::quant::float;

/// Values of a piece: 16 MiB in f32.
const PIECE_VALUES: usize = 1 << 22;

/// Writes the bytes of a planned tensor.
///
/// # Errors
/// Those of reading and writing. Failed: a merged value that the format cannot hold.
pub(super) fn write(
    source: &Source<'_>,
    planned: &Planned<'_>,
    importance: Option<&Importance>,
    writer: &mut TensorWriter<'_>,
) -> Result<()> {
    let Planned { info, content } = planned;
    let (hf_name, rows, change, offset) = match content {
        Content::Values(values) => return writer.write(&float::encode_f32(values)),
        Content::Stored => {
            let gguf = source.base.gguf().ok_or_else(|| Error::failed(&info.name, "has no file to come from"))?;
            let tensor = gguf.tensor(&info.name)?;
            tensor.check_finite(Place::tensor(gguf.place(), &info.name))?;
            writer.write(&tensor.bytes)?;
            tensor.bytes.release();
            return Ok(());
        }
        Content::Rows { source, rows, change, offset } => (source, rows, *change, *offset),
    };
    let tensor = source.tensor(hf_name)?;
    tensor.check_size()?;
    let stored_rows = tensor.shape.first().copied().unwrap_or(1);
    let order = rows.order.order(stored_rows).and_then(|order| order.get(rows.range.clone()).map(<[usize]>::to_vec));
    let order = order.ok_or_else(|| {
        let message = format!("its {stored_rows} rows do not divide into the heads");
        Error::input(Place::tensor(source.base.path(), hf_name), message)
    })?;
    let columns = tensor.elements().checked_div(stored_rows).unwrap_or(1).max(1);
    let importance = importance.map_or(Ok(None), |importance| importance.of([&info.name, hf_name], columns))?;
    for rows in order.chunks((PIECE_VALUES / columns).max(1)) {
        let mut values = vec![0.0; rows.len() * columns];
        values.par_chunks_mut(columns).zip(rows).for_each(|(values, row)| {
            tensor.decode(row * columns, values);
            change.apply_to_row(values, *row);
            if offset != 0.0 {
                values.iter_mut().for_each(|value| *value += offset);
            }
        });
        let bytes = encoded(info.dtype, &values, columns, importance);
        let piece = RawTensor { dtype: info.dtype, shape: vec![rows.len(), columns], bytes: bytes.into() };
        piece.check_finite("").map_err(|_| {
            Error::failed(Place::tensor("", &info.name), format!("a value is beyond what {} holds", info.dtype))
                .hint("export with `--type bf16` or `--type f32`")
        })?;
        writer.write(&piece.bytes)?;
    }
    tensor.bytes.release();
    Ok(())
}

/// Rows of `columns` values in a format; blocks weigh their errors by the `importance` of the columns.
fn encoded(dtype: Dtype, values: &[f32], columns: usize, importance: Option<&[f32]>) -> Vec<u8> {
    match dtype {
        Dtype::F16 => FloatType::F16.encode(values),
        Dtype::Bf16 => FloatType::Bf16.encode(values),
        Dtype::Block(block) => {
            let row_bytes = columns / block.values_per_block() * block.bytes_per_block();
            let mut bytes = vec![0; values.len() / columns * row_bytes];
            bytes.par_chunks_mut(row_bytes).zip(values.par_chunks(columns)).for_each(
                |(bytes, values)| match importance {
                    Some(importance) => block.encode_weighted(values, importance, bytes),
                    None => block.encode(values, bytes),
                },
            );
            bytes
        }
        _ => float::encode_f32(values),
    }
}
