//! A sweep: trials of a recipe with other values, ranked by an objective. Losers pause at rungs; a sweep that was interrupted goes on.
//!
//! A trial is an ordinary run in a folder of its own. A pause is an interruption of that run, so a trial that goes on from a rung is the
//! run that it would have been without, to the bit.

mod draw;
mod event;
mod figures;
mod journal;
mod plan;
mod turns;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use draw::draw;
pub use event::SweepEvent;
use figures::{Figures, has_diverged};
use journal::{JOURNAL_FILE, Journal, Trial, TrialState, check_folder};
use plan::{Planned, bytes_at_once, dir_node};
use turns::{Circumstances, News, Task, take_turns};

use super::SharedBase;
use super::doctor::memory_to_plan_with;
use super::folder::quoted;
use super::outcome::TrainReport;
use super::train::options as run_options;
use super::watch::Watch;
use crate::bytes::Size;
use crate::device::DeviceChoice;
use crate::error::{Error, Result, counted};
use crate::files::{atomic, lock, space, temporary};
use crate::interrupt;
use crate::recipe::{self, Recipe, SweepSettings};
use crate::report::RunFiles;
use crate::report::sweep::{Summary, SummaryRow, page};

/// The page in the folder of a sweep.
const PAGE_FILE: &str = "sweep.html";
/// The recipe of the best trial.
const BEST_FILE: &str = "best.toml";
const LOCK: &str = "sweep.lock";
/// Trials whose curves the page has.
const MAX_CURVES: usize = 16;

/// The place and the manner of a sweep, apart from its recipe.
#[derive(Debug, Clone, Copy)]
pub struct SweepOptions {
    /// Where to compute.
    pub device: DeviceChoice,
    /// The most memory that a trial may take, and all together.
    pub max_memory: Option<Size>,
    /// Trials at once, at most; fewer where memory is short.
    pub parallel: usize,
    /// Whether to go on with the sweep in the folder.
    pub goes_on: bool,
}

/// The outcome of a sweep.
#[derive(Debug, Serialize)]
pub struct SweepReport {
    /// Its folder.
    pub dir: PathBuf,
    /// The page.
    pub page: PathBuf,
    /// The recipe of the best trial; `None` for a sweep that was interrupted.
    pub best_recipe: Option<PathBuf>,
    /// The command that goes on with a sweep that was interrupted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<String>,
    /// The trials, the best first.
    #[serde(flatten)]
    pub summary: Summary,
}

impl fmt::Display for SweepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}", self.summary.table(), self.summary.sentence)?;
        writeln!(f, "page: {}", self.page.display())?;
        match (&self.best_recipe, &self.resume) {
            (Some(recipe), _) => write!(f, "recipe of the best: {}", recipe.display()),
            (None, Some(command)) => write!(f, "go on with: {command}"),
            (None, None) => Ok(()),
        }
    }
}

/// A sweep that is under way.
struct Sweep<'a> {
    settings: SweepSettings,
    dir: PathBuf,
    planned: Arc<[Planned]>,
    journal: Journal,
    /// The command that goes on.
    command: String,
    options: &'a SweepOptions,
}

/// Trains the trials of `recipe` and ranks them, or goes on doing so.
///
/// # Errors
/// Input: the recipe has no sweep; a trial would not start, each with its reason; a folder that does not suit `options`. Failed: every
/// trial failed; a file cannot be written.
pub fn sweep(
    recipe: &Recipe,
    options: &SweepOptions,
    watch: &mut dyn Watch,
    tell: &mut dyn FnMut(SweepEvent<'_>),
) -> Result<SweepReport> {
    let settings = recipe.sweep()?.ok_or_else(|| {
        Error::input(&*recipe.name, "has no section [sweep], which says what to search")
            .hint("for example:\n    [sweep.values]\n    train.learning_rate = [3e-4, 1e-3, 3e-3]")
    })?;
    let plan = recipe.with(&[])?.plan()?;
    let dir = plan.output.dir.clone();
    let command = command(recipe, options);
    check_folder(&dir, LOCK, options.goes_on, &command).map_err(|error| recipe.locate(error))?;
    let combinations = draw(&settings);
    let digits = combinations.len().to_string().len();
    let (mut trials, mut planned, mut errors, mut silent) = (Vec::new(), Vec::new(), Vec::new(), ());
    for (index, mut combination) in combinations.into_iter().enumerate() {
        let name = format!("trial-{:0digits$}", index + 1);
        let values = combination.iter().map(|(key, node)| (key.clone(), json!(node.value.to_toml())));
        trials.push(Trial {
            name: name.clone(),
            values: values.collect(),
            state: TrialState::Open,
            figures: Vec::new(),
            error: None,
        });
        combination.push(("output.dir".to_owned(), dir_node(&dir.join(&name))?));
        // Remarks on the data are the same for all.
        let watch: &mut dyn Watch = if index == 0 { &mut *watch } else { &mut silent };
        let made = recipe.with(&combination).and_then(|recipe| Planned::of(recipe, settings.objective, options, watch));
        match made {
            Ok(made) => planned.push(made),
            Err(error) => errors.push(error.within(&*name)),
        }
    }
    let planned = Error::none_of(errors, planned)?;
    if !options.goes_on {
        space::check(&dir, planned.iter().map(|trial| trial.disk_bytes).sum())?;
    }
    std::fs::create_dir_all(&dir).map_err(|error| Error::write(&dir, &error))?;
    let _lock = lock::claim(&dir.join(LOCK))?;
    temporary::remove_leftovers(&dir).map_err(|error| Error::write(&dir, &error))?;
    let new = Journal::new(&plan, &settings, trials);
    let path = dir.join(JOURNAL_FILE);
    let journal = if path.is_file() { Journal::read(&path, &new)? } else { new };
    let mut sweep = Sweep { settings, dir, planned: planned.into(), journal, command, options };
    sweep.save()?;
    let outcome = sweep.run(tell);
    interrupt::set_going_on(None);
    outcome
}

/// The command that goes on with the sweep of a recipe.
fn command(recipe: &Recipe, options: &SweepOptions) -> String {
    let settings: String = recipe.overrides.iter().map(|setting| format!(" --set {}", quoted(setting))).collect();
    let more = run_options(&options.device, options.max_memory);
    format!("burnish sweep {}{settings}{more} --resume", quoted(&recipe.name))
}

impl Sweep<'_> {
    fn run(&mut self, tell: &mut dyn FnMut(SweepEvent<'_>)) -> Result<SweepReport> {
        let at_once = self.at_once(tell);
        tell(SweepEvent::Begins { trials: self.journal.trials.len(), at_once });
        let base = SharedBase::default();
        while self.journal.rungs_done <= self.settings.rungs.len() {
            let is_last = self.journal.rungs_done == self.settings.rungs.len();
            self.take_turns(at_once, &base, tell)?;
            if interrupt::requested() {
                return self.report(false);
            }
            self.check_any()?;
            if is_last {
                break;
            }
            self.journal.decide(self.settings.objective, self.settings.reduction);
            self.save()?;
            tell(SweepEvent::Compared(&self.summary()));
        }
        self.report(true)
    }

    /// Trials at once, as far as memory and their number allow.
    fn at_once(&self, tell: &mut dyn FnMut(SweepEvent<'_>)) -> usize {
        let wanted = self.options.parallel.min(self.planned.len()).max(1);
        let limit = self.options.max_memory.map(|Size(bytes)| bytes).or_else(memory_to_plan_with);
        let Some(limit) = limit else { return wanted };
        let needed = |count| bytes_at_once(&self.planned, count);
        let fitting = (1..=wanted).rev().find(|&count| needed(count) <= limit).unwrap_or(1);
        if fitting < wanted {
            let (trials, needed, limit) = (counted(wanted, "trial"), Size(needed(wanted)), Size(limit));
            let text = format!("{trials} at once would take {needed}, and {limit} may be used: {fitting} at once");
            tell(SweepEvent::Notice(&text));
        }
        fitting
    }

    /// Trains the active trials up to the next rung.
    fn take_turns(&mut self, at_once: usize, base: &SharedBase, tell: &mut dyn FnMut(SweepEvent<'_>)) -> Result<()> {
        let rung = self.journal.rungs_done;
        let mut waiting = Vec::new();
        for index in self.journal.active() {
            let trial = &mut self.journal.trials[index];
            match (trial.state, trial.figures.last().copied()) {
                // It came to its end before this rung.
                (TrialState::Finished, Some(last)) => trial.figures.resize(rung + 1, last),
                _ if trial.figures.len() <= rung => waiting.push(index),
                _ => {}
            }
        }
        let planned = Arc::clone(&self.planned);
        // The trials of one base come together, so that it is loaded once.
        waiting.sort_by(|&left, &right| planned[left].base.cmp(&planned[right].base));
        let share = self.settings.rungs.get(rung).copied();
        let until = |index: usize| share.and_then(|share| planned[index].rung_step(share));
        let tasks =
            waiting.into_iter().map(|trial| Task { trial, recipe: &planned[trial].recipe, until_step: until(trial) });
        let tasks: Vec<Task<'_>> = tasks.collect();
        let SweepOptions { device, max_memory, .. } = *self.options;
        let command = &self.command.clone();
        let circumstances = Circumstances { device, max_memory, at_once, base, command };
        let mut told = BTreeSet::new();
        take_turns(tasks, &circumstances, &mut |index, news| {
            let trial = &self.journal.trials[index];
            match news {
                News::Begins => tell(SweepEvent::TrialBegins {
                    trial: &trial.name,
                    values: &trial.values,
                    until_step: until(index),
                }),
                // What all trials say is said once.
                News::Notice(text) => {
                    if told.insert(text.clone()) {
                        tell(SweepEvent::Notice(&format!("{}: {text}", trial.name)));
                    }
                }
                News::Evaluated { step, loss } => {
                    tell(SweepEvent::Evaluated { trial: &trial.name, step, loss });
                }
                News::Ended(outcome) => {
                    self.turn_ends(index, *outcome, until(index), tell)?;
                }
            }
            Ok(())
        })
    }

    /// Records what a trial has shown in its turn, which was to end after `until_step`.
    fn turn_ends(
        &mut self,
        index: usize,
        outcome: Result<TrainReport>,
        until_step: Option<u64>,
        tell: &mut dyn FnMut(SweepEvent<'_>),
    ) -> Result<()> {
        let run = RunFiles::read(&self.dir.join(&self.journal.trials[index].name));
        let trial = &mut self.journal.trials[index];
        match (outcome, run) {
            (Ok(report), Ok(run)) => {
                let evaluated = run.evaluations().next_back().and_then(|line| line["step"].as_u64());
                let is_at_rung = until_step == Some(report.steps) && evaluated == until_step;
                if report.interrupted && !is_at_rung {
                    return Ok(());
                }
                let figures = Figures::of(&run).ok_or_else(|| Error::failed(&run.path, "has no evaluation"))?;
                trial.figures.push(figures);
                if !report.interrupted {
                    trial.state = TrialState::Finished;
                }
            }
            (Err(error), Ok(run)) if has_diverged(&run) => {
                (trial.state, trial.error) = (TrialState::Failed, Some(error.to_string()));
            }
            (Err(error), _) | (Ok(_), Err(error)) => return Err(error.within(&*trial.name)),
        }
        self.save()?;
        tell(SweepEvent::TrialEnds(&self.row(index)));
        Ok(())
    }

    /// Looks for a trial that has not failed.
    ///
    /// # Errors
    /// Failed: there is none.
    fn check_any(&self) -> Result<()> {
        let trials = self.journal.trials.iter();
        let errors = trials.map(|trial| Some(Error::failed(&*trial.name, trial.error.as_deref()?)));
        Error::none_of(errors.collect::<Option<_>>().unwrap_or_default(), ())
    }

    /// Writes the journal and the page.
    fn save(&self) -> Result<()> {
        self.journal.write(&self.dir.join(JOURNAL_FILE))?;
        let summary = self.summary();
        let shown = summary.trials.iter().take(MAX_CURVES).map(|row| self.dir.join(&row.name));
        let runs: Vec<RunFiles> = shown.filter_map(|path| RunFiles::read(&path).ok()).collect();
        atomic::write_bytes(&self.dir.join(PAGE_FILE), page(&summary, &runs).as_bytes())
    }

    fn report(&self, is_complete: bool) -> Result<SweepReport> {
        let best = self.journal.ranked(self.settings.objective).first().copied().filter(|_| is_complete);
        let best_recipe = best.map(|index| self.write_best(index)).transpose()?;
        Ok(SweepReport {
            dir: self.dir.clone(),
            page: self.dir.join(PAGE_FILE),
            best_recipe,
            resume: (!is_complete).then(|| self.command.clone()),
            summary: self.summary(),
        })
    }

    /// Writes the recipe of a trial as one of its own, for a run beside the trials.
    fn write_best(&self, index: usize) -> Result<PathBuf> {
        let row = self.row(index);
        let mut plan = self.planned[index].recipe.settings()?;
        plan.output.dir = self.dir.join("best");
        let of = counted(self.journal.trials.len(), "trial");
        let header = format!(
            "# The best of {of} by {}: {}, {}.\n",
            self.settings.objective,
            row.name,
            row.shown(&self.summary())
        );
        let path = self.dir.join(BEST_FILE);
        atomic::write_bytes(&path, (header + &recipe::resolved(&plan)?).as_bytes())?;
        Ok(path)
    }

    fn row(&self, index: usize) -> SummaryRow {
        let trial = &self.journal.trials[index];
        let last = trial.figures.last();
        SummaryRow {
            name: trial.name.clone(),
            state: match (trial.state, last) {
                (TrialState::Open, None) => "waiting",
                (TrialState::Open, Some(_)) => "paused",
                (TrialState::Finished, _) => "finished",
                (TrialState::Stopped, _) => "stopped",
                (TrialState::Failed, _) => "failed",
            },
            values: trial.values.clone(),
            score: last.and_then(|figures| figures.score(self.settings.objective)),
            loss_before: last.map(|figures| figures.loss_before),
            loss: last.map(|figures| figures.loss),
            best_step: last.map(|figures| figures.best_step),
            steps: last.map_or(0, |figures| figures.steps),
            total_steps: self.planned[index].total_steps,
            seconds: last.map_or(0.0, |figures| figures.seconds),
            error: trial.error.clone(),
        }
    }

    /// The trials, the best first.
    fn summary(&self) -> Summary {
        let objective = self.settings.objective;
        let trials = self.journal.ranked(objective).into_iter().map(|index| self.row(index)).collect();
        Summary::new(&self.dir, (objective.name(), objective.higher_is_better(), objective.is_share()), trials)
    }
}
