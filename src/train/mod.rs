//! Training: settings, batching, schedule, optimisers, one step, the loop, and the events that it reports.

pub mod batching;
pub mod best;
pub mod checkpoint;
mod clip;
pub mod evaluate;
pub mod event;
pub mod fit;
pub mod label_weights;
pub mod objective;
pub mod optimiser;
pub mod parallel;
pub mod peak_memory;
pub mod preference;
pub mod privacy;
pub mod reference;
pub mod schedule;
pub mod score;
pub mod settings;
pub mod step;

pub use batching::{Batching, Layout, Part};
pub use checkpoint::State;
pub use event::Event;
pub use fit::{Job, Outcome, fit};
pub use objective::ObjectiveKind;
pub use optimiser::{Optimiser, OptimiserKind, OptimiserState};
pub use parallel::{Alone, ParallelSettings, Ranks};
pub use privacy::{Guarantee, Mechanism, PrivacySettings};
pub use schedule::{Schedule, ScheduleKind};
pub use score::{EvalOn, ExactMatch};
pub use settings::{EarlyStopping, TrainSettings};
