//! The layout of a run in words, where it is not the recipe's own.

use super::plan::MemoryPlan;
use crate::bytes::Size;
use crate::error::{Result, counted};
use crate::files::read_rate;
use crate::model::BaseFiles;
use crate::model::decoder::Recompute;
use crate::train::{Layout, Part, TrainSettings};

/// Lines about a layout that a limit of memory led to, and about the time of reading layers from the disk, whose rate is measured.
///
/// # Errors
/// The base cannot be read.
pub fn described(layout: Layout, memory: &MemoryPlan, train: &TrainSettings, base: &BaseFiles) -> Result<Vec<String>> {
    let layers = base.config().layers;
    let mut ways = Vec::new();
    match layout.part {
        Part::MicroBatch => {}
        Part::Sequences(count) => {
            ways.push(format!("micro-batches go through the model {} at a time", counted(count, "sequence")));
        }
        Part::Tokens(tokens) => {
            ways.push(format!("micro-batches go through the model {} at a time", counted(tokens, "token")));
        }
    }
    if train.recompute == Recompute::None && layout.recomputed_layers > 0 {
        ways.push(format!("the activations of {} of {layers} layers are computed again", layout.recomputed_layers));
    }
    if layout.parts_a_pass.is_some() {
        ways.push("layers are read from the disk as they are needed".to_owned());
    }
    let mut lines = Vec::new();
    if !ways.is_empty() {
        lines.push(format!("to fit --max-memory: {}; the steps stay as they are", ways.join(", ")));
    }
    if let (Some(together), Some(file)) = (layout.parts_a_pass, base.files().first()) {
        let (bytes, rate) = (memory.read_a_step, read_rate::bytes_a_second(file)?);
        let seconds = bytes as f64 / rate.max(1.0);
        lines.push(format!(
            "a step reads {} of weights, forward and back for {} at a time: {seconds:.1} s at the {}/s that the disk gives, while the \
             layer before is computed; less where the system keeps them in its cache",
            Size(bytes),
            counted(together, "part"),
            Size(rate as u64)
        ));
    }
    Ok(lines)
}
