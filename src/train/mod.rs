//! Training: schedule, one step, the loop, and what it tells whoever watches.

pub mod evaluate;
pub mod fit;
pub mod memory;
pub mod schedule;
pub mod step;

pub use fit::{EarlyStopping, Event, Outcome, Settings, fit};
pub use schedule::{Schedule, ScheduleKind};
