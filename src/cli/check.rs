//! `burnish check`: every problem with a recipe, its base and its data, before any weight is loaded.

use std::fmt;

use serde::Serialize;

use super::Global;
use super::terminal::Terminal;
use super::train::{Arguments, TrainProgress};
use crate::bytes::Size;
use crate::data::{EncodedSet, Format};
use crate::error::{Result, counted};
use crate::pull::{self, Presence};
use crate::recipe::Recipe;
use crate::run::folder::RunFolder;
use crate::run::memory_plan::MemoryPlan;
use crate::run::prepare::{Examples, Prepared, prepare, read_examples};

/// The work that a recipe describes.
#[derive(Debug, Serialize)]
struct Checked {
    total_steps: u64,
    /// The shape of the examples, given or found.
    format: Option<&'static str>,
    train: Split,
    /// `None` without validation data.
    valid: Option<Split>,
    seen_in_training: usize,
    base_parameters: usize,
    adapter_parameters: usize,
    chat_template: bool,
    /// Bytes by purpose.
    memory: MemoryPlan,
    /// Their peak.
    memory_bytes: u64,
}

/// Examples of one kind.
#[derive(Debug, Serialize)]
struct Split {
    examples: usize,
    tokens: usize,
    trained_tokens: usize,
    longest_tokens: usize,
    left_out: usize,
    truncated: usize,
    untrained_turns: usize,
}

impl Split {
    fn of(set: &EncodedSet) -> Self {
        Self {
            examples: set.sequences.len(),
            tokens: set.tokens,
            trained_tokens: set.trained_tokens,
            longest_tokens: set.sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0),
            left_out: set.dropped_long + set.dropped_untrained,
            truncated: set.truncated,
            untrained_turns: set.untrained_turns,
        }
    }
}

impl Checked {
    fn of(prepared: &Prepared) -> Self {
        let pairs = prepared.start.pairs.values();
        Self {
            total_steps: prepared.total_steps,
            format: prepared.train.format.map(Format::name),
            train: Split::of(&prepared.train),
            valid: (!prepared.valid.sequences.is_empty()).then(|| Split::of(&prepared.valid)),
            seen_in_training: prepared.seen_in_training,
            base_parameters: prepared.base.files.config().parameters(),
            adapter_parameters: pairs.map(|pair| pair.a.len() + pair.b.len()).sum(),
            chat_template: prepared.base.encoder.has_template(),
            memory: prepared.memory,
            memory_bytes: prepared.memory.total(),
        }
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trained_tokens, longest_tokens, .. } = self;
        let (examples, tokens) = (counted(self.examples, "example"), counted(self.tokens, "token"));
        write!(f, "{examples}, {tokens}, {trained_tokens} of them trained; the longest has {longest_tokens}")
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(format) = self.format {
            writeln!(f, "data        read as `{format}`")?;
        }
        writeln!(f, "training    {}", self.train)?;
        if let Some(valid) = &self.valid {
            writeln!(f, "validation  {valid}")?;
        }
        let share = 100.0 * self.adapter_parameters as f64 / self.base_parameters as f64;
        writeln!(
            f,
            "adapter     {} parameters, {share:.2}% of the base's {}",
            self.adapter_parameters, self.base_parameters
        )?;
        writeln!(f, "steps       {}", self.total_steps)?;
        write!(f, "memory      {}: {}", Size(self.memory_bytes), self.memory)
    }
}

/// The work that a recipe describes, as far as it is known without its base.
#[derive(Debug, Serialize)]
struct CheckedWithoutBase {
    base: String,
    /// The base that `train` fetches first, in words.
    fetches: String,
    train_examples: usize,
    valid_examples: usize,
}

impl fmt::Display for CheckedWithoutBase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, fetches, train_examples, valid_examples } = self;
        writeln!(f, "base        {base} is not on this machine; `burnish train` fetches {fetches}")?;
        writeln!(f, "training    {}", counted(*train_examples, "example"))?;
        if *valid_examples > 0 {
            writeln!(f, "validation  {}", counted(*valid_examples, "example"))?;
        }
        write!(f, "tokens, steps and memory depend on the base: `burnish pull {base}` fetches it now, then check again")
    }
}

/// Checks recipe and data alone where the base would have to be fetched first; `None` where it is on this machine.
fn without_base(recipe: &Recipe) -> Result<Option<CheckedWithoutBase>> {
    let plan = recipe.plan()?;
    let base = plan.base.model.clone();
    let Presence::Fetchable(fetches) = pull::look_up(&base)? else { return Ok(None) };
    let Examples { train, valid, .. } = read_examples(&plan).map_err(|error| recipe.locate(error))?;
    Ok(Some(CheckedWithoutBase { base, fetches, train_examples: train.len(), valid_examples: valid.len() }))
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let recipe = arguments.recipe()?;
    // Nothing is fetched here: a check asks for no model.
    let bytes = match without_base(&recipe)? {
        Some(checked) => terminal.result(&checked).map(|()| 0)?,
        None => {
            let progress = &mut TrainProgress::new(terminal);
            let prepared = prepare(&recipe, &global.device, arguments.max_memory, progress)?;
            terminal.result(&Checked::of(&prepared))?;
            prepared.disk_bytes()
        }
    };
    // Last, since all the rest is worth knowing all the same.
    RunFolder::check_usable(&recipe.settings()?.output.dir, bytes).map_err(|error| recipe.locate(error))
}
