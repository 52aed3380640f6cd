//! A first recipe for a data file: its settings follow from the number and the length of the examples and from the memory of this
//! machine, and comments say why.

use std::path::Path;

use super::doctor::memory_to_plan_with;
use super::prepare::prepare;
use super::watch::Watch;
use crate::bytes::Size;
use crate::data::{Format, LongPolicy, read};
use crate::device::DeviceChoice;
use crate::error::{Error, Result};
use crate::model::decoder::Recompute;
use crate::quant::Quant;
use crate::recipe::Recipe;
use crate::run::OpenBase;

/// The fewest rows of which some are held out.
const MIN_ROWS_TO_SPLIT: usize = 20;
/// The examples that a validation set needs to show a difference, if there are enough.
const VALID_ROWS: f64 = 100.0;
/// Lengths are rounded up to a multiple of this.
const LENGTH_STEP: usize = 64;
pub(super) const MICRO_BATCH_SEQS: usize = 4;

/// The facts that a recipe follows from.
pub(super) struct Facts {
    rows: usize,
    format: Format,
    /// The longest example, and the length that 99 of 100 do not exceed.
    longest: usize,
    usual: usize,
    /// The positions of the model.
    positions: usize,
}

impl Facts {
    /// The facts about examples of these lengths, for a model of so many positions; `None` without examples.
    pub(super) fn of(mut lengths: Vec<usize>, format: Format, positions: usize) -> Option<Self> {
        lengths.sort_unstable();
        let longest = *lengths.last()?;
        let usual = lengths[(lengths.len() * 99 / 100).min(lengths.len() - 1)];
        Some(Self { rows: lengths.len(), format, longest, usual, positions })
    }
}

/// The settings that save memory, with the reason for them.
pub(super) struct Savings {
    /// The quantisation of the frozen weights.
    pub(super) quant: Quant,
    /// The activations that are computed again.
    pub(super) recompute: Recompute,
    /// Why, in words.
    pub(super) reason: String,
}

/// The text of a recipe that fine-tunes `base` on the file `data`. The base is fetched where it is missing.
///
/// # Errors
/// Those of the data file and of the base; a data file without an example that can be encoded.
pub fn recipe_for(data: &Path, base: &str, choice: &DeviceChoice, watch: &mut dyn Watch) -> Result<String> {
    let rows = read(data, None)?;
    let opened = OpenBase::open(base, &mut |event| watch.pull(event))?;
    let encoded = opened.encoder.encode_all(&rows, usize::MAX, LongPolicy::Drop)?;
    let lengths = encoded.sequences.iter().map(|sequence| sequence.longest_tokens()).collect();
    let positions = opened.files.config().max_positions;
    let facts = encoded.format.and_then(|format| Facts::of(lengths, format, positions));
    let Some(facts) = facts else {
        return Err(Error::input(data, "holds no example").hint("docs/data.md lists the shapes of examples"));
    };
    let memory = memory_to_plan_with();
    let plain = text(data, base, &facts, None);
    let needed = planned(&plain, choice, watch)?;
    let Some(memory) = memory.filter(|memory| needed > *memory) else { return Ok(plain) };
    let reason = format!("dense weights would take {} in all; {} are there", Size(needed), Size(memory));
    let savings = Savings { quant: Quant::Nf4, recompute: Recompute::Block, reason };
    Ok(text(data, base, &facts, Some(&savings)))
}

/// The memory that a recipe's run takes, in bytes.
fn planned(text: &str, choice: &DeviceChoice, watch: &mut dyn Watch) -> Result<u64> {
    let recipe = Recipe::parse(text, "recipe", &[])?;
    Ok(prepare(&recipe, choice, None, watch)?.memory.total())
}

/// The recipe, with `savings` where memory is scarce.
pub(super) fn text(data: &Path, base: &str, facts: &Facts, savings: Option<&Savings>) -> String {
    let Facts { rows, format, longest, usual, positions } = *facts;
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let name = data.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let stem = name.split('.').next().unwrap_or_default();
    let length = usual.next_multiple_of(LENGTH_STEP).min(positions);
    let valid = rows >= MIN_ROWS_TO_SPLIT;
    let fraction = (VALID_ROWS / rows as f64).clamp(0.02, 0.2);
    let trained = if valid { rows as f64 * (1.0 - fraction) } else { rows as f64 };
    let epochs = match rows {
        1500.. => 1,
        500.. => 2,
        150.. => 3,
        _ => 5,
    };
    let steps = ((trained / MICRO_BATCH_SEQS as f64).ceil() as usize * epochs).max(1);
    let (objective, rate) = match format {
        Format::Preference => ("objective = \"dpo\"\nrpo_alpha = 0.5            # holds the chosen answers\n", "2e-4"),
        _ => ("", "1e-3"),
    };
    let mut out = format!(
        "# {rows} examples of {name}: a first recipe. `burnish check` looks at them, `burnish train` begins.\n\n"
    );
    out += &format!("[base]\nmodel = {}\n", quoted(base));
    if let Some(Savings { quant, reason, .. }) = savings.filter(|savings| savings.quant != Quant::None) {
        out += &format!("{:<27}# {reason}\n", format!("quant = \"{quant}\""));
    }
    out += &format!("\n[data]\ntrain = {}\n", quoted(&data.display().to_string()));
    out += &match valid {
        true => format!(
            "valid_fraction = {fraction:.2}      # held out by `train.seed`; better: a file of its own, `valid`\n"
        ),
        false => {
            format!("# {rows} examples are too few to hold some out: without validation data no verdict is possible.\n")
        }
    };
    out += &format!(
        "max_seq_tokens = {length}       # 99 of 100 examples have at most {usual} tokens, the longest has {longest}\n"
    );
    out += "\n[adapter]\nrank = 8\nalpha = 16\ntargets = \"all-linear\"    # \"attention\" is a tenth faster, and a little worse (docs/defaults.md)\n";
    out += &format!("\n[train]\n{objective}epochs = {epochs}\nmicro_batch_seqs = {MICRO_BATCH_SEQS}\n");
    out += &format!("learning_rate = {rate}      # the setting that decides most: try a third and the triple of it\n");
    out += &format!("schedule = \"linear\"\nwarmup_steps = {}\n", (steps / 20).min(20));
    if savings.is_some_and(|savings| savings.recompute == Recompute::Block) {
        out += "recompute = \"block\"       # saves memory for a quarter of the speed\n";
    }
    if valid {
        out += &format!("eval_steps = {}\n\n[train.early_stopping]\npatience_evals = 3\n", (steps / 10).max(5));
    }
    out += &format!("\n[output]\ndir = {}\n", quoted(&format!("adapters/{stem}")));
    out
}
