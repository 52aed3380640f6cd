//! Operations of a disk that go wrong.

/// The way in which an operation goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It fails with this error of the operating system.
    Code(i32),
    /// A write takes half of its bytes, and says so. Any other operation succeeds.
    ShortWrite,
    /// A write takes half of its bytes, and says that it took all. Any other operation succeeds.
    LyingWrite,
}

/// The operations that go wrong.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    pub failure: Failure,
    /// The first operation that goes wrong, counted from 0.
    pub first: usize,
    /// Further operations that go wrong.
    pub then: Then,
}

/// The operations that go wrong after the first one.
#[derive(Debug, Clone, Copy)]
pub enum Then {
    /// None.
    Never,
    /// Each that comes this many operations after the last one.
    Every(usize),
    /// This one, counted from 0.
    Again(usize),
}

impl Fault {
    /// Whether the operation of this number, counted from 0, goes wrong.
    pub fn meets(&self, number: usize) -> bool {
        match self.then {
            Then::Never => number == self.first,
            Then::Every(count) => number >= self.first && (number - self.first).is_multiple_of(count),
            Then::Again(second) => number == self.first || number == second,
        }
    }
}
