//! Training: settings, batching, schedule, one step, the loop, and the events that it reports.

pub mod batching;
pub mod best;
pub mod checkpoint;
pub mod evaluate;
pub mod event;
pub mod fit;
pub mod objective;
pub mod peak_memory;
pub mod schedule;
pub mod settings;
pub mod step;

pub use batching::{Batching, Layout, Part};
pub use checkpoint::State;
pub use event::Event;
pub use fit::{Job, Outcome, fit};
pub use schedule::{Schedule, ScheduleKind};
pub use settings::{EarlyStopping, TrainSettings};
