//! Errors: the place of each problem, what was found, what was expected, and a hint.
//!
//! Every error a user can cause names its [`Place`] (file and line, tensor, setting), says what was found and what was
//! expected, and may carry a hint. Several problems found together are one error.

mod place;

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

pub use place::Place;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Most problems that a message lists; further ones are only counted. Problems that say the same count as one.
const MAX_PROBLEMS: usize = 200;
/// Characters after which a text in a message is cut: it may hold names and values from a file, as long as the file likes.
const MAX_CHARACTERS: usize = 2000;
/// Places that are named where more places than these have the same problem.
const NAMED_PLACES: usize = 3;

/// The party that has to act; it decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Used wrongly: arguments, recipe, bad input files. Exit code 2.
    Input,
    /// Used rightly, but it failed: disk full, network, a check that said no. Exit code 1.
    Failed,
}

/// The error of a library or of the system that a problem comes from.
type Source = Arc<dyn std::error::Error + Send + Sync>;

/// One thing that is wrong.
#[derive(Debug, Clone)]
pub struct Problem {
    /// The place of the problem.
    pub place: Place,
    /// The finding and the expectation.
    pub message: String,
    /// A remedy for the user.
    pub hint: Option<String>,
    source: Option<Source>,
}

/// Place, message and hint are compared; sources cannot be.
impl PartialEq for Problem {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place && self.message == other.message && self.hint == other.hint
    }
}

impl Eq for Problem {}

/// One or several problems, with the exit code they deserve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    problems: Vec<Problem>,
}

impl Error {
    /// Bad input at `place`: exit code 2.
    pub fn input(place: impl Into<Place>, message: impl Into<String>) -> Self {
        Self::new(Kind::Input, place, message)
    }

    /// Something that failed through no fault of the input: exit code 1.
    pub fn failed(place: impl Into<Place>, message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, place, message)
    }

    fn new(kind: Kind, place: impl Into<Place>, message: impl Into<String>) -> Self {
        let problem = Problem { place: place.into(), message: message.into(), hint: None, source: None };
        Self { kind, problems: vec![problem] }
    }

    /// Reading `path` failed. A missing or unreadable path is the user's to mend.
    pub fn read(path: &Path, error: &std::io::Error) -> Self {
        Self::input(path, format!("cannot be read: {error}")).because(same(error))
    }

    /// Writing `path` failed (disk full, no permission).
    pub fn write(path: &Path, error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
        let failed = Self::failed(path, format!("cannot be written: {error}")).because(same(error));
        match error.kind() {
            StorageFull | QuotaExceeded => failed.hint("make room on the disk, or choose another one"),
            ReadOnlyFilesystem | PermissionDenied => failed.hint("choose a folder that can be written"),
            _ => failed,
        }
    }

    /// Keeps the error that the last problem comes from, for [`std::error::Error::source`]. The message of a problem is
    /// complete without it.
    pub fn because(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        if let Some(problem) = self.problems.last_mut() {
            problem.source = Some(Arc::new(source));
        }
        self
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
    pub fn within(mut self, whole: impl Into<Place>) -> Self {
        let whole = whole.into();
        for problem in &mut self.problems {
            problem.place = whole.clone().part(std::mem::take(&mut problem.place));
        }
        self
    }

    /// The same problems, each with its place and message as `change` gives them; hints and sources stay.
    pub fn map_problems(mut self, change: impl Fn(&mut Place, &mut String)) -> Self {
        for problem in &mut self.problems {
            change(&mut problem.place, &mut problem.message);
        }
        self
    }

    /// The same problems through no fault of the input: those of a file that this program wrote itself. Exit code 1.
    pub fn into_failure(mut self) -> Self {
        self.kind = Kind::Failed;
        self
    }

    /// The party that has to act.
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

/// A copy of an error of the system, which cannot be cloned.
fn same(error: &std::io::Error) -> std::io::Error {
    match error.raw_os_error() {
        Some(code) => std::io::Error::from_raw_os_error(code),
        None => std::io::Error::new(error.kind(), error.to_string()),
    }
}

/// Lines for a person, without a prefix: each problem as `place: message`, its hint indented below. A problem that many
/// places share stands once, with the first of them and their number.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.paragraphs().join("\n"))
    }
}

impl Error {
    /// The paragraphs of the message: one for each problem, or for one problem at many places; at most
    /// `MAX_PROBLEMS`, and one that counts the rest.
    pub fn paragraphs(&self) -> Vec<String> {
        let text_of = |problem: &'_ Problem| (problem.message.clone(), problem.hint.clone());
        let mut alike: HashMap<_, Vec<&Problem>> = HashMap::new();
        for problem in &self.problems {
            alike.entry(text_of(problem)).or_default().push(problem);
        }
        let (mut paragraphs, mut reported) = (Vec::new(), 0);
        for problem in &self.problems {
            let group = alike.get(&text_of(problem)).map_or(&[][..], Vec::as_slice);
            let others = match group {
                [first, others @ ..] if group.len() > NAMED_PLACES => match std::ptr::eq(*first, problem) {
                    true => others,
                    false => continue,
                },
                _ => &[],
            };
            if paragraphs.len() == MAX_PROBLEMS {
                break;
            }
            reported += 1 + others.len();
            paragraphs.push(paragraph(problem, others));
        }
        match self.problems.len() - reported {
            0 => {}
            more => paragraphs.push(format!("and {more} more problems")),
        }
        paragraphs
    }
}

/// A problem, and the other places that have the same one.
fn paragraph(problem: &Problem, others: &[&Problem]) -> String {
    let mut text = match problem.place.is_empty() {
        true => printable_and_short(&problem.message).into_owned(),
        false => {
            format!("{}: {}", printable_and_short(&problem.place.to_string()), printable_and_short(&problem.message))
        }
    };
    let mut places = others.iter().map(|other| other.place.to_string());
    if !others.is_empty() {
        let named: Vec<String> = places.by_ref().take(NAMED_PLACES - 1).collect();
        text += &format!("\n  the same at {}", printable_and_short(&named.join(", ")));
        match places.count() {
            0 => {}
            1 => text += " and 1 more place",
            more => text += &format!(" and {more} more places"),
        }
    }
    if let Some(hint) = &problem.hint {
        text += &format!("\n  hint: {}", printable_and_short(hint).replace('\n', "\n  "));
    }
    text
}

/// A number and what it counts, for messages: `1 step`, `2 steps`. The plural of `noun` is formed with an `s`.
pub fn counted<N: fmt::Display + PartialEq + From<u8>>(count: N, noun: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// The text as a terminal may get it: characters that would control it are escaped, line ends and tabs aside.
pub fn printable(text: &str) -> Cow<'_, str> {
    let controls = |symbol: char| symbol.is_control() && !matches!(symbol, '\n' | '\t');
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
fn printable_and_short(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_CHARACTERS) {
        Some((end, _)) => Cow::Owned(format!("{}… ({} bytes)", printable(&text[..end]), text.len())),
        None => printable(text),
    }
}

impl std::error::Error for Error {
    /// The source of the first problem that has one.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let source = self.problems.iter().find_map(|problem| problem.source.as_deref())?;
        Some(source)
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_single_one_has_no_plural() {
        assert_eq!([0_u64, 1, 2].map(|count| counted(count, "step")), ["0 steps", "1 step", "2 steps"]);
        assert_eq!(counted(1_usize, "row"), "1 row");
    }

    #[test]
    fn joined_errors_keep_every_problem_and_the_stricter_exit_code() {
        let joined = Error::join([
            Error::failed("a", "disk full"),
            Error::input("b:3", "expected a string, found 4").hint("quote it"),
        ])
        .expect("two errors");
        assert_eq!(joined.exit_code(), 2);
        assert_eq!(joined.to_string(), "a: disk full\nb:3: expected a string, found 4\n  hint: quote it");
        assert!(Error::join([]).is_none());
    }

    #[test]
    fn the_text_of_a_file_neither_controls_the_terminal_nor_floods_it() {
        let text = Error::input("a\u{1b}[2J", "named \u{1b}[31m\u{7}").hint("see\u{9b}").to_string();
        assert_eq!(text, "a\\u{1b}[2J: named \\u{1b}[31m\\u{7}\n  hint: see\\u{9b}");
        let long = Error::input("a", "é".repeat(1 << 20)).to_string();
        assert!(long.len() < 5000 && long.ends_with("é… (2097152 bytes)"), "{} bytes", long.len());
        let many = (0..1000).map(|index| Error::input(Place::file("d").line(index), format!("wrong {index}")));
        let many = Error::join(many).expect("errors").to_string();
        assert!(many.lines().count() == 201 && many.ends_with("\nand 800 more problems"), "{many}");
    }

    #[test]
    fn the_same_problem_at_many_places_is_reported_once_with_three_of_them() {
        let row = |line| Error::input(Place::file("d.csv").line(line), "3 fields; the header has 1").hint("commas?");
        let once = Error::join([Error::input("d.csv", "odd")].into_iter().chain((2..22).map(row))).expect("errors");
        assert_eq!(
            once.to_string(),
            "d.csv: odd\nd.csv:2: 3 fields; the header has 1\n  the same at d.csv:3, d.csv:4 and 17 more places\n  \
             hint: commas?"
        );
        assert_eq!(once.problems().len(), 21, "a program still gets each of them");
        let three = Error::join((2..5).map(row)).expect("errors");
        assert_eq!(three.to_string().matches("3 fields").count(), 3, "few enough to stand each by itself");
    }

    #[test]
    fn of_two_results_every_problem_is_reported() {
        let wrong = |place: &str| Err::<(), _>(Error::input(place, "wrong"));
        assert_eq!(Error::both(Ok(1), Ok("b")), Ok((1, "b")));
        assert_eq!(Error::both(wrong("a"), Ok(())).expect_err("one").problems().len(), 1);
        assert_eq!(Error::both(wrong("a"), wrong("b")).expect_err("two").problems().len(), 2);
        let within = Error::input("line 3", "wrong").within("file");
        assert_eq!(within.problems()[0].place.to_string(), "file: line 3");
    }

    #[test]
    fn the_error_of_the_system_is_kept_as_the_source() {
        let missing = std::fs::read("/no such file").expect_err("missing");
        let error = Error::read(Path::new("x"), &missing);
        let source = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
        assert_eq!(source.map(std::io::Error::kind), Some(std::io::ErrorKind::NotFound));
        assert!(Error::input("x", "wrong").source().is_none());
        assert_eq!(error.problems()[0].place, Place::file("x"));
    }
}
