//! What went wrong, where, and what to do about it.
//!
//! Every error a user can cause names the place (file, `file:line`, tensor, recipe key), says what was
//! found and what was expected, and may carry a hint. Several problems found together are one error.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// So many problems are told, the rest is counted.
const MAX_PROBLEMS: usize = 200;
/// A message is cut to so many characters: names and values from a file stand in it, as long as the file likes.
const MAX_CHARACTERS: usize = 2000;

/// Who has to act: decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Used wrongly: arguments, recipe, bad input files. Exit code 2.
    Input,
    /// Used rightly, but it failed: disk full, network, a check that said no. Exit code 1.
    Failed,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `path`, `path:line`, `path:line:column`, `path: tensor NAME`; empty where there is no place.
    pub place: String,
    /// What was found and what was expected.
    pub message: String,
    /// What the user can do.
    pub hint: Option<String>,
}

/// One or several problems, with the exit code they deserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    problems: Vec<Problem>,
}

impl Error {
    /// Bad input at `place`: exit code 2.
    pub fn input(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::new(Kind::Input, place, message)
    }

    /// Something that failed through no fault of the input: exit code 1.
    pub fn failed(place: impl fmt::Display, message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, place, message)
    }

    fn new(kind: Kind, place: impl fmt::Display, message: impl Into<String>) -> Self {
        let problem = Problem { place: place.to_string(), message: message.into(), hint: None };
        Self { kind, problems: vec![problem] }
    }

    /// Reading `path` failed. A missing or unreadable path is the user's to mend.
    pub fn read(path: &Path, error: &std::io::Error) -> Self {
        Self::input(path.display(), format!("cannot be read: {error}"))
    }

    /// Writing `path` failed (disk full, no permission).
    pub fn write(path: &Path, error: &std::io::Error) -> Self {
        Self::failed(path.display(), format!("cannot be written: {error}"))
    }

    /// Adds a hint to the last problem.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Some(problem) = self.problems.last_mut() {
            problem.hint = Some(hint.into());
        }
        self
    }

    /// Joins errors found together into one; `None` if there are none. Input errors win the exit code.
    pub fn join(errors: impl IntoIterator<Item = Error>) -> Option<Self> {
        errors.into_iter().reduce(|mut all, next| {
            if next.kind == Kind::Input {
                all.kind = Kind::Input;
            }
            all.problems.extend(next.problems);
            all
        })
    }

    /// `Err` with all of them, or `Ok(value)` where there are none.
    pub fn none_of<T>(errors: Vec<Error>, value: T) -> Result<T> {
        match Self::join(errors) {
            Some(error) => Err(error),
            None => Ok(value),
        }
    }

    /// Both values, or what is wrong with either: for two things that can fail independently of each other.
    pub fn both<A, B>(first: Result<A>, second: Result<B>) -> Result<(A, B)> {
        match (first, second) {
            (Ok(first), Ok(second)) => Ok((first, second)),
            (Err(first), Err(second)) => Err(Self::join([first.clone(), second]).unwrap_or(first)),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// The same problems, each at a place within `whole`.
    pub fn within(mut self, whole: impl fmt::Display) -> Self {
        for problem in &mut self.problems {
            problem.place =
                if problem.place.is_empty() { whole.to_string() } else { format!("{whole}: {}", problem.place) };
        }
        self
    }

    /// Who has to act.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Every problem, in the order found.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// 2 for bad input, 1 for a failure.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Input => 2,
            Kind::Failed => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().take(MAX_PROBLEMS).enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            if problem.place.is_empty() {
                write!(f, "error: {}", shown(&problem.message))?;
            } else {
                write!(f, "error: {}: {}", shown(&problem.place), shown(&problem.message))?;
            }
            if let Some(hint) = &problem.hint {
                write!(f, "\n  hint: {}", shown(hint))?;
            }
        }
        match self.problems.len().saturating_sub(MAX_PROBLEMS) {
            0 => Ok(()),
            more => write!(f, "\nerror: and {more} more problems"),
        }
    }
}

/// The text as a terminal may get it: what would control it is escaped, line ends aside.
pub fn printable(text: &str) -> Cow<'_, str> {
    let controls = |symbol: char| symbol.is_control() && symbol != '\n';
    if !text.contains(controls) {
        return Cow::Borrowed(text);
    }
    let escaped = text.chars().map(|symbol| match controls(symbol) {
        true => symbol.escape_default().to_string(),
        false => symbol.to_string(),
    });
    Cow::Owned(escaped.collect())
}

/// [`printable`], and cut where it is long.
fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => Cow::Owned(format!("{}… ({} bytes)", printable(&text[..end]), text.len())),
        None => printable(text),
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joined_errors_keep_every_problem_and_the_stricter_exit_code() {
        let joined = Error::join([
            Error::failed("a", "disk full"),
            Error::input("b:3", "expected a string, found 4").hint("quote it"),
        ])
        .expect("two errors");
        assert_eq!(joined.exit_code(), 2);
        assert_eq!(joined.to_string(), "error: a: disk full\nerror: b:3: expected a string, found 4\n  hint: quote it");
        assert!(Error::join([]).is_none());
    }

    #[test]
    fn what_a_file_says_neither_controls_the_terminal_nor_floods_it() {
        let text = Error::input("a\u{1b}[2J", "named \u{1b}[31m\u{7}").hint("see\u{9b}").to_string();
        assert_eq!(text, "error: a\\u{1b}[2J: named \\u{1b}[31m\\u{7}\n  hint: see\\u{9b}");
        let long = Error::input("a", "é".repeat(1 << 20)).to_string();
        assert!(long.len() < 5000 && long.ends_with("é… (2097152 bytes)"), "{} bytes", long.len());
        let many = Error::join((0..1000).map(|index| Error::input(index, "wrong"))).expect("errors").to_string();
        assert!(many.lines().count() == 201 && many.ends_with("error: and 800 more problems"), "{many}");
    }

    #[test]
    fn of_two_results_every_problem_is_told() {
        let wrong = |place: &str| Err::<(), _>(Error::input(place, "wrong"));
        assert_eq!(Error::both(Ok(1), Ok("b")), Ok((1, "b")));
        assert_eq!(Error::both(wrong("a"), Ok(())).expect_err("one").problems().len(), 1);
        assert_eq!(Error::both(wrong("a"), wrong("b")).expect_err("two").problems().len(), 2);
        assert_eq!(Error::input("line 3", "wrong").within("file").problems()[0].place, "file: line 3");
    }
}
