//! Differences between the tensors in a base's files and those that its configuration needs.

use std::collections::{BTreeMap, BTreeSet};

use super::index::ShardIndex;
use super::{BaseFiles, MAX_DIFFERENCES, Source};
use crate::error::{Error, Result};
use crate::files::Dtype;
use crate::files::bitsandbytes::{self, Storage};
use crate::files::gguf::Gguf;
use crate::files::safetensors::SafeTensorsFile;
use crate::model::spec::TensorSpec;

impl BaseFiles {
    /// Compares what the files hold with what the configuration needs.
    pub(super) fn check_tensors(&self) -> Result<()> {
        let mut errors = match &self.source {
            Source::Folder(shards) => self.folder_differences(shards),
            Source::Gguf(gguf) => self.gguf_differences(gguf),
            Source::Synthetic => Vec::new(),
        };
        if errors.len() > MAX_DIFFERENCES {
            let more = errors.len() - MAX_DIFFERENCES;
            errors.truncate(MAX_DIFFERENCES);
            errors.push(Error::input(self.path.display(), format!("and {more} more differences")));
        }
        Error::none_of(errors, ())
    }

    /// Tensors of the files that belong to other parts of a larger model and are not used: the names of these parts, each
    /// with its number of tensors.
    pub fn passed_over(&self) -> BTreeMap<String, usize> {
        let mut parts = BTreeMap::new();
        let Source::Folder(shards) = &self.source else { return parts };
        let is_beside = |name: &str| self.config.vision.as_ref().is_some_and(|vision| vision.owns(name));
        let unused = shards.file_of.keys().filter(|name| (self.config.family.ignores)(name) || is_beside(name));
        for name in unused.filter(|name| !name.starts_with(self.config.names.layers)) {
            let part = name.strip_prefix("model.").unwrap_or(name).split('.').next().unwrap_or(name);
            *parts.entry(part.to_owned()).or_insert(0) += 1;
        }
        parts
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
        for name in gguf.names().filter(|name| !expected.contains(name) && !self.config.ignores(name)) {
            errors.push(Error::input(place(name), "is not part of a model of this configuration"));
        }
        errors
    }

    fn folder_differences(&self, shards: &ShardIndex) -> Vec<Error> {
        let mut errors = Vec::new();
        for tensor in &self.tensors {
            let Some(file) = shards.file_of(&tensor.hf) else {
                let place = format!("{}: tensor {}", self.path.display(), tensor.hf);
                errors.push(Error::input(place, "is missing"));
                continue;
            };
            errors.extend(stored_difference(file, tensor));
        }
        for (name, needed) in self.config.vision.iter().flat_map(|vision| vision.tensors(self.config.hidden_size)) {
            let place = format!("{}: tensor {name}", self.path.display());
            match self.shape(&name) {
                None => errors.push(Error::input(place, "is missing")),
                Some(found) if found != needed => errors.push(wrong_shape(place, found, &needed)),
                Some(_) => {}
            }
        }
        let expected: BTreeSet<&str> = self.tensor_names().chain(self.vision_tensor_names()).collect();
        for (name, file) in &shards.file_of {
            let part = bitsandbytes::weight_of_part(name).is_some_and(|weight| expected.contains(weight.as_str()));
            if !self.config.ignores(name) && !part && !expected.contains(name.as_str()) {
                let place = format!("{}: tensor {name}", shards.files[*file].place());
                errors.push(Error::input(place, "is not part of a model of this configuration"));
            }
        }
        errors
    }
}

/// The problem with a tensor of a folder: its shape, its dtype, or the parts of a packed weight.
fn stored_difference(file: &SafeTensorsFile, tensor: &TensorSpec) -> Option<Error> {
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
