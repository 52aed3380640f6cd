//! Models that are split into several GGUF files, as llama.cpp's `gguf-split` numbers and names them.
//!
//! The first file has all metadata; each has `split.no`, `split.count` and `split.tensors.count`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Gguf, TensorInfo, Value};
use crate::error::{Error, Place, Result};
use crate::files::open;

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";
/// The most files of one model.
const MAX_FILES: u64 = 10_000;

/// The path of file `number` (from 0) of `count`, for a model whose one file would be `path`:
/// `model-00001-of-00003.gguf` (llama.cpp `llama_split_path`); `path` itself for one file.
pub fn file_path(path: &Path, number: usize, count: usize) -> PathBuf {
    if count < 2 {
        return path.to_owned();
    }
    let stem = path.with_extension("");
    let stem = stem.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{:05}-of-{count:05}.gguf", number + 1))
}

/// The keys of file `number` (from 0) of `count`.
pub fn metadata(number: usize, count: usize, tensors: usize) -> [(String, Value); 3] {
    let number16 = |number: usize| Value::U16(u16::try_from(number).unwrap_or(u16::MAX));
    let tensors = Value::I32(i32::try_from(tensors).unwrap_or(i32::MAX));
    [(NUMBER, number16(number)), (COUNT, number16(count)), (TENSORS, tensors)]
        .map(|(key, value)| (key.to_owned(), value))
}

/// Fills files in order, each up to `max_bytes`; a tensor above that size gets a file of its own. Returns the number of
/// tensors in each.
///
/// # Errors
/// Those of [`TensorInfo::bytes`].
pub fn plan(tensors: &[TensorInfo], max_bytes: u64) -> Result<Vec<usize>> {
    let mut counts: Vec<usize> = Vec::new();
    let mut filled = 0u64;
    for tensor in tensors {
        let bytes = tensor.bytes()?;
        match counts.last_mut() {
            Some(count) if filled.saturating_add(bytes) <= max_bytes => {
                *count += 1;
                filled += bytes;
            }
            _ => {
                counts.push(1);
                filled = bytes;
            }
        }
    }
    Ok(counts)
}

/// The number of files of the model that a file with this metadata belongs to.
///
/// # Errors
/// Input: no possible number.
pub(super) fn count(place: &str, metadata: &BTreeMap<String, Value>) -> Result<usize> {
    match metadata.get(COUNT).map(|value| value.as_u64().filter(|count| (1..=MAX_FILES).contains(count))) {
        None => Ok(1),
        Some(Some(count)) => Ok(count as usize),
        Some(None) => {
            Err(Error::input(format_args!("{place}: {COUNT}"), format!("is no number of files from 1 to {MAX_FILES}")))
        }
    }
}

/// The whole model whose first file is `first`, at `path`.
///
/// # Errors
/// Input: `first` is not the first one, another file is missing, broken or of another model.
pub(super) fn join(path: &Path, first: Gguf, count: usize) -> Result<Gguf> {
    let number_of = |file: &Gguf| file.get(NUMBER).and_then(Value::as_u64);
    let ending = |number: usize| format!("-{:05}-of-{count:05}.gguf", number + 1);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if number_of(&first) != Some(0) {
        let error = Error::input(path.display(), format!("is one of the {count} files of a model, and not the first"));
        return Err(error.hint(format!("name the one that ends in {}", ending(0))));
    }
    let Some(stem) = name.strip_suffix(&ending(0)) else {
        let message = format!("is the first of {count} files; expected a name that ends in {}", ending(0));
        return Err(Error::input(path.display(), message).hint("the other files are found by that name"));
    };
    let mut whole = first;
    let mut errors = Vec::new();
    for number in 1..count {
        let path = path.with_file_name(format!("{stem}{}", ending(number)));
        let opened = open::map(&path).and_then(|bytes| Gguf::one_file(path.display().to_string(), bytes));
        match opened.and_then(|part| add(&mut whole, part, number)) {
            Ok(()) => {}
            Err(error) => errors.push(error),
        }
    }
    let mut whole = Error::none_of(errors, whole)?;
    let expected = whole.get(TENSORS).and_then(Value::as_u64);
    if expected.is_some_and(|expected| expected != whole.tensors.len() as u64) {
        let message = format!("the {count} files hold {} tensors; {TENSORS} is not that", whole.tensors.len());
        return Err(Error::input(whole.place(), message));
    }
    for key in [NUMBER, COUNT, TENSORS] {
        whole.metadata.remove(key);
    }
    Ok(whole)
}

/// Adds file `number` to those before it.
fn add(whole: &mut Gguf, part: Gguf, number: usize) -> Result<()> {
    let place = part.place().to_owned();
    for (key, expected) in [(NUMBER, Some(number as u64)), (COUNT, whole.get(COUNT).and_then(Value::as_u64))] {
        if part.get(key).and_then(Value::as_u64) != expected {
            let message = "is not that of its name: the file belongs to another model or place";
            return Err(Error::input(format_args!("{place}: {key}"), message));
        }
    }
    let index = whole.parts.len();
    for (name, mut entry) in part.tensors {
        entry.part = index;
        if whole.tensors.insert(name.clone(), entry).is_some() {
            return Err(Error::input(Place::tensor(&place, &name), "is in an earlier file too"));
        }
    }
    whole.parts.extend(part.parts);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Dtype;

    #[test]
    fn names_and_sizes_of_the_files() {
        let path = |number, count| file_path(Path::new("out/m.q8.gguf"), number, count).display().to_string();
        assert_eq!(path(0, 1), "out/m.q8.gguf");
        assert_eq!([path(0, 3), path(2, 3)], ["out/m.q8-00001-of-00003.gguf", "out/m.q8-00003-of-00003.gguf"]);
        let sized = |values: usize| TensorInfo { name: "a".to_owned(), dtype: Dtype::F32, shape: vec![values] };
        let tensors = [5, 4, 30, 2, 8].map(sized);
        assert_eq!(plan(&tensors, 40).expect("sizes"), [2, 1, 2]);
        assert_eq!(plan(&tensors, u64::MAX).expect("sizes"), [5]);
    }
}
