//! Which tensors the merged folder holds, in which type and in which file.

use std::collections::BTreeMap;
use std::path::Path;

use super::{FloatType, MergeOptions};
use crate::adapter::file::{HostAdapter, HostPair};
use crate::adapter::spec::Target;
use crate::error::{Error, Result};
use crate::files::safetensors::{self, TensorHeader};
use crate::files::{Dtype, RawTensor};
use crate::model::{BaseFiles, names};

/// Everything that will be written.
pub(super) struct Plan<'a> {
    pub shards: Vec<Shard<'a>>,
    /// The head gets a matrix of its own.
    pub untied_head: bool,
    /// The type of the matrices, f32 where they have several.
    pub matrix_dtype: Dtype,
}

/// One tensor of the merged model.
pub(super) struct Planned<'a> {
    pub header: TensorHeader,
    /// The base's tensor that it comes from.
    pub source: String,
    /// What is added to it.
    pub pair: Option<&'a HostPair>,
}

/// One file of weights.
pub(super) struct Shard<'a> {
    pub file: String,
    pub tensors: Vec<Planned<'a>>,
}

impl<'a> Plan<'a> {
    /// Plans every tensor, and makes sure that every pair of the adapter is used exactly once.
    pub fn new(base: &BaseFiles, adapter: &'a HostAdapter, options: &MergeOptions) -> Result<Self> {
        let head = Target::LmHead.path(0);
        let untied_head = base.config().tied_head && adapter.pairs.contains_key(&head);
        let mut unused: BTreeMap<&str, &HostPair> =
            adapter.pairs.iter().map(|(module, pair)| (module.as_str(), pair)).collect();
        let mut planned = Vec::new();
        for name in base.tensor_names() {
            let pair = name.strip_suffix(".weight").and_then(|module| unused.remove(module));
            planned.push(Planned { header: header(base, name, name, options)?, source: name.to_owned(), pair });
        }
        if untied_head {
            let header = header(base, names::HEAD, names::EMBEDDING, options)?;
            planned.push(Planned { header, source: names::EMBEDDING.to_owned(), pair: unused.remove(head.as_str()) });
        }
        if let Some(module) = unused.keys().next() {
            return Err(Error::failed(
                module,
                format!("{} pairs of the adapter found no tensor to go to", unused.len()),
            ));
        }
        let matrix_dtype = matrix_dtype(&planned);
        Ok(Self { shards: shards(planned, options.max_shard_bytes)?, untied_head, matrix_dtype })
    }

    /// Every tensor, file by file.
    pub fn tensors(&self) -> impl Iterator<Item = &Planned<'a>> {
        self.shards.iter().flat_map(|shard| &shard.tensors)
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> Result<u64> {
        self.tensors().map(|planned| planned.header.bytes().map(|bytes| bytes as u64)).sum()
    }
}

impl Shard<'_> {
    /// Writes the file into `folder`, asking `produce` for one tensor at a time.
    pub fn write(&self, folder: &Path, mut produce: impl FnMut(&Planned<'_>) -> Result<RawTensor>) -> Result<()> {
        let headers: Vec<TensorHeader> = self.tensors.iter().map(|planned| planned.header.clone()).collect();
        let by_name: BTreeMap<&str, &Planned<'_>> =
            self.tensors.iter().map(|planned| (planned.header.name.as_str(), planned)).collect();
        let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::write(&folder.join(&self.file), &metadata, &headers, |header| {
            let planned = by_name.get(header.name.as_str());
            let planned = planned.ok_or_else(|| Error::failed(&header.name, "was not planned"))?;
            Ok(produce(planned)?.bytes)
        })
    }
}

fn header(base: &BaseFiles, name: &str, source: &str, options: &MergeOptions) -> Result<TensorHeader> {
    let unknown = || Error::failed(source, "the base has no such tensor");
    let dtype = match options.float_type {
        Some(float_type) => float_type.dtype(),
        None => stored_as(base.dtype(source).ok_or_else(unknown)?),
    };
    let shape = base.shape(source).ok_or_else(unknown)?.to_vec();
    Ok(TensorHeader { name: name.to_owned(), dtype, shape })
}

/// A float stays what it is; blocks become f32.
fn stored_as(dtype: Dtype) -> Dtype {
    match dtype {
        Dtype::F16 | Dtype::Bf16 => dtype,
        _ => FloatType::F32.dtype(),
    }
}

/// The type of all matrices, f32 where they differ.
fn matrix_dtype(planned: &[Planned<'_>]) -> Dtype {
    let mut matrices = planned.iter().filter(|one| one.header.shape.len() > 1).map(|one| one.header.dtype);
    let first = matrices.next().unwrap_or(Dtype::F32);
    if matrices.all(|dtype| dtype == first) { first } else { Dtype::F32 }
}

/// Fills files in order up to `max_bytes`.
fn shards(planned: Vec<Planned<'_>>, max_bytes: u64) -> Result<Vec<Shard<'_>>> {
    let mut groups: Vec<Vec<Planned<'_>>> = Vec::new();
    let mut filled = 0u64;
    for one in planned {
        let bytes = one.header.bytes()? as u64;
        match groups.last_mut() {
            Some(group) if filled.saturating_add(bytes) <= max_bytes => {
                filled += bytes;
                group.push(one);
            }
            _ => {
                filled = bytes;
                groups.push(vec![one]);
            }
        }
    }
    let count = groups.len();
    let named = groups.into_iter().enumerate().map(|(index, tensors)| {
        let file = match count {
            1 => "model.safetensors".to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        Shard { file, tensors }
    });
    Ok(named.collect())
}
