//! `burnish quantize`: a base written as a checkpoint that transformers and bitsandbytes load packed.
//!
//! The layers' projections are packed; embedding, norms and head stay floats, as bitsandbytes leaves them. The codes are row-major as
//! the kernels read them, and those of a layer lie together with their scales, so that a layer can be read from the file while the one
//! before is computed (`stages.rs`). One weight at a time is in memory. A header says how long the quantisation state of every weight is
//! before the first byte is written, so a weight is quantised twice: for its state when the files are planned, and for its
//! codes and scales when they are written (a third time for scales in f32, which lie apart from the codes).

use std::path::Path;

use serde::Serialize;

use super::folder::{Extent, check_folder_name, write_configs};
use super::{BaseFiles, StoredWeight};
use crate::error::{Error, Result};
use crate::files::bitsandbytes::{self, Part};
use crate::files::safetensors::TensorHeader;
use crate::files::shards::{Entry, Shards};
use crate::files::staging::Staging;
use crate::files::{Bytes, Dtype, FloatType};
use crate::quant::Quant;

/// The options of a quantisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantizeOptions {
    /// `Nf4` or `Int8`.
    pub scheme: Quant,
    /// The type of what stays unpacked. `None`: as in the base where that has 16 bits, else bf16.
    pub float_type: Option<FloatType>,
    /// Files of weights grow to this size.
    pub max_shard_bytes: u64,
}

/// The checkpoint that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuantizeReport {
    /// Weights that were packed.
    pub packed: usize,
    /// Tensors written, the parts of packed weights counted one by one.
    pub tensors: usize,
    /// Files of weights, in order.
    pub files: Vec<String>,
    /// Size of all tensors.
    pub bytes: u64,
    /// Size of the base's files of weights.
    pub base_bytes: u64,
    /// Licences of the base that are not in the folder, because they are larger than any licence.
    pub licences_left_out: Vec<String>,
}

/// The source of a tensor of the checkpoint.
enum Origin {
    /// The base's tensor of the same name, as this type.
    Float(FloatType),
    /// A large part of this packed weight: its codes, or the scales of its blocks.
    PartOf(String),
    /// A small part, known since planning.
    Known(Bytes),
}

/// Quantises `base` into a Hugging Face folder at `out`, where nothing may be yet.
///
/// `write_tokenizer` writes the tokenizer's files into the folder it is given.
///
/// # Errors
/// Bad input: `out` exists, the base is packed already, a value is not finite. Failed: a full disk. After any of them
/// there is nothing at `out` and nothing beside it.
pub fn quantize(
    base: &BaseFiles,
    out: &Path,
    options: &QuantizeOptions,
    write_tokenizer: impl FnOnce(&Path) -> Result<()>,
) -> Result<QuantizeReport> {
    check_folder_name(out)?;
    Staging::check_free(out)?;
    let float_type = options.float_type.unwrap_or_else(|| float_type_of(base));
    let mut packer = Packer { base, scheme: options.scheme, float_type, last: None };
    let mut weights = Vec::new();
    let mut packed = 0;
    for name in base.tensor_names() {
        if base.is_projection(name) {
            weights.push(packer.entries(name)?);
            packed += 1;
        } else {
            let shape = base.shape(name).unwrap_or_default().to_vec();
            let header = TensorHeader { name: base.config().name_alone(name), dtype: float_type.dtype(), shape };
            weights.push(vec![Entry { header, origin: Origin::Float(float_type) }]);
        }
    }
    let shards = Shards::plan(weights, options.max_shard_bytes)?;
    let staging = Staging::beside(out)?;
    shards.write(staging.path(), |entry| packer.contents(entry))?;
    let licences_left_out = write_configs(base, Extent::Decoder, float_type.dtype(), staging.path(), |config| {
        let quantization =
            bitsandbytes::quantization_config(options.scheme.nf4_double(), float_type.dtype().torch_name());
        config.insert("quantization_config".to_owned(), quantization);
    })?;
    write_tokenizer(staging.path())?;
    // Opening it again checks every part of every weight against the others.
    BaseFiles::open(staging.path())?;
    staging.publish(out)?;
    Ok(QuantizeReport {
        packed,
        tensors: shards.entries().count(),
        files: shards.files(),
        bytes: shards.bytes()?,
        base_bytes: base.file_bytes() as u64,
        licences_left_out,
    })
}

/// The type of the base's embedding if it has 16 bits, else bf16.
fn float_type_of(base: &BaseFiles) -> FloatType {
    match base.dtype(&base.config().embedding_name()) {
        Some(Dtype::F16) => FloatType::F16,
        _ => FloatType::Bf16,
    }
}

/// Codes, and other parts of this size or more, are not kept from planning to writing.
const LARGE_PART_BYTES: usize = 64 << 10;

/// Quantises weights, and remembers the last one: its parts are mostly written one after another.
struct Packer<'a> {
    base: &'a BaseFiles,
    scheme: Quant,
    float_type: FloatType,
    last: Option<(String, Vec<Part>)>,
}

impl Packer<'_> {
    fn parts(&mut self, name: &str) -> Result<&[Part]> {
        if self.last.as_ref().is_none_or(|(last, _)| last != name) {
            // Only one weight is in memory.
            self.last = None;
            self.last = Some((name.to_owned(), self.quantised(name)?));
        }
        Ok(self.last.as_ref().map_or(&[], |(_, parts)| parts))
    }

    fn quantised(&self, name: &str) -> Result<Vec<Part>> {
        let Self { base, scheme, float_type, .. } = *self;
        let place = format!("{}: tensor {name}", base.path().display());
        let stored = base.weight(name)?;
        if !matches!(stored, StoredWeight::Dense(_)) {
            return Err(Error::input(place, "is packed already").hint("quantise the model that it was made from"));
        }
        match stored.packed(&place, scheme)? {
            StoredWeight::Nf4(tensor) => Ok(tensor.parts(name, float_type.dtype().torch_name())),
            StoredWeight::Int8(tensor) => Ok(tensor.parts(name)),
            StoredWeight::Dense(_) => Err(Error::failed(place, format!("`{}` packs nothing", scheme.name()))),
        }
    }

    /// The tensors of a packed weight.
    fn entries(&mut self, name: &str) -> Result<Vec<Entry<Origin>>> {
        let config = self.base.config();
        let entries = self.parts(name)?.iter().map(|Part { header, bytes }| {
            let is_large = header.name == name || bytes.len() >= LARGE_PART_BYTES;
            let origin = if is_large { Origin::PartOf(name.to_owned()) } else { Origin::Known(bytes.to_vec().into()) };
            Entry { header: TensorHeader { name: config.name_alone(&header.name), ..header.clone() }, origin }
        });
        Ok(entries.collect())
    }

    /// The bytes of a tensor of the checkpoint.
    fn contents(&mut self, entry: &Entry<Origin>) -> Result<Bytes> {
        let name = &self.base.config().name_within(&entry.header.name);
        match &entry.origin {
            Origin::Known(bytes) => Ok(bytes.clone()),
            Origin::Float(float_type) => {
                let tensor = self.base.tensor(name)?;
                if tensor.dtype == float_type.dtype() {
                    return Ok(tensor.bytes);
                }
                Ok(tensor.encoded(*float_type)?.into())
            }
            Origin::PartOf(weight) => {
                let part = self.parts(weight)?.iter().find(|part| part.header.name == *name);
                part.map(|part| part.bytes.clone()).ok_or_else(|| Error::failed(name, "has no such part"))
            }
        }
    }
}
