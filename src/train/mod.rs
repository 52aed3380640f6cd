//! Training: settings, batching, schedule, one step, the loop, and the events that it reports.

pub mod batching;
mod best;
pub mod evaluate;
pub mod fit;
pub mod objective;
pub mod peak_memory;
pub mod schedule;
pub mod settings;
pub mod step;

pub use batching::{Batching, Layout, Part};
pub use fit::{Event, Job, Outcome, fit};
pub use schedule::{Schedule, ScheduleKind};
pub use settings::{EarlyStopping, TrainSettings};
