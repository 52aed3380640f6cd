//! The settings of evaluations: how many examples they take, and what else is measured at the end of a run.

use crate::data::{Columns, Format, Paths, Shape};
use crate::settings::{OrAuto, any, between, not_empty, optional, section};

/// The largest number of examples that can be asked for.
const MAX_EXAMPLES: usize = 1 << 30;

section! {
    /// The examples of evaluations.
    EvalSettings {
        /// The most validation examples of an evaluation while training, chosen by `train.seed` once for the run; all by
        /// default. The verdict at the end is taken on all of them.
        max_examples: Option<usize> = Take(None), optional(between(1..=MAX_EXAMPLES));
        /// The most validation prompts that are answered at each evaluation under `train.eval_on = "exact_match"`, chosen by
        /// `train.seed` once for the run.
        exact_match_examples: usize = Take(64), between(1..=MAX_EXAMPLES);
        /// A second data set, on which the adapter should not get worse.
        guard: Option<Guard> = Take(None), any();
    }
}

section! {
    /// A second data set, on which the adapter should not get worse: base and adapter are measured on it at the end.
    Guard {
        /// The examples: files of any kind that `data.train` accepts. A path is relative to the current folder.
        path: Paths = Refuse, not_empty();
        /// The shape of the examples; `auto` looks at the first of each file.
        format: OrAuto<Format> = Take(OrAuto::Auto), any();
        /// The keys of the shapes, each with the key or column of these files that has its place. Those of `[data.columns]` are not
        /// those of a guard.
        columns: Columns = ReadEmpty, any();
        /// The most examples that are measured, chosen by `train.seed`; all by default.
        max_examples: Option<usize> = Take(None), optional(between(1..=MAX_EXAMPLES));
    }
}

impl Guard {
    /// The form of the objects in the files.
    pub fn shape(&self) -> Shape {
        Shape { format: self.format.given(), columns: self.columns.clone(), group: None }
    }
}
