//! The place of a problem, typed: a program that uses the library can distinguish a setting, a file and a tensor.

use std::borrow::Cow;
use std::fmt;
use std::path::{self, Path, PathBuf};

/// The place of a [`Problem`](super::Problem).
///
/// Text converts to [`Place::Text`], a path (or what its `display()` gives) to [`Place::File`]; the other kinds are made
/// by name. Nothing is guessed from how a text looks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum Place {
    /// No place: the message says all there is.
    #[default]
    Nowhere,
    /// A setting by its full key: `adapter.rank`. A recipe knows where it was typed.
    Setting(Cow<'static, str>),
    /// An argument of the command line: `--device`, `--set train.seed`.
    Argument(Cow<'static, str>),
    /// A file or folder, or a place in a text file; counted from 1.
    File {
        /// The path as the user gave it, or as it follows from that.
        path: PathBuf,
        /// The line, where the file is text.
        line: Option<usize>,
        /// The column in the line, in characters.
        column: Option<usize>,
    },
    /// A tensor of a file of weights.
    Tensor {
        /// The file; empty where the tensor does not lie in a file yet.
        file: PathBuf,
        /// The name of the tensor in that file.
        name: String,
    },
    /// A part of a larger place: a prompt of several, a row of a table.
    Part {
        /// The larger place.
        whole: Box<Place>,
        /// The place in it.
        part: Box<Place>,
    },
    /// Any other place, in words: `Hugging Face hub`, `example 3`.
    Text(String),
}

impl Place {
    /// The setting with this full key.
    pub fn setting(key: impl Into<Cow<'static, str>>) -> Self {
        Self::Setting(key.into())
    }

    /// The argument of the command line.
    pub fn argument(name: impl Into<Cow<'static, str>>) -> Self {
        Self::Argument(name.into())
    }

    /// The tensor `name` of `file`.
    pub fn tensor(file: impl AsRef<Path>, name: impl Into<String>) -> Self {
        Self::Tensor { file: file.as_ref().to_owned(), name: name.into() }
    }

    /// A file or folder.
    pub fn file(path: impl AsRef<Path>) -> Self {
        Self::File { path: path.as_ref().to_owned(), line: None, column: None }
    }

    /// A line of this file. A text counts as the name of a file.
    pub fn line(self, line: usize) -> Self {
        let path = match self {
            Self::File { path, .. } => path,
            Self::Text(name) => PathBuf::from(name),
            Self::Nowhere => PathBuf::new(),
            whole => return whole.part(Self::Text(format!("line {line}"))),
        };
        Self::File { path, line: Some(line), column: None }
    }

    /// A column of the line that this place names; without a line, the place is unchanged.
    pub fn column(mut self, value: usize) -> Self {
        if let Self::File { line: Some(_), column, .. } = &mut self {
            *column = Some(value);
        }
        self
    }

    /// `part` within this place.
    pub fn part(self, part: impl Into<Place>) -> Self {
        match (self, part.into()) {
            (Self::Nowhere, part) => part,
            (whole, Self::Nowhere) => whole,
            (whole, part) => Self::Part { whole: Box::new(whole), part: Box::new(part) },
        }
    }

    /// Whether no place is named.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Nowhere)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => Ok(()),
            Self::Setting(name) | Self::Argument(name) => f.write_str(name),
            Self::Text(text) => f.write_str(text),
            Self::File { path, line, column } => {
                path.display().fmt(f)?;
                for number in [line, column].into_iter().flatten() {
                    write!(f, ":{number}")?;
                }
                Ok(())
            }
            Self::Tensor { file, name } if file.as_os_str().is_empty() => write!(f, "tensor {name}"),
            Self::Tensor { file, name } => write!(f, "{}: tensor {name}", file.display()),
            Self::Part { whole, part } => write!(f, "{whole}: {part}"),
        }
    }
}

impl From<String> for Place {
    fn from(text: String) -> Self {
        if text.is_empty() { Self::Nowhere } else { Self::Text(text) }
    }
}

impl From<fmt::Arguments<'_>> for Place {
    fn from(text: fmt::Arguments<'_>) -> Self {
        text.to_string().into()
    }
}

impl From<&Place> for Place {
    fn from(place: &Place) -> Self {
        place.clone()
    }
}

impl From<path::Display<'_>> for Place {
    fn from(path: path::Display<'_>) -> Self {
        Self::file(path.to_string())
    }
}

/// Conversions from references, each by the one that is named.
macro_rules! from_references {
    ($($from:ty => $by:expr),* $(,)?) => {$(
        impl From<$from> for Place {
            fn from(from: $from) -> Self {
                $by(from)
            }
        }
    )*};
}

from_references! {
    &path::Display<'_> => |path: &path::Display<'_>| Place::file(path.to_string()),
    &str => |text: &str| text.to_owned().into(),
    &&str => |text: &&str| (*text).to_owned().into(),
    &String => |text: &String| text.clone().into(),
    &Path => Place::file,
    &PathBuf => Place::file,
    PathBuf => Place::file,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_as_users_write_it() {
        let file = Place::file("a.toml");
        let shown = [
            (Place::Nowhere, ""),
            (Place::setting("adapter.rank"), "adapter.rank"),
            (Place::argument("--set x.y"), "--set x.y"),
            (file.clone(), "a.toml"),
            (file.clone().line(3), "a.toml:3"),
            (file.clone().line(3).column(7), "a.toml:3:7"),
            (file.clone().column(7), "a.toml"),
            (Place::from("d.json").line(2), "d.json:2"),
            (Place::tensor("m.gguf", "output.weight"), "m.gguf: tensor output.weight"),
            (Place::tensor("", "q"), "tensor q"),
            (file.part("row 9"), "a.toml: row 9"),
            (Place::Nowhere.part("row 9"), "row 9"),
        ];
        for (place, text) in shown {
            assert_eq!(place.to_string(), text);
        }
    }

    #[test]
    fn a_text_that_looks_like_a_setting_or_a_path_stays_a_text() {
        assert_eq!(Place::from("adapter.rank"), Place::Text("adapter.rank".into()));
        assert_eq!(Place::from(Path::new("adapter.rank").display()), Place::file("adapter.rank"));
        assert_eq!(Place::from(""), Place::Nowhere);
    }
}
