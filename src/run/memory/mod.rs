//! The memory of a run: planned before anything is loaded, and fitted to a limit.

mod fit;
mod layers;
mod plan;
mod weights;
mod words;

pub use fit::{Demand, fit_memory};
pub use plan::{MemoryPlan, Planner, Workload, moments};
pub use words::described;
