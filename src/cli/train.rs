//! `burnish train`: fine-tunes by a recipe.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use super::Global;
use super::progress::{Counter, Downloads};
use super::terminal::Terminal;
use crate::bytes::Size;
use crate::error::{Result, counted, printable};
use crate::generate::run::Finish;
use crate::pull;
use crate::recipe::Recipe;
use crate::run::identity::Change;
use crate::run::outcome::Requirement;
use crate::run::resume::Start;
use crate::run::samples::StepSample;
use crate::run::train::{RunOptions, train};
use crate::run::watch::{Stage, Watch};
use crate::train::Event;
use crate::train::parallel::launch;
use crate::train::step::StepReport;

/// A recipe, and the options that change the run it describes.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Set a key of the recipe: `--set train.epochs=3`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The most memory the run may take, as 8GiB: micro-batches go through the model in parts, activations are computed again, and
    /// layers are read from the disk as they are needed, until it fits; the steps stay as they are
    #[arg(long, env = "BURNISH_MAX_MEMORY", value_name = "SIZE")]
    pub(super) max_memory: Option<Size>,
    /// Seed of the adapter's first values, the order of examples and dropout (short for --set train.seed=N)
    #[arg(long, env = "BURNISH_SEED", value_name = "N")]
    seed: Option<u64>,
    /// Begin with the adapter in this folder, of burnish or of PEFT (short for --set adapter.from=DIR)
    #[arg(long, value_name = "DIR")]
    from_adapter: Option<PathBuf>,
}

/// Fine-tune by a recipe, and write the run folder
#[derive(Debug, Args)]
pub(super) struct TrainArguments {
    #[command(flatten)]
    job: Arguments,
    /// Go on with the run in the recipe's run folder, from its newest checkpoint; begin where there is none yet
    #[arg(long)]
    resume: bool,
    /// Go on although something of this kind has changed since the checkpoint; may be repeated
    #[arg(long, value_enum, value_name = "KIND", requires = "resume")]
    accept_change: Vec<Change>,
    /// Exit with code 1 unless the verdict suffices; a run that is interrupted has the exit code of the signal
    #[arg(long, value_enum, value_name = "VERDICT")]
    require: Option<Requirement>,
    /// Give each line of metrics.jsonl to the stdin of this command of the shell, as a tracker's; its end does not end the run
    #[arg(long, value_name = "COMMAND")]
    log_to: Option<String>,
}

impl Arguments {
    /// The path as it was given.
    pub(super) fn path(&self) -> &Path {
        &self.recipe
    }

    /// The settings of the command line, in the order in which they are laid over the recipe.
    pub(super) fn overrides(&self) -> Vec<String> {
        let seed = self.seed.map(|seed| format!("train.seed={seed}"));
        // First, so that a seed of the environment does not win over one that was typed.
        let from = self.from_adapter.as_ref();
        let from = from.map(|path| format!("adapter.from={}", toml::Value::String(path.display().to_string())));
        seed.into_iter().chain(self.set.iter().cloned()).chain(from).collect()
    }

    /// The recipe, with what the command line sets in it.
    pub(super) fn recipe(&self) -> Result<Recipe> {
        self.recipe_with(None)
    }

    /// The same with a further setting, of an option of one command.
    pub(super) fn recipe_with(&self, more: Option<String>) -> Result<Recipe> {
        let overrides: Vec<String> = self.overrides().into_iter().chain(more).collect();
        Recipe::load(&self.recipe, &overrides)
    }
}

pub(super) fn run(arguments: &TrainArguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let TrainArguments { job, resume, accept_change, require, log_to } = arguments;
    let start = if *resume { Start::Resumed(accept_change) } else { Start::Fresh };
    let recipe = job.recipe()?;
    let on_loss = *terminal;
    let ranks = launch::join(&recipe.plan()?.parallel, move |error| on_loss.error(error))?;
    let how = RunOptions {
        device: global.device,
        max_memory: job.max_memory,
        start,
        log_to: log_to.as_deref(),
        ranks: &*ranks,
        ..RunOptions::default()
    };
    let report = match ranks.is_first() {
        true => {
            let report = train(&recipe, &how, &mut TrainProgress::new(terminal))?;
            terminal.result(&report)?;
            report
        }
        false => train(&recipe, &how, &mut ())?,
    };
    // A run that was interrupted has the exit code of its signal: it is not at the end that is to be judged.
    require.filter(|_| !report.interrupted).map_or(Ok(()), |required| report.check(required))?;
    ranks.leave();
    Ok(())
}

/// Shows a run: a bar where stderr is a terminal, otherwise a line every few seconds.
pub(super) struct TrainProgress<'t> {
    terminal: &'t Terminal,
    downloads: Downloads<'t>,
    encoding: Counter<'t>,
    loading: Counter<'t>,
    evaluating: Counter<'t>,
    answering: Counter<'t>,
    bar: Option<ProgressBar>,
    began: Instant,
    last_line: Option<Instant>,
    total: u64,
    /// Steps that an earlier process has done.
    steps_done: u64,
}

/// Characters of a prompt or an answer that are shown.
const SHOWN_CHARACTERS: usize = 120;

/// The beginning of a text, on one line.
fn one_line(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (shown, more) = match words.char_indices().nth(SHOWN_CHARACTERS) {
        Some((end, _)) => (&words[..end], " …"),
        None => (words.as_str(), ""),
    };
    format!("{}{more}", printable(shown))
}

/// Seconds between two lines where there is no bar.
const SECONDS_BETWEEN_LINES: u64 = 5;

impl<'t> TrainProgress<'t> {
    pub(super) fn new(terminal: &'t Terminal) -> Self {
        let (downloads, loading) = (Downloads::new(terminal), Counter::of_loading(terminal));
        let encoding = Counter::of_encoding(terminal);
        let (evaluating, answering) = (Counter::of_evaluation(terminal), Counter::of_answers(terminal));
        let (bar, last_line, began) = (None, None, Instant::now());
        Self {
            terminal,
            downloads,
            encoding,
            loading,
            evaluating,
            answering,
            bar,
            began,
            last_line,
            total: 0,
            steps_done: 0,
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.terminal.message(text)),
            None => self.terminal.message(text),
        }
    }
}

impl TrainProgress<'_> {
    /// Shows that a step is done.
    fn step(&mut self, step: u64, report: &StepReport, seconds: f64) {
        let (loss, tokens_per_second) = (report.loss, report.tokens as f64 / seconds);
        if let Some(bar) = &self.bar {
            bar.set_message(format!("loss {loss:.4}, {tokens_per_second:.0} tokens/s"));
            bar.set_position(step);
            if step == self.total {
                bar.finish();
            }
            return;
        }
        let is_due = self.last_line.is_none_or(|last| last.elapsed().as_secs() >= SECONDS_BETWEEN_LINES);
        if is_due || step == self.total {
            self.last_line = Some(Instant::now());
            let total = self.total;
            let done = step.saturating_sub(self.steps_done).max(1);
            let left = self.began.elapsed().mul_f64(total.saturating_sub(step) as f64 / done as f64);
            let left = HumanDuration(left);
            self.line(&format!("step {step}/{total}: loss {loss:.4}, {tokens_per_second:.0} tokens/s, {left} left"));
        }
    }
}

impl Watch for TrainProgress<'_> {
    fn stage(&mut self, stage: Stage) {
        self.terminal.detail(|| stage.name().to_owned());
    }

    fn pull(&mut self, event: pull::Event<'_>) {
        self.downloads.show(event);
    }

    fn encoding(&mut self, done: usize, total: usize) {
        self.encoding.show(done, total);
    }

    fn loading(&mut self, done: usize, total: usize) {
        self.loading.show(done, total);
    }

    fn notice(&mut self, text: &str) {
        self.line(&printable(text));
    }

    fn evaluating(&mut self, done: usize, total: usize) {
        match &self.bar {
            // Two bars would write over each other.
            Some(bar) if !bar.is_finished() => bar.set_message(format!("evaluating {done}/{total}")),
            _ => self.evaluating.show(done, total),
        }
    }

    fn answering(&mut self, done: usize, total: usize) {
        self.answering.show(done, total);
    }

    fn samples(&mut self, step: u64, samples: &[StepSample]) {
        let lines = samples.iter().flat_map(|sample| {
            let StepSample { prompt, expected, answer, finish, .. } = sample;
            let cut = if *finish == Finish::Time { " … (cut: the share of time is used up)" } else { "" };
            [("prompt  ", prompt, ""), ("expected", expected, ""), ("answer  ", answer, cut)]
        });
        let lines = lines.map(|(name, text, cut)| format!("  {name} {}{cut}", one_line(text)));
        let lines = std::iter::once(format!("step {step}: samples")).chain(lines).collect::<Vec<_>>().join("\n");
        self.line(&lines);
    }

    fn event(&mut self, event: &Event<'_>) {
        match *event {
            Event::Begin { total_steps, steps_done, parameters } => {
                (self.total, self.steps_done, self.began) = (total_steps, steps_done, Instant::now());
                self.line(&format!("{}, {}", counted(parameters, "trainable parameter"), counted(total_steps, "step")));
                if self.terminal.shows_bars() {
                    let bar = ProgressBar::new(total_steps);
                    let template = "{wide_bar} {pos}/{len} {msg} {eta} left";
                    bar.set_style(
                        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
                    );
                    bar.set_position(steps_done);
                    bar.reset_eta();
                    self.bar = Some(bar);
                }
            }
            Event::Step { step, report, seconds, .. } => self.step(step, report, seconds),
            Event::Evaluating { done, total, .. } => self.evaluating(done, total),
            Event::Evaluation { step, valid_loss, exact_match, preferences, classes, is_best, .. } => {
                let best = if is_best && step > 0 { ", the best so far" } else { "" };
                let exact = exact_match.map_or(String::new(), |share| format!(", exact match {:.1}%", 100.0 * share));
                let rewards = preferences.map_or(String::new(), |preferences| {
                    let margin =
                        preferences.reward_margin.map_or(String::new(), |margin| format!(", margin {margin:.4}"));
                    format!(", reward accuracy {:.1}%{margin}", 100.0 * preferences.reward_accuracy)
                });
                let labels = classes.map_or(String::new(), |classes| {
                    format!(", accuracy {:.1}%, macro F1 {:.1}%", 100.0 * classes.accuracy, 100.0 * classes.macro_f1)
                });
                self.line(&format!("step {step}: validation loss {valid_loss:.4}{rewards}{labels}{exact}{best}"));
            }
            Event::Stopped { step, evaluations_without_improvement } => {
                let evaluations = evaluations_without_improvement;
                self.line(&format!("stopped early at step {step}: no improvement in {evaluations} evaluations"));
            }
            Event::Best { .. } | Event::Checkpoint { .. } => {}
        }
    }
}
