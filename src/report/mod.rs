//! Reports of runs, made of the files in their folders alone: a page, a comparison, and the formats of other tools.

pub mod compare;
pub mod confusion;
pub mod folder;
pub mod page;
mod redact;
pub mod sentence;
pub mod sweep;
pub mod table;
pub mod tensorboard;
pub mod trainer_state;

pub use folder::{RunFiles, RunState};

/// The page in a run folder.
pub const PAGE_FILE: &str = "report.html";
/// The measures of the run's memory of its examples, in a run folder, once they were taken.
pub const MEMORISATION_FILE: &str = "memorisation.json";
/// The measures behind it that need the model, in a run folder.
pub const DETAILS_FILE: &str = "report.json";
