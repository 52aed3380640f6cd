//! The frozen base model's files: a Hugging Face folder or a GGUF file, under one set of names.

mod differences;
mod fingerprint;
mod gguf;
mod grown;
mod index;
mod missing;
mod synthetic;
mod weight;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::config::ModelConfig;
use super::spec::TensorSpec;
use crate::error::{Error, Result};
use crate::files::bitsandbytes::{self, Storage};
use crate::files::gguf::Gguf;
use crate::files::safetensors::SafeTensorsFile;
use crate::files::{Dtype, RawTensor};

use index::ShardIndex;
pub use weight::{StoredWeight, quantiser_sha256};

/// Most differences to list; further ones are only counted.
const MAX_DIFFERENCES: usize = 100;

/// An open base model. Its tensors have the names of [`ModelConfig::tensors`] (and of its `vision`), the right shapes, and a dtype that
/// is supported; their bytes stay in the mapped files until they are asked for.
#[derive(Debug, Clone)]
pub struct BaseFiles {
    path: PathBuf,
    config: ModelConfig,
    /// Those of the decoder, then those of tower and connector, used or not, as the files have them.
    tensors: Vec<TensorSpec>,
    /// The number of the decoder's.
    of_decoder: usize,
    /// Index into `tensors` by Hugging Face name: a file may have ten thousand layers.
    by_name: HashMap<String, usize>,
    /// The rows of the embedding in its file.
    stored_vocabulary: usize,
    source: Source,
}

#[derive(Debug, Clone)]
enum Source {
    Folder(ShardIndex),
    Gguf(Gguf),
    /// No files: every tensor is in bf16 and has made-up values.
    Synthetic,
}

impl BaseFiles {
    /// Opens a folder with `config.json` and `model.safetensors` (or shards with their index), or a GGUF
    /// file. Reads headers only, and reports every missing, unexpected or misshapen tensor at once.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).map_err(|error| Error::read(path, &error))?;
        let (config, source) = if metadata.is_dir() {
            if let Some(error) = missing::no_model(path) {
                return Err(error);
            }
            let mut config = ModelConfig::from_json_file(&path.join("config.json"))?;
            let shards = ShardIndex::open(path, &config)?.under_usual_names(&config)?;
            // transformers 5 believes the weights where they contradict `tie_word_embeddings`.
            config.tied_head = config.tied_head && !shards.has_a_head_of_its_own(&config)?;
            (config, Source::Folder(shards))
        } else if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors")) {
            return Err(Error::input(path.display(), "is one file of weights, without its config.json")
                .hint("give the folder that it lies in"));
        } else {
            let gguf = Gguf::open(path)?;
            (ModelConfig::from_gguf(&gguf)?, Source::Gguf(gguf))
        };
        let base = Self::of(path.to_owned(), config, source);
        base.check_tensors()?;
        Ok(base)
    }

    /// A base of this shape, whose tensors are not checked yet.
    fn of(path: PathBuf, config: ModelConfig, source: Source) -> Self {
        let mut tensors = config.tensors();
        let of_decoder = tensors.len();
        if let (Source::Folder(shards), Some(vision)) = (&source, &config.vision) {
            tensors.extend(shards.tensors_where(|name| vision.owns(name)));
        }
        let by_name = tensors.iter().enumerate().map(|(index, tensor)| (tensor.hf.clone(), index)).collect();
        let stored_vocabulary = config.vocab_size;
        Self { path, config, tensors, of_decoder, by_name, stored_vocabulary, source }
    }

    /// The path that was opened.
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
            Source::Folder(_) | Source::Synthetic => None,
        }
    }

    /// Hugging Face names of the model's tensors, in the order of [`ModelConfig::tensors`]. Without the head
    /// where it is tied.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors[..self.of_decoder].iter().map(|tensor| tensor.hf.as_str())
    }

    /// Names of the tensors of tower and connector, of a model that sees pictures.
    pub fn vision_tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors[self.of_decoder..].iter().map(|tensor| tensor.hf.as_str())
    }

    /// Whether the model has a tensor of this Hugging Face name.
    pub fn has(&self, hf_name: &str) -> bool {
        self.by_name.contains_key(hf_name)
    }

    /// Whether the tensor is the weight of a layer's projection: what quantisation applies to.
    pub fn is_projection(&self, hf_name: &str) -> bool {
        self.spec(hf_name).is_some_and(|tensor| tensor.is_projection)
    }

    fn spec(&self, hf_name: &str) -> Option<&TensorSpec> {
        self.by_name.get(hf_name).map(|&index| &self.tensors[index])
    }

    /// The shape of a tensor by its Hugging Face name, outermost dimension first.
    pub fn shape(&self, hf_name: &str) -> Option<&[usize]> {
        self.spec(hf_name).map(|tensor| tensor.shape.as_slice())
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
            Source::Gguf(gguf) => gguf.dtype(&self.spec(hf_name)?.gguf),
            Source::Synthetic => self.spec(hf_name).map(|_| Dtype::Bf16),
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
                        Ok(StoredWeight::Dense(self.grown(hf_name, tensor)))
                    }
                }
            }
            Source::Gguf(gguf) => {
                let tensor = self.spec(hf_name).ok_or_else(|| self.unknown(hf_name))?;
                Ok(StoredWeight::Dense(self.grown(hf_name, gguf::read(gguf, tensor)?)))
            }
            Source::Synthetic => {
                let tensor = self.spec(hf_name).ok_or_else(|| self.unknown(hf_name))?;
                Ok(StoredWeight::Dense(synthetic::tensor(&tensor.shape)))
            }
        }
    }

    /// Whether bitsandbytes packed the tensor.
    pub fn is_packed(&self, hf_name: &str) -> bool {
        match &self.source {
            Source::Folder(shards) => {
                let file = shards.file_of(hf_name);
                file.is_some_and(|file| bitsandbytes::storage(file, hf_name) != Storage::Dense)
            }
            Source::Gguf(_) | Source::Synthetic => false,
        }
    }

    /// Whether projections are stored packed, in GGUF blocks or as bitsandbytes packs them, so that decoding them is the
    /// only way to their values.
    pub fn stores_packed_projections(&self) -> bool {
        let mut projections = self.tensors.iter().filter(|tensor| tensor.is_projection);
        projections.any(|tensor| self.is_packed(&tensor.hf) || matches!(self.dtype(&tensor.hf), Some(Dtype::Block(_))))
    }

    /// The number format of a tensor: `BF16`, `Q4_K`, or `NF4` and `INT8` for weights that bitsandbytes packed. Reads headers only.
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
            Source::Gguf(gguf) => gguf.dtype(&self.spec(hf_name)?.gguf).map(|dtype| dtype.name().to_owned()),
            Source::Synthetic => self.spec(hf_name).map(|_| Dtype::Bf16.name().to_owned()),
        }
    }

    /// Size of a tensor in its file; 0 for a name that the model does not have.
    pub fn stored_bytes(&self, hf_name: &str) -> usize {
        let bytes = match &self.source {
            Source::Folder(shards) => shards.file_of(hf_name).and_then(|file| file.tensor(hf_name).ok()),
            Source::Gguf(gguf) => self.spec(hf_name).and_then(|tensor| gguf.tensor(&tensor.gguf).ok()),
            Source::Synthetic => return self.spec(hf_name).map_or(0, |tensor| synthetic::bytes(&tensor.shape)),
        };
        bytes.map_or(0, |tensor| tensor.bytes.len())
    }

    /// Size of the scales beside the codes of a weight that bitsandbytes packed; 0 for any other.
    pub fn stored_scale_bytes(&self, hf_name: &str) -> usize {
        let Source::Folder(shards) = &self.source else { return 0 };
        let file = shards.file_of(hf_name);
        file.and_then(|file| file.tensor(&bitsandbytes::scales_name(file, hf_name)?).ok())
            .map_or(0, |scales| scales.bytes.len())
    }

    /// Whether [`Self::weight`] hands out the bytes of the mapped file themselves, which the kernels read there.
    pub fn is_mapped(&self, hf_name: &str) -> bool {
        let tensor = match &self.source {
            Source::Folder(shards) => shards.file_of(hf_name).and_then(|file| file.tensor(hf_name).ok()),
            Source::Gguf(gguf) => {
                let as_stored = |spec: &&TensorSpec| !spec.gguf_rows.moves_rows() && spec.gguf_offset == 0.0;
                self.spec(hf_name).filter(as_stored).and_then(|spec| gguf.tensor(&spec.gguf).ok())
            }
            // It stands for a folder in bf16.
            Source::Synthetic => return self.has(hf_name),
        };
        let suits = |tensor: RawTensor| {
            let value_bytes = match tensor.dtype {
                Dtype::F32 => 4,
                Dtype::F16 | Dtype::Bf16 => 2,
                _ => 1,
            };
            tensor.bytes.are_mapped(value_bytes)
        };
        !self.is_grown(hf_name) && tensor.is_some_and(suits)
    }

    /// Size of the files of weights.
    pub fn file_bytes(&self) -> usize {
        match &self.source {
            Source::Folder(shards) => shards.files.iter().map(SafeTensorsFile::file_bytes).sum(),
            Source::Gguf(gguf) => gguf.file_bytes(),
            Source::Synthetic => self.tensors.iter().map(|tensor| synthetic::bytes(&tensor.shape)).sum(),
        }
    }

    /// Returns the memory of the mapped files' pages to the system, which reads them again on the next access.
    pub fn release(&self) {
        match &self.source {
            Source::Folder(shards) => shards.files.iter().for_each(SafeTensorsFile::release),
            Source::Gguf(gguf) => gguf.release(),
            Source::Synthetic => {}
        }
    }

    fn unknown(&self, hf_name: &str) -> Error {
        Error::input(format_args!("{}: tensor {hf_name}", self.path.display()), "the model has no such tensor")
    }
}
