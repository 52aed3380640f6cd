//! Which tensors the merged folder holds, in which type and in which file.

use std::collections::BTreeMap;

use super::MergeOptions;
use crate::adapter::host::{HostAdapter, HostPair};
use crate::error::{Error, Result};
use crate::files::safetensors::TensorHeader;
use crate::files::shards::{Entry, Shards};
use crate::files::{Dtype, FloatType};
use crate::model::BaseFiles;

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

/// The origin of a merged tensor.
pub(super) struct Origin<'a> {
    /// The base's tensor that it comes from.
    pub source: String,
    /// The type it gets.
    pub float_type: FloatType,
    /// The low-rank pair that is added to it.
    pub pair: Option<&'a HostPair>,
}

impl<'a> Plan<'a> {
    /// Plans every tensor, and makes sure that every pair of the adapter is used exactly once.
    pub fn new(base: &BaseFiles, adapter: &'a HostAdapter, options: &MergeOptions) -> Result<Self> {
        let head = base.config().head().module;
        let config = base.config();
        let untied_head = adapter.unties_head(config);
        let mut unused: BTreeMap<&str, &HostPair> =
            adapter.pairs.iter().map(|(module, pair)| (module.as_str(), pair)).collect();
        let mut planned = Vec::new();
        for name in base.tensor_names() {
            let pair = name.strip_suffix(".weight").and_then(|module| unused.remove(module));
            planned.push(plan_one(base, name, name, pair, options)?);
        }
        if untied_head {
            planned.push(plan_one(
                base,
                &config.head_name(),
                &config.embedding_name(),
                unused.remove(head.as_str()),
                options,
            )?);
        }
        if let Some(module) = unused.keys().next() {
            return Err(Error::failed(
                module,
                format!("{} pairs of the adapter found no tensor to go to", unused.len()),
            ));
        }
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
    pair: Option<&'a HostPair>,
    options: &MergeOptions,
) -> Result<Planned<'a>> {
    let unknown = || Error::failed(source, "the base has no such tensor");
    let float_type = match options.float_type {
        Some(float_type) => float_type,
        None => stored_as(base.dtype(source).ok_or_else(unknown)?),
    };
    let shape = base.shape(source).ok_or_else(unknown)?.to_vec();
    let header = TensorHeader { name: base.config().name_alone(name), dtype: float_type.dtype(), shape };
    Ok(Entry { header, origin: Origin { source: source.to_owned(), float_type, pair } })
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
