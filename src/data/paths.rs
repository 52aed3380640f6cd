//! The data files that a setting names: a file, a folder, a pattern, or a list of these.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use glob::MatchOptions;
use serde::{Serialize, Serializer};

use super::read::Kind;
use crate::error::{Error, Result};
use crate::settings::{Describe, FromNode, IsEmpty, Node, Reader, Value, mismatch};

/// The names of data files, as they were given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths(Vec<PathBuf>);

impl Paths {
    /// The files, in the order of the list; those of a folder or a pattern in the order of their names.
    ///
    /// # Errors
    /// Input: a name that leads to no file; a folder without data files, or with those of several splits; a file that is
    /// named twice.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let (mut files, mut seen) = (Vec::new(), HashSet::new());
        for path in &self.0 {
            for file in files_of(path)? {
                if !seen.insert(file.clone()) {
                    return Err(Error::input(file, "is named twice").hint(
                        "`weight = 2` of an entry of `[[data.sources]]` shows the examples of a file twice in an epoch",
                    ));
                }
                files.push(file);
            }
        }
        Ok(files)
    }

    /// The files in folders that are not read, since their endings are none of data files; hidden ones aside.
    pub fn passed_over(&self) -> Vec<PathBuf> {
        let folders = self.0.iter().filter_map(|path| std::fs::read_dir(path).ok());
        let paths = folders.flatten().flatten().map(|entry| entry.path());
        let mut others: Vec<PathBuf> =
            paths.filter(|path| Kind::known(path).is_none() && !is_hidden(path) && path.is_file()).collect();
        others.sort();
        others
    }

    /// Whether one of the names is relative to the current folder.
    pub fn has_relative(&self) -> bool {
        self.0.iter().any(|path| path.is_relative())
    }
}

/// Characters that make a name a pattern.
const PATTERN: [char; 3] = ['*', '?', '['];

/// The files that one name stands for.
fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    if path.is_dir() {
        return files_of_folder(path);
    }
    if let Some(name) = path.to_str().and_then(|path| path.strip_prefix("hf:")).filter(|_| !path.exists()) {
        let message = "is a data set of the Hugging Face hub; expected files on this machine";
        return Err(Error::input(path, message).hint(format!(
            "`hf download --repo-type dataset {name} --local-dir data` fetches them into the folder `data`"
        )));
    }
    let pattern = path.to_str().filter(|name| name.contains(PATTERN) && !path.exists());
    let Some(pattern) = pattern else {
        return match std::fs::metadata(path) {
            Ok(_) => Ok(vec![path.to_owned()]),
            Err(error) => Err(Error::read(path, &error)),
        };
    };
    let options = MatchOptions { require_literal_leading_dot: true, ..MatchOptions::new() };
    let matches = glob::glob_with(pattern, options)
        .map_err(|error| Error::input(path, format!("is no pattern: {}", error.msg)).because(error))?;
    let mut files = Vec::new();
    for found in matches {
        let found = found.map_err(|error| Error::read(error.path(), error.error()))?;
        files.extend(found.is_file().then_some(found));
    }
    if files.is_empty() {
        return Err(Error::input(path, "matches no file"));
    }
    Ok(files)
}

/// The words in the names of files that say which split they are.
const SPLITS: [(&str, &[&str]); 3] =
    [("train", &["train", "training"]), ("valid", &["valid", "validation", "val", "dev", "eval"]), ("test", &["test"])];

/// The split that the name of a file tells.
fn split_of(file: &Path) -> Option<&'static str> {
    let name = file.file_name()?.to_string_lossy().to_lowercase();
    let mut words = name.split(|symbol: char| !symbol.is_alphanumeric());
    words.find_map(|word| SPLITS.iter().find(|(_, names)| names.contains(&word)).map(|(split, _)| *split))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// The data files in a folder, by name; those of folders within are not.
fn files_of_folder(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|error| Error::read(folder, &error))?;
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let paths: Vec<PathBuf> = paths.collect::<std::io::Result<_>>().map_err(|error| Error::read(folder, &error))?;
    let is_arrow = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "arrow");
    if paths.iter().any(is_arrow) {
        return Err(Error::input(folder, "holds Arrow files, as `save_to_disk` of datasets writes them")
            .hint("in Python: `load_from_disk(folder).to_parquet(\"train.parquet\")`"));
    }
    let mut files: Vec<PathBuf> =
        paths.into_iter().filter(|path| Kind::known(path).is_some() && !is_hidden(path) && path.is_file()).collect();
    files.sort();
    if files.is_empty() {
        return Err(Error::input(
            folder,
            format!("holds no data file; expected names that end with {}", Kind::endings()),
        )
        .hint(format!("`{}` reads the files of its folders", folder.join("**/*.jsonl").display())));
    }
    let splits: Vec<&str> = files.iter().filter_map(|file| split_of(file)).collect();
    if let Some(other) = splits.iter().find(|split| **split != splits[0]) {
        let message = format!("holds files of several splits, `{}` and `{other}`", splits[0]);
        return Err(Error::input(folder, message)
            .hint(format!("name the files: `{}`", folder.join(format!("*{}*", splits[0])).display())));
    }
    Ok(files)
}

impl<P: Into<PathBuf>> From<P> for Paths {
    fn from(path: P) -> Self {
        Self(vec![path.into()])
    }
}

impl fmt::Display for Paths {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.0.iter().map(|path| path.display().to_string()).collect();
        f.write_str(&names.join(", "))
    }
}

impl IsEmpty for Paths {
    fn is_empty(&self) -> bool {
        self.0.is_empty() || self.0.iter().any(IsEmpty::is_empty)
    }
}

impl Describe for Paths {
    fn schema() -> serde_json::Value {
        serde_json::json!({ "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }] })
    }
}

impl FromNode for Paths {
    fn from_node(node: &Node, key: &str, reader: &mut Reader) -> Option<Self> {
        match node.value {
            Value::String(_) => PathBuf::from_node(node, key, reader).map(Self::from),
            Value::Array(_) => Vec::from_node(node, key, reader).map(Self),
            _ => mismatch(node, key, "a path or a list of paths", reader),
        }
    }
}

impl Serialize for Paths {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [path] => path.serialize(serializer),
            paths => paths.serialize(serializer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_split_of_a_file_stands_in_its_name() {
        let split = |name: &str| split_of(Path::new(name));
        assert_eq!(split("train-00000-of-00002.parquet"), Some("train"));
        assert_eq!((split("my.dev.jsonl"), split("test.csv")), (Some("valid"), Some("test")));
        assert_eq!((split("contest.jsonl"), split("trains.json")), (None, None));
    }
}
