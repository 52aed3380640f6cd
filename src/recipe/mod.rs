//! From a recipe (TOML, what the user typed) to a [`Plan`] (what it means): defaults filled, every problem collected.
//!
//! ```text
//! Recipe::load(path, overrides)   reads, parses, lays `--set` over it
//! Recipe::settings()              types, limits, contradictions; touches no file
//! Recipe::plan()                  the same, and looks at the files it names
//! ```
//!
//! Paths in a recipe are relative to the current folder, not to the recipe: a recipe that is copied elsewhere
//! goes on meaning the same files when it is run from the same place.

mod aliases;
mod plan;
mod privacy;
pub mod shipped;
pub mod sweep;

use std::fs;
use std::path::Path;

pub use crate::settings::Setting;
pub use plan::{Base, Output, Plan, SampleSettings};
pub use sweep::{SweepObjective, SweepSettings};

use crate::adapter::spec::{Modules, Targets};
use crate::data::{Format, Paths};
use crate::error::{self, Error, Result};
use crate::pull::Source;
use crate::settings::tree::{self, Node, Place, Value};
use crate::settings::{Describe, FromNode, OrAuto, Reader, Suggestions, one_of};
use crate::train::{EvalOn, ObjectiveKind};

/// The largest recipe that is read, in bytes.
const MAX_RECIPE_BYTES: u64 = 256 << 10;
/// The section that says what `burnish sweep` searches.
const SWEEP: &str = "sweep";

/// A recipe as it was typed.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Its name in errors: the path as given.
    pub name: String,
    /// The file as it is.
    pub text: String,
    /// The `--set key=value` laid over it, in order.
    pub overrides: Vec<String>,
    root: Node,
    /// The section `[sweep]` and its place; it is no part of what a run is.
    sweep: Option<(Place, Node)>,
}

impl Recipe {
    /// Reads a recipe file and lays `overrides` (`section.key=value`) over it, the last one winning.
    ///
    /// # Errors
    /// Input: no such file, not a regular file, not UTF-8, not TOML (every syntax error at once, `path:line:column`),
    /// or an override that has no `key=value` form.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|error| Error::read(path, &error))?;
        if !metadata.is_file() {
            return Err(Error::input(path.display(), "is not a file").hint("a recipe is a TOML file"));
        }
        if metadata.len() > MAX_RECIPE_BYTES {
            let message = format!("has {} bytes; a recipe has at most {MAX_RECIPE_BYTES}", metadata.len());
            return Err(Error::input(path.display(), message));
        }
        let bytes = fs::read(path).map_err(|error| Error::read(path, &error))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Error::input(path.display(), format!("is not UTF-8 text: the byte at offset {at} is wrong"))
        })?;
        let is_of_another_format = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|other| extension.eq_ignore_ascii_case(other)));
        match tree::parse(&text, "") {
            Err(_) if is_of_another_format => Err(Error::input(path, "is not TOML, and a recipe is TOML")
                .hint("write `key = value` under [base], [data] and so on; docs/recipe.md has every setting")),
            _ => Self::parse(&text, &path.display().to_string(), overrides),
        }
    }

    /// Parses the text of a recipe that errors call `name`, and lays `overrides` over it.
    ///
    /// # Errors
    /// Those of [`Recipe::load`] that do not concern the file.
    pub fn parse(text: &str, name: &str, overrides: &[String]) -> Result<Self> {
        let mut root = tree::parse(text, name)?;
        let errors = overrides.iter().filter_map(|setting| tree::set(&mut root, setting).err());
        let errors = errors.collect();
        let sweep = match &mut root.value {
            Value::Table(sections) => sections.remove(SWEEP),
            _ => None,
        };
        Error::none_of(
            errors,
            Self { name: name.to_owned(), text: text.to_owned(), overrides: overrides.to_vec(), root, sweep },
        )
    }

    /// The meaning of the recipe, without a look at any file.
    ///
    /// # Errors
    /// Input: every unknown key, wrong type, value out of range and contradiction, each at its line and column.
    pub fn settings(&self) -> Result<Plan> {
        let mut reader = self.reader();
        let plan = self.read(&mut reader);
        self.read_sweep(&mut reader);
        reader.finish(plan)
    }

    /// The meaning of the recipe, checked against the files it names: base and data exist, and the run folder can.
    ///
    /// # Errors
    /// Those of [`Recipe::settings`], and Input for each file that is missing or in the way. A run folder that exists is no error
    /// here: a run may go on in it.
    pub fn plan(&self) -> Result<Plan> {
        let mut reader = self.reader();
        let plan = self.read(&mut reader);
        self.read_sweep(&mut reader);
        if let Some(plan) = &plan {
            self.check_files(plan, &mut reader);
        }
        reader.finish(plan)
    }

    /// The same problems; a setting ([`Place::Setting`](crate::error::Place)) becomes the line and column where it was typed.
    pub fn locate(&self, error: Error) -> Error {
        error.map_problems(|place, message| {
            if let error::Place::Setting(key) = place {
                *message = format!("`{key}` {message}");
                *place = self.place(key).of(&self.name);
            }
        })
    }

    fn reader(&self) -> Reader<'_> {
        let suggestions = Suggestions {
            keys: settings().into_iter().map(|setting| setting.key).collect(),
            foreign_keys: aliases::FOREIGN_KEYS,
            foreign_words: aliases::FOREIGN_WORDS,
        };
        Reader::new(&self.name, suggestions)
    }

    fn read(&self, reader: &mut Reader) -> Option<Plan> {
        let mut plan = Plan::from_node(&self.root, "", reader)?;
        // Keys alone do not tell a label of these kinds from any other column of that name.
        let labelled = plan.train.objective.data_format().filter(|format| *format != Format::Preference);
        if let Some(labelled) = labelled {
            let formats = plan.data.sources.iter_mut().map(|source| &mut source.format);
            for format in formats.chain([&mut plan.data.format]).filter(|format| **format == OrAuto::Auto) {
                *format = OrAuto::Given(labelled);
            }
        }
        self.check_contradictions(&plan, reader);
        Some(plan)
    }

    fn check_contradictions(&self, plan: &Plan, reader: &mut Reader) {
        let Plan { data, adapter, train, .. } = plan;
        if data.train == Paths::default() && data.sources.is_empty() {
            let section = self.place("data");
            reader.problem(&section, "`data.train` is missing");
        }
        if data.group.is_some() && data.valid_fraction.is_none() {
            let place = self.place("data.group");
            reader.problem(
                &place,
                "`data.group` says which examples `data.valid_fraction` keeps together, and there is none",
            );
        }
        if data.valid.is_some() && data.valid_fraction.is_some() {
            let place = self.place("data.valid_fraction");
            reader.problem(&place, "`data.valid` and `data.valid_fraction` exclude each other: keep one");
        }
        if train.eval_on == EvalOn::ExactMatch && data.valid.is_none() && data.valid_fraction.is_none() {
            let place = self.place("train.eval_on");
            let message = "`train.eval_on` is \"exact_match\", which needs validation examples, and there are none";
            reader.problem_with_hint(&place, message, "give `data.valid` or `data.valid_fraction`");
        }
        self.check_preferences(plan, reader);
        self.check_privacy(plan, reader);
        if train.early_stopping.is_some() && data.valid.is_none() && data.valid_fraction.is_none() {
            let place = self.place("train.early_stopping");
            let message = "`train.early_stopping` needs validation examples, and there are none";
            reader.problem_with_hint(&place, message, "give `data.valid` or `data.valid_fraction`");
        }
        if let Some(test) = &data.test
            && (*test == data.train || data.valid.as_ref() == Some(test))
        {
            let message = "`data.test` is a file that the adapter is trained or chosen on: it would prove nothing";
            reader.problem_with_hint(&self.place("data.test"), message, "give examples that are held out from both");
        }
        if train.warmup_share.is_some() && train.warmup_steps > 0 {
            let place = self.place("train.warmup_share");
            reader.problem(&place, "`train.warmup_steps` and `train.warmup_share` exclude each other: keep one");
        }
        let listed = adapter.targets.listed();
        for (index, target) in listed.iter().enumerate() {
            if listed[..index].contains(target) {
                let place = self.element_place("adapter.targets", index);
                reader.problem(&place, format!("`adapter.targets` names {target} twice"));
            }
        }
        if adapter.layers.is_some() && matches!(adapter.targets, Targets::Modules(Modules::Pattern(_))) {
            let message = "`adapter.layers` does not go with a regular expression in `adapter.targets`, as in PEFT";
            reader.problem_with_hint(&self.place("adapter.layers"), message, "let the expression name the layers");
        }
        if let Some(control) = plan.base.model.chars().find(|symbol| symbol.is_control()) {
            let message = format!("`base.model`: the control character {control:?} cannot stand in a name or path");
            reader.problem_with_hint(&self.place("base.model"), message, tree::ESCAPE_HINT);
        } else if let Err(error) = Source::parse(&plan.base.model) {
            let place = self.place("base.model");
            for problem in error.problems() {
                let message = format!("`base.model`: {}", problem.message);
                match &problem.hint {
                    Some(hint) => reader.problem_with_hint(&place, message, hint),
                    None => reader.problem(&place, message),
                }
            }
        }
    }

    /// The settings that go together with the objective, and those that do not.
    fn check_preferences(&self, plan: &Plan, reader: &mut Reader) {
        let Plan { data, train, .. } = plan;
        let objective = train.objective;
        for (key, readers) in train.unread_by_objective() {
            let readers: Vec<&str> = readers.iter().map(|kind| kind.name()).collect();
            let readers = one_of(&readers);
            let message =
                format!("`{key}` does nothing under `train.objective = \"{objective}\"`: it belongs to {readers}");
            reader.problem(&self.place(key), message);
        }
        if data.canaries.is_some() && objective != ObjectiveKind::Sft {
            let message =
                format!("`data.canaries` are examples to learn from, and `train.objective` is \"{objective}\"");
            reader.problem(&self.place("data.canaries"), message);
        }
        if objective == ObjectiveKind::Classify {
            return self.check_classification(plan, reader);
        }
        if data.labels.is_some() {
            let message =
                format!("`data.labels` does nothing under `train.objective = \"{objective}\"`: it belongs to classify");
            reader.problem(&self.place("data.labels"), message);
        }
        if !objective.is_preference() {
            return;
        }
        let refused = [
            (
                "train.label_smoothing",
                train.label_smoothing > 0.0,
                "`train.preference_smoothing` is that of preferences",
            ),
            (
                "train.eval_on",
                train.eval_on == EvalOn::ExactMatch,
                "the loss of the objective chooses the best adapter",
            ),
            ("data.rehearsal", data.rehearsal.is_some(), "give general examples in `eval.guard` to see what they lose"),
        ];
        for (key, _, hint) in refused.into_iter().filter(|(_, is_given, _)| *is_given) {
            let message = format!("`{key}` does not go with preferences, and `train.objective` is \"{objective}\"");
            reader.problem_with_hint(&self.place(key), message, hint);
        }
    }

    /// The settings that do not go together with a classifier, which gives no text.
    fn check_classification(&self, plan: &Plan, reader: &mut Reader) {
        let Plan { data, train, eval, sample, .. } = plan;
        let refused = [
            ("train.eval_on", train.eval_on == EvalOn::ExactMatch, "`accuracy` chooses by the right labels"),
            ("data.rehearsal", data.rehearsal.is_some(), "its examples have no labels"),
            ("eval.guard", eval.guard.is_some(), "`data.test` takes further texts with labels"),
            ("sample.prompts", !sample.prompts.is_empty(), "`burnish predict` gives the labels of texts"),
        ];
        for (key, _, hint) in refused.into_iter().filter(|(_, is_given, _)| *is_given) {
            let message = format!("`{key}` does not go with a classifier, which gives no text");
            reader.problem_with_hint(&self.place(key), message, hint);
        }
        if train.eval_on == EvalOn::Accuracy && data.valid.is_none() && data.valid_fraction.is_none() {
            let message = "`train.eval_on` is \"accuracy\", which needs validation examples, and there are none";
            reader.problem_with_hint(
                &self.place("train.eval_on"),
                message,
                "give `data.valid` or `data.valid_fraction`",
            );
        }
    }

    fn check_files(&self, plan: &Plan, reader: &mut Reader) {
        if let Ok(Source::Path(path)) = Source::parse(&plan.base.model)
            && let Err(error) = fs::metadata(&path)
        {
            let message = format!("`base.model`: {} cannot be read: {error}", path.display());
            reader.problem_with_hint(&self.place("base.model"), message, crate::pull::names_hint(&plan.base.model));
        }
        check_data("data.train", &self.place("data.train"), &plan.data.train, reader);
        let guard = plan.eval.guard.as_ref().map(|guard| &guard.path);
        let others = [("data.valid", plan.data.valid.as_ref()), ("data.test", plan.data.test.as_ref())];
        for (key, paths) in others.into_iter().chain([("eval.guard.path", guard)]) {
            if let Some(paths) = paths {
                check_data(key, &self.place(key), paths, reader);
            }
        }
        if let Some(rehearsal) = &plan.data.rehearsal {
            check_data("data.rehearsal.path", &self.place("data.rehearsal.path"), &rehearsal.path, reader);
        }
        for (index, source) in plan.data.sources.iter().enumerate() {
            check_data("data.sources.path", &self.element_place("data.sources", index), &source.path, reader);
        }
        let dir = &plan.output.dir;
        let above = dir.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok());
        if let Some(above) = above.filter(|above| !above.is_dir()) {
            let message = format!("`output.dir`: {} is not a folder", above.display());
            reader.problem(&self.place("output.dir"), message);
        }
    }

    /// Where the value of `key` was typed; the recipe as a whole if it was not.
    fn place(&self, key: &str) -> Place {
        self.node(key).map_or(Place::Recipe, |node| node.place.clone())
    }

    fn element_place(&self, key: &str, index: usize) -> Place {
        match self.node(key).map(|node| (&node.value, &node.place)) {
            Some((Value::Array(nodes), place)) => nodes.get(index).map_or(place, |node| &node.place).clone(),
            _ => self.place(key),
        }
    }

    fn node(&self, key: &str) -> Option<&Node> {
        key.split('.').try_fold(&self.root, |node, part| match &node.value {
            Value::Table(table) => table.get(part).map(|(_, node)| node),
            _ => None,
        })
    }
}

/// Checks that the names of data files lead to files.
fn check_data(key: &str, place: &Place, paths: &Paths, reader: &mut Reader) {
    let Err(error) = paths.files() else { return };
    let current_folder = || current_folder_hint().filter(|_| paths.has_relative());
    for problem in error.problems() {
        let message = format!("`{key}`: {} {}", problem.place, problem.message);
        match problem.hint.clone().or_else(current_folder) {
            Some(hint) => reader.problem_with_hint(place, message, hint),
            None => reader.problem(place, message),
        }
    }
}

fn current_folder_hint() -> Option<String> {
    let folder = std::env::current_dir().ok()?;
    Some(format!("paths in a recipe are relative to the current folder, {}", folder.display()))
}

/// The recipe of a plan: every setting as it stands, those that were typed nowhere included.
///
/// # Errors
/// Input: a path that is no text.
pub fn resolved(plan: &Plan) -> Result<String> {
    let failed = |error: toml::ser::Error| Error::input("recipe", format!("cannot be written: {error}"));
    let mut table = toml::Table::try_from(plan).map_err(failed)?;
    if plan.data.train == Paths::default()
        && let Some(toml::Value::Table(data)) = table.get_mut("data")
    {
        // Its sources are all there is.
        data.remove("train");
    }
    let text = toml::to_string(&table).map_err(failed)?;
    Ok(format!("# Every setting of this run, defaults and `--set` included.\n\n{text}"))
}

/// The JSON Schema of a recipe, for editors that complete and check TOML by one.
pub fn schema() -> serde_json::Value {
    let mut schema = Plan::schema();
    schema["properties"][SWEEP] = SweepSettings::schema();
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
    schema["title"] = "A recipe of burnish".into();
    schema
}

/// Every setting of a recipe, in the order of the plan.
pub fn settings() -> Vec<Setting> {
    let mut settings = Vec::new();
    Plan::describe("", &mut settings);
    SweepSettings::describe(SWEEP, &mut settings);
    settings
}
