//! The frozen base model's files: a Hugging Face folder or a GGUF file, under one set of names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::config::{Architecture, ModelConfig};
use super::names::{self, TensorName};
use crate::error::{Error, Result};
use crate::files::bitsandbytes::{self, Int8Tensor, Nf4Tensor, Storage};
use crate::files::gguf::Gguf;
use crate::files::safetensors::SafeTensorsFile;
use crate::files::{Bytes, Dtype, RawTensor, hex, json};
use crate::quant::{Quant, float};

/// Beyond this many differences the rest is only counted.
const MAX_DIFFERENCES: usize = 100;
/// Files up to this size are hashed whole, larger ones by samples.
const MAX_HASHED_WHOLE: usize = 512 << 20;

/// An open base model. Its tensors have the names of [`names::tensors`], the right shapes, and a dtype that
/// is supported; their bytes stay in the mapped files until they are asked for.
#[derive(Debug, Clone)]
pub struct BaseFiles {
    path: PathBuf,
    config: ModelConfig,
    tensors: Vec<TensorName>,
    /// Index into `tensors` by Hugging Face name: a file may have ten thousand layers.
    by_name: HashMap<String, usize>,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Folder(Shards),
    Gguf(Gguf),
}

/// A weight as the base keeps it.
#[derive(Debug, Clone)]
pub enum StoredWeight {
    /// Floats, or GGUF blocks.
    Dense(RawTensor),
    /// bitsandbytes' 4-bit format.
    Nf4(Nf4Tensor),
    /// bitsandbytes' 8-bit format.
    Int8(Int8Tensor),
}

impl StoredWeight {
    /// Outermost dimension first.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::Dense(tensor) => &tensor.shape,
            Self::Nf4(tensor) => &tensor.shape,
            Self::Int8(tensor) => &tensor.shape,
        }
    }

    /// Packed as `quant` packs a projection; what is packed already, and under a scheme that packs nothing, it stays
    /// as it is. `place` names it in errors.
    ///
    /// # Errors
    /// A value that is not finite; not a matrix.
    pub fn packed(self, place: &str, quant: Quant) -> Result<Self> {
        let Self::Dense(raw) = &self else { return Ok(self) };
        let packed = match quant {
            Quant::None | Quant::Keep => return Ok(self),
            Quant::Nf4 => Nf4Tensor::quantise(place, raw, false).map(Self::Nf4),
            Quant::Nf4Double => Nf4Tensor::quantise(place, raw, true).map(Self::Nf4),
            Quant::Int8 => Int8Tensor::quantise(place, raw).map(Self::Int8),
        };
        raw.bytes.release();
        packed
    }

    /// As a dense tensor: what is packed is decoded to `F32`.
    ///
    /// # Errors
    /// The bytes do not fit the shape.
    pub fn into_dense(self) -> Result<RawTensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            packed => Ok(RawTensor {
                dtype: Dtype::F32,
                shape: packed.shape().to_vec(),
                bytes: float::encode_f32(&packed.to_f32()?).into(),
            }),
        }
    }

    /// Every value, decoded.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        match self {
            Self::Dense(tensor) => tensor.to_f32(),
            Self::Nf4(tensor) => Ok(tensor.to_f32()),
            Self::Int8(tensor) => Ok(tensor.to_f32()),
        }
    }
}

impl BaseFiles {
    /// Opens a folder with `config.json` and `model.safetensors` (or shards with their index), or a GGUF
    /// file. Reads headers only, and reports every missing, unexpected or misshapen tensor at once.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::read(path, &error))?;
        let (config, source) = if metadata.is_dir() {
            if path.join("adapter_config.json").exists() && !path.join("config.json").exists() {
                return Err(Error::input(path.display(), "is an adapter, not a base model")
                    .hint("name the model that it was trained on as the base, and this folder as the adapter"));
            }
            let mut config = ModelConfig::from_json_file(&path.join("config.json"))?;
            let shards = Shards::open(path)?.under_usual_names(&config)?;
            // transformers 5 believes the weights where they contradict `tie_word_embeddings`.
            config.tied_head = config.tied_head && !shards.has_a_head_of_its_own()?;
            (config, Source::Folder(shards))
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors")) {
            return Err(Error::input(path.display(), "is one file of weights, without its config.json")
                .hint("give the folder that it lies in"));
        } else {
            let gguf = Gguf::open(path)?;
            (ModelConfig::from_gguf(&gguf)?, Source::Gguf(gguf))
        };
        let tensors = names::tensors(&config);
        let by_name = tensors.iter().enumerate().map(|(index, tensor)| (tensor.hf.clone(), index)).collect();
        let base = Self { path: path.to_owned(), config, tensors, by_name, source };
        base.check_tensors()?;
        Ok(base)
    }

    /// What was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Whether it is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.gguf().is_some()
    }

    /// The GGUF file, for its tokenizer and other metadata.
    pub fn gguf(&self) -> Option<&Gguf> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf),
            Source::Folder(_) => None,
        }
    }

    /// Hugging Face names of the model's tensors, in the order of [`names::tensors`]. Without the head
    /// where it is tied.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.iter().map(|tensor| tensor.hf.as_str())
    }

    /// Whether the model has a tensor of this Hugging Face name.
    pub fn has(&self, hf_name: &str) -> bool {
        self.by_name.contains_key(hf_name)
    }

    /// The shape of a tensor by its Hugging Face name, outermost dimension first.
    pub fn shape(&self, hf_name: &str) -> Option<&[usize]> {
        self.by_name.get(hf_name).map(|&index| self.tensors[index].shape.as_slice())
    }

    /// The type that [`Self::tensor`] hands out, without reading it; `None` for a name that the model does not have.
    pub fn dtype(&self, hf_name: &str) -> Option<Dtype> {
        match &self.source {
            Source::Folder(shards) => {
                let file = shards.file_of(hf_name)?;
                match bitsandbytes::storage(file, hf_name) {
                    Storage::Dense => file.dtype(hf_name),
                    Storage::FourBit | Storage::EightBit => Some(Dtype::F32),
                }
            }
            Source::Gguf(gguf) => gguf.dtype(&names::hf_to_gguf(hf_name)?),
        }
    }

    /// A tensor by its Hugging Face name, rows in Hugging Face's order. A weight that bitsandbytes packed is
    /// decoded to `F32` (see [`Self::weight`] for the packed one). Reads all of it once to see that every
    /// value (every scale of a block format) is finite.
    pub fn tensor(&self, hf_name: &str) -> Result<RawTensor> {
        self.weight(hf_name)?.into_dense()
    }

    /// A tensor by its Hugging Face name as it is stored, packed or not. Checked as in [`Self::tensor`].
    pub fn weight(&self, hf_name: &str) -> Result<StoredWeight> {
        match &self.source {
            Source::Folder(shards) => {
                let file = shards.file_of(hf_name).ok_or_else(|| self.unknown(hf_name))?;
                match bitsandbytes::storage(file, hf_name) {
                    Storage::FourBit => bitsandbytes::read_nf4(file, hf_name).map(StoredWeight::Nf4),
                    Storage::EightBit => bitsandbytes::read_int8(file, hf_name).map(StoredWeight::Int8),
                    Storage::Dense => {
                        let tensor = file.tensor(hf_name)?;
                        tensor.check_finite(format_args!("{}: tensor {hf_name}", file.place()))?;
                        Ok(StoredWeight::Dense(tensor))
                    }
                }
            }
            Source::Gguf(gguf) => self.gguf_tensor(gguf, hf_name).map(StoredWeight::Dense),
        }
    }

    /// Whether bitsandbytes packed the tensor.
    pub fn is_packed(&self, hf_name: &str) -> bool {
        match &self.source {
            Source::Folder(shards) => {
                let file = shards.file_of(hf_name);
                file.is_some_and(|file| bitsandbytes::storage(file, hf_name) != Storage::Dense)
            }
            Source::Gguf(_) => false,
        }
    }

    /// Whether projections are stored packed, in GGUF blocks or as bitsandbytes packs them, so that decoding them is the
    /// only way to their values.
    pub fn stores_packed_projections(&self) -> bool {
        let mut projections = self.tensor_names().filter(|name| names::is_projection(name));
        projections.any(|name| self.is_packed(name) || matches!(self.dtype(name), Some(Dtype::Block(_))))
    }

    /// How a tensor is stored: `BF16`, `Q4_K`, or `NF4` and `INT8` for what bitsandbytes packed. Reads headers only.
    pub fn storage_name(&self, hf_name: &str) -> Option<String> {
        match &self.source {
            Source::Folder(shards) => {
                let file = shards.file_of(hf_name)?;
                match bitsandbytes::storage(file, hf_name) {
                    Storage::Dense => file.dtype_name(hf_name),
                    Storage::FourBit => Some("NF4".to_owned()),
                    Storage::EightBit => Some("INT8".to_owned()),
                }
            }
            Source::Gguf(gguf) => gguf.dtype(&names::hf_to_gguf(hf_name)?).map(|dtype| dtype.name().to_owned()),
        }
    }

    /// Size of a tensor in its file; 0 for a name that the model does not have.
    pub fn stored_bytes(&self, hf_name: &str) -> usize {
        let bytes = match &self.source {
            Source::Folder(shards) => shards.file_of(hf_name).and_then(|file| file.tensor(hf_name).ok()),
            Source::Gguf(gguf) => names::hf_to_gguf(hf_name).and_then(|name| gguf.tensor(&name).ok()),
        };
        bytes.map_or(0, |tensor| tensor.bytes.len())
    }

    /// Size of the files of weights.
    pub fn file_bytes(&self) -> usize {
        match &self.source {
            Source::Folder(shards) => shards.files.iter().map(SafeTensorsFile::file_bytes).sum(),
            Source::Gguf(gguf) => gguf.file_bytes(),
        }
    }

    fn gguf_tensor(&self, gguf: &Gguf, hf_name: &str) -> Result<RawTensor> {
        let name = names::hf_to_gguf(hf_name).ok_or_else(|| self.unknown(hf_name))?;
        let tensor = gguf.tensor(&name)?;
        let place = format!("{}: tensor {name}", gguf.place());
        tensor.check_finite(&place)?;
        match self.permuted_heads(hf_name) {
            Some(heads) => restore_rows(&tensor, heads, self.config.head_dim)
                .ok_or_else(|| Error::input(place, format!("shape {:?} does not hold {heads} heads", tensor.shape))),
            None => Ok(tensor),
        }
    }

    /// Heads of a tensor whose rows llama.cpp's converter has permuted: q and k of architecture `llama`
    /// (which Mistral goes under too), weight and bias.
    fn permuted_heads(&self, hf_name: &str) -> Option<usize> {
        if !self.is_gguf() || self.config.architecture == Architecture::Qwen2 {
            return None;
        }
        if hf_name.contains(".self_attn.q_proj.") {
            Some(self.config.heads)
        } else if hf_name.contains(".self_attn.k_proj.") {
            Some(self.config.kv_heads)
        } else {
            None
        }
    }

    fn unknown(&self, hf_name: &str) -> Error {
        Error::input(format_args!("{}: tensor {hf_name}", self.path.display()), "the model has no such tensor")
    }

    /// SHA-256 in hexadecimal that identifies the weights: over the files in the order of their names, of
    /// each its size, its header and the digest of each tensor. Of a file above 512 MiB tensors are sampled: of each
    /// the first and last 64 KiB and 14 chunks spread evenly between. A weight changed anywhere in a
    /// small file is seen; in a large one a fine-tune of the same base is, a single flipped bit may not be.
    /// File names do not count.
    pub fn content_hash(&self) -> Result<String> {
        let mut hasher = Sha256::new();
        match &self.source {
            Source::Gguf(gguf) => {
                let (header, size) = (gguf.header_bytes(), gguf.file_bytes());
                hash_file(&mut hasher, header, size, gguf.names(), |name| gguf.tensor(name))?;
            }
            Source::Folder(shards) => {
                for file in &shards.files {
                    let (header, size) = (file.header_bytes(), file.file_bytes());
                    hash_file(&mut hasher, header, size, file.names(), |name| file.tensor(name))?;
                }
            }
        }
        Ok(hex::encode(&hasher.finalize()))
    }

    /// Compares what the files hold with what the configuration needs.
    fn check_tensors(&self) -> Result<()> {
        let mut errors = match &self.source {
            Source::Folder(shards) => self.folder_differences(shards),
            Source::Gguf(gguf) => self.gguf_differences(gguf),
        };
        if errors.len() > MAX_DIFFERENCES {
            let more = errors.len() - MAX_DIFFERENCES;
            errors.truncate(MAX_DIFFERENCES);
            errors.push(Error::input(self.path.display(), format!("and {more} more differences")));
        }
        Error::none_of(errors, ())
    }

    fn gguf_differences(&self, gguf: &Gguf) -> Vec<Error> {
        let mut errors = Vec::new();
        let place = |name: &str| format!("{}: tensor {name}", gguf.place());
        for tensor in &self.tensors {
            match gguf.shape(&tensor.gguf) {
                None => errors.push(Error::input(place(&tensor.gguf), "is missing")),
                Some(shape) if shape != tensor.shape => {
                    errors.push(wrong_shape(place(&tensor.gguf), shape, &tensor.shape));
                }
                Some(_) => {}
            }
            if let Some(dtype @ (Dtype::I8 | Dtype::U8 | Dtype::I32 | Dtype::I64)) = gguf.dtype(&tensor.gguf) {
                errors.push(Error::input(place(&tensor.gguf), format!("holds {dtype}; expected a kind of float")));
            }
        }
        let expected: BTreeSet<&str> = self.tensors.iter().map(|tensor| tensor.gguf.as_str()).collect();
        for name in gguf.names().filter(|name| !expected.contains(name) && !names::is_known_extra(name)) {
            errors.push(Error::input(place(name), "is not part of a model of this configuration"));
        }
        errors
    }

    fn folder_differences(&self, shards: &Shards) -> Vec<Error> {
        let mut errors = Vec::new();
        for tensor in &self.tensors {
            let Some(file) = shards.file_of(&tensor.hf) else {
                let place = format!("{}: tensor {}", self.path.display(), tensor.hf);
                errors.push(Error::input(place, "is missing"));
                continue;
            };
            errors.extend(stored_difference(file, tensor));
        }
        let expected: BTreeSet<&str> = self.tensor_names().collect();
        for (name, file) in &shards.file_of {
            // A tied model may carry a copy of its embedding as head; transformers ignores it too.
            let ignored = names::is_known_extra(name) || (self.config.tied_head && name == names::HEAD);
            let part = bitsandbytes::weight_of_part(name).is_some_and(|weight| expected.contains(weight.as_str()));
            if !ignored && !part && !expected.contains(name.as_str()) {
                let place = format!("{}: tensor {name}", shards.files[*file].place());
                errors.push(Error::input(place, "is not part of a model of this configuration"));
            }
        }
        errors
    }
}

/// What is wrong with a tensor of a folder: its shape, its dtype, or the parts of a packed weight.
fn stored_difference(file: &SafeTensorsFile, tensor: &TensorName) -> Option<Error> {
    let place = || format!("{}: tensor {}", file.place(), tensor.hf);
    let shape = match bitsandbytes::storage(file, &tensor.hf) {
        Storage::Dense => {
            let dtype = file.dtype_name(&tensor.hf).unwrap_or_default();
            if !matches!(dtype.as_str(), "F32" | "F16" | "BF16") {
                return Some(Error::input(place(), format!("is stored as {dtype}; supported are F32, F16 and BF16")));
            }
            Ok(file.shape(&tensor.hf).unwrap_or_default().to_vec())
        }
        Storage::FourBit => bitsandbytes::read_nf4(file, &tensor.hf).map(|weight| weight.shape),
        Storage::EightBit => bitsandbytes::read_int8(file, &tensor.hf).map(|weight| weight.shape.to_vec()),
    };
    match shape {
        Ok(shape) => (shape != tensor.shape).then(|| wrong_shape(place(), &shape, &tensor.shape)),
        Err(error) => Some(error),
    }
}

fn wrong_shape(place: String, found: &[usize], expected: &[usize]) -> Error {
    Error::input(place, format!("has shape {found:?}; the configuration needs {expected:?}"))
}

/// The safetensors files of a folder.
#[derive(Debug, Clone)]
struct Shards {
    /// In the order of their names.
    files: Vec<SafeTensorsFile>,
    /// Index into `files` by tensor.
    file_of: BTreeMap<String, usize>,
}

impl Shards {
    fn open(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index = folder.join("model.safetensors.index.json");
        if single.exists() {
            Self::collect(vec![SafeTensorsFile::open(&single)?])
        } else if index.exists() {
            Self::open_index(folder, &index)
        } else {
            let error = Error::input(folder.display(), "holds neither model.safetensors nor its index");
            Err(error.hint("weights in another format (pytorch_model.bin) are never read; save them as safetensors"))
        }
    }

    fn open_index(folder: &Path, index: &Path) -> Result<Self> {
        let map = weight_map(index)?;
        let names: BTreeSet<&str> = map.values().map(String::as_str).collect();
        let errors = names.iter().filter_map(|name| check_shard_name(folder, index, name).err()).collect();
        Error::none_of(errors, ())?;
        let mut files = Vec::new();
        let mut errors = Vec::new();
        for name in &names {
            match SafeTensorsFile::open(&folder.join(name)) {
                Ok(file) => files.push(file),
                Err(error) => errors.push(error),
            }
        }
        let shards = Self::collect(Error::none_of(errors, files)?)?;
        let errors = map.iter().filter(|(tensor, _)| !shards.file_of.contains_key(*tensor)).map(|(tensor, file)| {
            Error::input(format_args!("{}: tensor {tensor}", index.display()), format!("is not in {file}"))
        });
        Error::none_of(errors.take(MAX_DIFFERENCES).collect(), shards)
    }

    fn collect(files: Vec<SafeTensorsFile>) -> Result<Self> {
        let mut file_of = BTreeMap::new();
        let mut errors = Vec::new();
        for (index, file) in files.iter().enumerate() {
            for name in file.names() {
                if let Some(first) = file_of.insert(name.to_owned(), index) {
                    let first: &SafeTensorsFile = &files[first];
                    let place = format!("{}: tensor {name}", file.place());
                    errors.push(Error::input(place, format!("is in {} too", first.place())));
                }
            }
        }
        errors.truncate(MAX_DIFFERENCES);
        Error::none_of(errors, Self { files, file_of })
    }

    /// Undoes what transformers sees through when it loads a checkpoint: the decoder saved without its head, its names
    /// without `model.`; a tied matrix under the head's name.
    fn under_usual_names(self, config: &ModelConfig) -> Result<Self> {
        let has = |name: &str| self.file_of.contains_key(name);
        let bare = has("embed_tokens.weight") && !self.file_of.keys().any(|name| name.starts_with("model."));
        let only_head = config.tied_head && has(names::HEAD) && !has(names::EMBEDDING) && !bare;
        if !bare && !only_head {
            return Ok(self);
        }
        let usual = |name: String| match name.as_str() {
            names::HEAD if only_head => names::EMBEDDING.to_owned(),
            _ if bare && !name.starts_with("lm_head.") => format!("model.{name}"),
            _ => name,
        };
        Self::collect(self.files.into_iter().map(|file| file.renamed(usual)).collect())
    }

    /// Whether there is a head that differs from the embedding.
    fn has_a_head_of_its_own(&self) -> Result<bool> {
        let tensor = |name| self.file_of(name).map(|file| file.tensor(name)).transpose();
        let (Some(embedding), Some(head)) = (tensor(names::EMBEDDING)?, tensor(names::HEAD)?) else { return Ok(false) };
        let same = (embedding.dtype, &embedding.shape) == (head.dtype, &head.shape) && *embedding.bytes == *head.bytes;
        embedding.bytes.release();
        head.bytes.release();
        Ok(!same)
    }

    fn file_of(&self, tensor: &str) -> Option<&SafeTensorsFile> {
        self.file_of.get(tensor).map(|&index| &self.files[index])
    }
}

/// Tensor name to file name, from `model.safetensors.index.json`.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    const MAX_SHARDS: usize = 10_000;
    let place = index.display();
    let value = json::read(index)?;
    if let Some(total) = value.get("metadata").and_then(|metadata| metadata.get("total_size"))
        && total.as_u64().is_none()
        && total.as_f64().is_none_or(|size| size < 0.0 || size.fract() != 0.0 || size > u64::MAX as f64)
    {
        return Err(Error::input(
            format_args!("{place}: total_size"),
            format!("is {total}; expected a number of bytes"),
        ));
    }
    let map = value.get("weight_map").and_then(serde_json::Value::as_object);
    let map = map.ok_or_else(|| Error::input(&place, "has no object `weight_map`"))?;
    let mut files = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| {
            Error::input(format_args!("{place}: weight_map.{tensor}"), format!("is {file}; expected a file name"))
        })?;
        files.insert(tensor.clone(), file.to_owned());
    }
    let shards: BTreeSet<&String> = files.values().collect();
    match shards.len() {
        0 => Err(Error::input(place, "`weight_map` is empty")),
        count if count > MAX_SHARDS => {
            Err(Error::input(place, format!("{count} shards, above the limit of {MAX_SHARDS}")))
        }
        _ => Ok(files),
    }
}

/// A shard is a plain file name in the folder. A link is followed inside the folder and, for the hub's cache,
/// to the `blobs` folder beside `snapshots`; not elsewhere.
fn check_shard_name(folder: &Path, index: &Path, name: &str) -> Result<()> {
    let place = format!("{}: weight_map", index.display());
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', ':', '\0']);
    if !plain {
        return Err(Error::input(place, format!("names the file {name:?}; expected a plain file name")));
    }
    let shard = folder.join(name);
    let real = shard.canonicalize().map_err(|error| Error::read(&shard, &error))?;
    let inside = |root: PathBuf| root.canonicalize().is_ok_and(|root| real.starts_with(root));
    if inside(folder.to_owned()) || inside(folder.join("../../blobs")) {
        return Ok(());
    }
    Err(Error::input(place, format!("names {name:?}, a link that leads out of the folder to {}", real.display()))
        .hint("give the folder that the files really lie in, or copy them"))
}

/// Undoes the row permutation of llama.cpp's converter (`permute` in `conversion/llama.py`), for rotary
/// embedding of pairs to become rotary embedding of halves: within each head, GGUF row `2 j + p` is
/// Hugging Face row `p * head_dim / 2 + j`. Whole rows move, so nothing is decoded.
/// `None` where the shape does not hold these heads.
fn restore_rows(tensor: &RawTensor, heads: usize, head_dim: usize) -> Option<RawTensor> {
    let rows = *tensor.shape.first()?;
    if rows == 0 || rows != heads * head_dim || !tensor.bytes.len().is_multiple_of(rows) {
        return None;
    }
    let row_bytes = tensor.bytes.len() / rows;
    let half = head_dim / 2;
    let mut bytes = Vec::with_capacity(tensor.bytes.len());
    for head in 0..heads {
        for row in 0..head_dim {
            let from = head * head_dim + 2 * (row % half) + row / half;
            bytes.extend_from_slice(tensor.bytes.get(from * row_bytes..(from + 1) * row_bytes)?);
        }
    }
    Some(RawTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes: Bytes::from(bytes) })
}

/// Feeds a file: its size, its header, and the digest of each tensor.
fn hash_file<'a>(
    hasher: &mut Sha256,
    header: &[u8],
    file_bytes: usize,
    names: impl Iterator<Item = &'a str>,
    tensor: impl Fn(&str) -> Result<RawTensor> + Sync,
) -> Result<()> {
    hasher.update((file_bytes as u64).to_le_bytes());
    hasher.update((header.len() as u64).to_le_bytes());
    hasher.update(header);
    let names: Vec<&str> = names.collect();
    let sample = file_bytes > MAX_HASHED_WHOLE;
    let digest = |name: &&str| {
        let tensor = tensor(name)?;
        let digest = tensor_digest(&tensor.bytes, sample);
        // What was read for its digest need not stay in memory until the weights are loaded.
        tensor.bytes.release();
        Ok(digest)
    };
    let digests: Result<Vec<_>> = names.par_iter().map(digest).collect();
    for digest in digests? {
        hasher.update(digest);
    }
    Ok(())
}

fn tensor_digest(bytes: &[u8], sample: bool) -> [u8; 32] {
    const CHUNK: usize = 64 << 10;
    const CHUNKS: usize = 16;
    if !sample || bytes.len() <= CHUNK * CHUNKS {
        return Sha256::digest(bytes).into();
    }
    let mut hasher = Sha256::new();
    let last = bytes.len() - CHUNK;
    for chunk in 0..CHUNKS {
        let start = if chunk == CHUNKS - 1 { last } else { last / (CHUNKS - 1) * chunk };
        hasher.update(&bytes[start..start + CHUNK]);
    }
    hasher.finalize().into()
}
