//! Which tensors the merged folder holds, in which type and in which file.

use std::collections::BTreeMap;

use super::MergeOptions;
use super::product::adapt_row;
use crate::adapter::host::{HostAdapter, HostPair, HostRows, HostTensor};
use crate::error::{Error, Result};
use crate::files::safetensors::TensorHeader;
use crate::files::shards::{Entry, Shards};
use crate::files::{Dtype, FloatType};
use crate::model::BaseFiles;
use crate::model::folder::Extent;

/// Everything that will be written.
pub(super) struct Plan<'a> {
    pub shards: Shards<Origin<'a>>,
    /// The head gets a matrix of its own.
    pub untied_head: bool,
    /// The type of the matrices, f32 where they have several.
    pub matrix_dtype: Dtype,
}

/// One tensor of the merged model.
pub(super) type Planned<'a> = Entry<Origin<'a>>;

/// The change of a tensor by the adapter.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// None.
    Nothing,
    /// The low-rank pair is added.
    Pair(&'a HostPair),
    /// These values take its place.
    Whole(&'a HostTensor),
    /// Rows of these tokens take the place of its own.
    Rows(&'a [u32], &'a [f32]),
}

impl Change<'_> {
    /// Changes one row of the tensor, which is `row` before. A vector has a row for each value.
    pub fn apply_to_row(&self, row: &mut [f32], index: usize) {
        let columns = row.len();
        let values = match self {
            Self::Nothing => return,
            Self::Pair(pair) => return adapt_row(row, pair, index),
            Self::Whole(tensor) => tensor.values.get(index * columns..),
            Self::Rows(ids, values) => {
                let place = ids.iter().position(|id| *id as usize == index);
                place.and_then(|place| values.get(place * columns..))
            }
        };
        row.iter_mut().zip(values.unwrap_or_default()).for_each(|(value, own)| *value = *own);
    }
}

/// The changes of an adapter that have not found their tensor yet.
#[derive(Debug)]
pub struct Changes<'a> {
    pairs: BTreeMap<&'a str, &'a HostPair>,
    whole: BTreeMap<&'a str, &'a HostTensor>,
    rows: BTreeMap<&'a str, (&'a [u32], &'a [f32])>,
}

impl<'a> Changes<'a> {
    /// Those of `adapter`; none without.
    pub fn of(adapter: Option<&'a HostAdapter>) -> Self {
        let pairs = adapter.into_iter().flat_map(|adapter| &adapter.pairs);
        let whole = adapter.into_iter().flat_map(|adapter| &adapter.whole);
        let rows = adapter.and_then(|adapter| adapter.rows.as_ref()).into_iter();
        let rows = rows.flat_map(|HostRows { ids, values }| {
            values.iter().map(|(module, values)| (module.as_str(), (ids.as_slice(), values.as_slice())))
        });
        Self {
            pairs: pairs.map(|(module, pair)| (module.as_str(), pair)).collect(),
            whole: whole.map(|(name, tensor)| (name.as_str(), tensor)).collect(),
            rows: rows.collect(),
        }
    }

    /// Takes the change of the tensor `name`.
    pub fn take(&mut self, name: &str) -> Change<'a> {
        if let Some(tensor) = self.whole.remove(name) {
            return Change::Whole(tensor);
        }
        let module = name.strip_suffix(".weight").unwrap_or_default();
        if let Some((ids, values)) = self.rows.remove(module) {
            return Change::Rows(ids, values);
        }
        self.pairs.remove(module).map_or(Change::Nothing, Change::Pair)
    }

    /// Makes sure that every change was taken.
    ///
    /// # Errors
    /// Failed: one was not.
    pub fn finish(self) -> Result<()> {
        let left: Vec<&str> =
            self.pairs.into_keys().chain(self.whole.into_keys()).chain(self.rows.into_keys()).collect();
        match left.first() {
            None => Ok(()),
            Some(first) => {
                Err(Error::failed(*first, format!("{} parts of the adapter found no tensor to go to", left.len())))
            }
        }
    }
}

/// The origin of a merged tensor.
pub(super) struct Origin<'a> {
    /// The base's tensor that it comes from.
    pub source: String,
    /// The type it gets.
    pub float_type: FloatType,
    /// The change of the adapter.
    pub change: Change<'a>,
}

impl<'a> Plan<'a> {
    /// Plans every tensor, and makes sure that every pair of the adapter is used exactly once.
    pub fn new(base: &BaseFiles, adapter: &'a HostAdapter, options: &MergeOptions) -> Result<Self> {
        let config = base.config();
        let untied_head = adapter.unties_head(config);
        adapter.check_gives_text("adapter")?;
        let mut changes = Changes::of(Some(adapter));
        let mut planned = Vec::new();
        for name in base.tensor_names() {
            planned.push(plan_one(base, name, name, changes.take(name), options)?);
        }
        if untied_head {
            let head = config.head_name();
            planned.push(plan_one(base, &head, &config.embedding_name(), changes.take(&head), options)?);
        }
        if Extent::Whole.is_whole(base) {
            for name in base.vision_tensor_names() {
                planned.push(plan_one(base, name, name, changes.take(name), options)?);
            }
        }
        changes.finish()?;
        let matrix_dtype = matrix_dtype(&planned);
        Ok(Self {
            shards: Shards::plan(planned.into_iter().map(|one| vec![one]), options.max_shard_bytes)?,
            untied_head,
            matrix_dtype,
        })
    }
}

fn plan_one<'a>(
    base: &BaseFiles,
    name: &str,
    source: &str,
    change: Change<'a>,
    options: &MergeOptions,
) -> Result<Planned<'a>> {
    let unknown = || Error::failed(source, "the base has no such tensor");
    let float_type = match options.float_type {
        Some(float_type) => float_type,
        None => stored_as(base.dtype(source).ok_or_else(unknown)?),
    };
    let shape = base.shape(source).ok_or_else(unknown)?.to_vec();
    let stored_name = if Extent::Whole.is_whole(base) { name.to_owned() } else { base.config().name_alone(name) };
    let header = TensorHeader { name: stored_name, dtype: float_type.dtype(), shape };
    Ok(Entry { header, origin: Origin { source: source.to_owned(), float_type, change } })
}

/// A float stays what it is; blocks become f32.
fn stored_as(dtype: Dtype) -> FloatType {
    match dtype {
        Dtype::F16 => FloatType::F16,
        Dtype::Bf16 => FloatType::Bf16,
        _ => FloatType::F32,
    }
}

/// The type of all matrices, f32 where they differ.
fn matrix_dtype(planned: &[Planned<'_>]) -> Dtype {
    let mut matrices = planned.iter().filter(|one| one.header.shape.len() > 1).map(|one| one.header.dtype);
    let first = matrices.next().unwrap_or(Dtype::F32);
    if matrices.all(|dtype| dtype == first) { first } else { Dtype::F32 }
}
