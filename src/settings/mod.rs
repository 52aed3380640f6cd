//! Settings: each is declared once, beside the code that reads it, and the declaration makes all that goes with it.
//!
//! ```text
//! section! { /// … Settings { /// Passes over the examples. epochs: u64 = Take(1), between(1..=1000); } }
//! choice!  { /// … Compute { /// Exact. F32 = "f32", /// Faster. Bf16 = "bf16", } }
//! ```
//!
//! `section!` gives a struct with the reader that fills it from a recipe (its type, limit and default, every problem at its
//! line and column) and its rows in `docs/recipe.md`; `choice!` gives an enum with its words for recipes, arguments and
//! files. This module knows TOML and no setting; `recipe` puts the sections together.

mod declare;
mod limit;
mod reader;
pub(crate) mod tree;
mod values;

pub use declare::Setting;
pub(crate) use declare::{Choice, Describe, choice, section, setting_schema};
pub(crate) use limit::{IsEmpty, Limit, above, any, below, between, not_empty, one_of, optional};
pub(crate) use reader::{FromNode, Missing, Reader, Section, Suggestions, defaults, join_key, mismatch, word};
pub(crate) use tree::{Node, Value};
pub use values::OrAuto;
