//! Reading a merged folder again, and comparing it with sums formed another way.

use std::collections::BTreeMap;
use std::path::Path;

use super::plan::{Change, Plan, Planned};
use super::product::row_factor;
use super::source::Source;
use crate::adapter::host::HostPair;
use crate::error::{Error, Result};
use crate::files::{Dtype, RawTensor, hex};
use crate::model::BaseFiles;

/// Rows compared of every matrix that was changed or converted, evenly spread.
const ROWS: usize = 32;

/// The outcome of the comparison.
#[derive(Debug, Default)]
pub(super) struct Checked {
    pub tensors: usize,
    pub values: usize,
    pub max_difference: f64,
}

/// Opens `folder` as a base model and compares every tensor: all of its bytes with the SHA-256 of what was sent to the file, then
/// bytes with bytes where nothing should have changed, otherwise rows with `W + scale * B * A` formed in f64.
///
/// # Errors
/// A difference beyond the rounding of the stored type; a folder that does not open.
pub(super) fn reread(
    source: &Source<'_>,
    plan: &Plan<'_>,
    sha256: &BTreeMap<String, String>,
    folder: &Path,
) -> Result<Checked> {
    let merged = BaseFiles::open(folder).map_err(|error| {
        let found = Error::failed(folder.display(), "the merged folder does not open again");
        Error::join([found.clone(), error]).unwrap_or(found).into_failure()
    })?;
    let mut checked = Checked::default();
    for planned in plan.shards.entries() {
        let after = merged.tensor(&planned.header.name).map_err(Error::into_failure)?;
        if sha256.get(&planned.header.name) != Some(&hex::sha256_of(&after.bytes)) {
            return Err(differs(planned, "reads back with other bytes than were written"));
        }
        let before = source.tensor(&planned.origin.source)?;
        if matches!(planned.origin.change, Change::Nothing) && before.dtype == after.dtype {
            compare_bytes(planned, &before, &after)?;
            checked.values += after.elements();
        } else {
            compare_rows(planned, &before, &after, &mut checked)?;
        }
        checked.tensors += 1;
        source.base.release();
        merged.release();
    }
    Ok(checked)
}

fn compare_bytes(planned: &Planned<'_>, before: &RawTensor, after: &RawTensor) -> Result<()> {
    if before.bytes[..] == after.bytes[..] {
        return Ok(());
    }
    Err(differs(planned, "reads back with other bytes than the base's"))
}

fn differs(planned: &Planned<'_>, message: impl Into<String>) -> Error {
    Error::failed(format_args!("tensor {}", planned.header.name), message)
        .hint("nothing was kept; is the disk sound, and did nothing else write to the base?")
}

fn compare_rows(planned: &Planned<'_>, before: &RawTensor, after: &RawTensor, checked: &mut Checked) -> Result<()> {
    let columns = planned.header.shape.last().copied().unwrap_or(1);
    let rows = after.elements() / columns.max(1);
    // The last rows are compared too: new tokens stand there.
    for row in spread(rows) {
        let expected = changed(&row_values(before, row, columns)?, planned.origin.change, row);
        let found = row_values(after, row, columns)?;
        for (column, (sum, found)) in expected.into_iter().zip(found).enumerate() {
            let difference = (f64::from(found) - sum.value).abs();
            // Not `>`: a difference that is no number is one.
            let is_within = difference <= bound(after.dtype, &sum);
            if !is_within {
                let message = format!("row {row}, column {column} is {found}; the sum is {}", sum.value);
                return Err(differs(planned, message));
            }
            checked.max_difference = checked.max_difference.max(difference);
            checked.values += 1;
        }
    }
    Ok(())
}

/// At most [`ROWS`] of `rows` indices, the first and the last among them.
fn spread(rows: usize) -> impl Iterator<Item = usize> {
    let count = rows.min(ROWS);
    (0..count).map(move |index| if count < 2 { 0 } else { index * (rows - 1) / (count - 1) })
}

/// One row in f32.
fn row_values(tensor: &RawTensor, row: usize, columns: usize) -> Result<Vec<f32>> {
    let bytes = tensor.dtype.bytes_of(&[columns]).and_then(|bytes| tensor.bytes.slice(row * bytes..(row + 1) * bytes));
    let bytes = bytes.ok_or_else(|| Error::failed("merge", "a row lies outside its tensor"))?;
    RawTensor { dtype: tensor.dtype, shape: vec![columns], bytes }.to_f32()
}

/// A sum and the sum of its terms' magnitudes.
struct Sum {
    value: f64,
    magnitude: f64,
}

/// A value that takes the place of the base's; none is as good as a wrong one.
fn stated(value: Option<f32>) -> Sum {
    let value = value.map_or(f64::NAN, f64::from);
    Sum { value, magnitude: value.abs() }
}

/// A row of a changed tensor that is `weight` in the base.
fn changed(weight: &[f32], change: Change<'_>, row: usize) -> Vec<Sum> {
    let columns = weight.len();
    let of = |values: &[f32], row: usize| {
        (0..columns).map(|column| stated(values.get(row * columns + column).copied())).collect()
    };
    match change {
        Change::Nothing => exact(weight, None, row),
        Change::Pair(pair) => exact(weight, Some(pair), row),
        Change::Whole(tensor) => of(&tensor.values, row),
        Change::Rows(ids, values) => match ids.iter().position(|id| *id as usize == row) {
            Some(place) => of(values, place),
            None => exact(weight, None, row),
        },
    }
}

/// Row `row` of `weight + scale * B * A`, at its magnitude where the pair has one.
fn exact(weight: &[f32], pair: Option<&HostPair>, row: usize) -> Vec<Sum> {
    let sum = |value: &f32| Sum { value: f64::from(*value), magnitude: f64::from(value.abs()) };
    let mut sums: Vec<Sum> = weight.iter().map(sum).collect();
    let Some(pair) = pair else { return sums };
    for (b, a_row) in pair.terms_of_row(row) {
        for (sum, a) in sums.iter_mut().zip(a_row) {
            let term = f64::from(pair.scale) * f64::from(b) * f64::from(*a);
            sum.value += term;
            sum.magnitude += term.abs();
        }
    }
    if let Some(magnitude) = &pair.magnitude {
        let norm = sums.iter().map(|sum| sum.value.powi(2)).sum::<f64>().sqrt();
        let factor = row_factor(magnitude, row, norm);
        for sum in &mut sums {
            *sum = Sum { value: sum.value * factor, magnitude: sum.magnitude * factor.abs() };
        }
    }
    sums
}

/// The largest distance of a stored value from the exact sum: half a unit in the last place of its type, and the part
/// that a sum of this size loses in f32.
fn bound(dtype: Dtype, sum: &Sum) -> f64 {
    let (rounding, least) = match dtype {
        Dtype::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        Dtype::Bf16 => (2f64.powi(-8), f64::from(f32::MIN_POSITIVE)),
        _ => (2f64.powi(-24), f64::from(f32::MIN_POSITIVE)),
    };
    rounding * sum.value.abs() + 2f64.powi(-18) * sum.magnitude + least
}
