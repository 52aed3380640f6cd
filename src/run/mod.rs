//! Whole jobs: the work of a command, without its arguments and its printing.

pub mod adapter;
pub mod answer;
pub mod base;
mod card;
pub mod check;
pub mod classes;
pub mod combine;
pub mod doctor;
pub mod evaluate;
mod exact_match;
pub mod export;
pub mod folder;
pub mod held_out;
pub mod identity;
pub mod init;
pub mod memory_fit;
pub mod memory_plan;
pub mod merge;
pub mod model;
pub mod named;
mod notices;
pub mod outcome;
pub mod predict;
pub mod preferences;
pub mod prepare;
pub mod probe;
mod recorder;
pub mod resume;
pub mod samples;
pub mod train;
mod verdict;
pub mod verify;
pub mod watch;

pub use adapter::OpenAdapter;
pub use base::OpenBase;
