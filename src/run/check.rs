//! The check of a run: what it is made of, what is wrong with its data, and what it will take.

use std::fmt;
use std::path::Path;

use serde::Serialize;

use super::folder::RunFolder;
use super::identity::identity;
use super::memory::MemoryPlan;
use super::notices::{has_no_end, notices_of_run};
use super::prepare::{Examples, Prepared, prepare, read_examples};
use super::probe::{TimeEstimate, probe};
use super::ranks;
use super::watch::{Stage, Watch};
use crate::bytes::Size;
use crate::data::preflight::lengths::{LengthClass, histogram};
use crate::data::preflight::{Code, Finding, Severity, Split, preflight};
use crate::data::{Encoded, EncodedSet, Encoder, Example, Paths, Row, read};
use crate::device::DeviceChoice;
use crate::device::nodes::nodes;
use crate::error::{Error, Place, Result, counted};
use crate::model::vision::features::is_feature;
use crate::pull::{self, Presence};
use crate::recipe::{Plan, Recipe};
use crate::text::TextStream;
use crate::train::Ranks;
use crate::train::parallel::launch::{Launched, advice};

/// The parts of a check that are not always wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions<'a> {
    /// The number of a training example to show, from 1.
    pub show: Option<usize>,
    /// The processes that time a few steps together, for which the weights are loaded; `None` to time nothing.
    pub time: Option<&'a dyn Ranks>,
}

/// The outcome of a check.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The data files.
    pub files: Vec<FileFacts>,
    /// The run, where its base is on this machine.
    #[serde(flatten)]
    pub run: Option<RunFacts>,
    /// The base, where it has to be fetched first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to_fetch: Option<ToFetch>,
    /// The findings, the most severe first.
    pub findings: Vec<Finding>,
    /// The example that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shown: Option<Shown>,
    /// The time that the run will take, where steps were timed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<TimeEstimate>,
}

/// A data file.
#[derive(Debug, Clone, Serialize)]
pub struct FileFacts {
    /// `train` or `valid`.
    pub split: &'static str,
    /// Its path.
    pub file: String,
    /// The shape that its rows were read in, given or found.
    pub format: &'static str,
    /// Its rows.
    pub rows: usize,
}

/// A base that is not on this machine.
#[derive(Debug, Serialize)]
pub struct ToFetch {
    /// Its name.
    pub base: String,
    /// The files that `train` fetches first, in words.
    pub fetches: String,
}

/// The work that a recipe describes.
#[derive(Debug, Serialize)]
pub struct RunFacts {
    /// Steps, unless the run stops early.
    pub total_steps: u64,
    /// The shape of the examples, given or found.
    pub format: Option<&'static str>,
    /// The training examples.
    pub train: SplitFacts,
    /// The validation examples; none without.
    pub valid: Option<SplitFacts>,
    /// Validation sequences that are training sequences too.
    pub seen_in_training: usize,
    /// Values of the base.
    pub base_parameters: usize,
    /// Values of the adapter.
    pub adapter_parameters: usize,
    /// Whether the base has a chat template.
    pub chat_template: bool,
    /// Bytes by purpose.
    pub memory: MemoryPlan,
    /// Their peak.
    pub memory_bytes: u64,
}

/// Encoded examples of one kind.
#[derive(Debug, Serialize)]
pub struct SplitFacts {
    /// Examples that are used.
    pub examples: usize,
    /// Their tokens.
    pub tokens: usize,
    /// Of these, the ones loss is taken on.
    pub trained_tokens: usize,
    /// Tokens of the longest example.
    pub longest_tokens: usize,
    /// Examples by length.
    pub lengths: Vec<LengthClass>,
    /// Examples that are left out.
    pub left_out: usize,
    /// Examples whose prompt is cut.
    pub truncated: usize,
    /// Turns of the assistant that are not trained.
    pub untrained_turns: usize,
}

/// An example as the model sees it.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// Its number, from 1.
    pub number: usize,
    /// Its place in the data.
    pub place: String,
    /// Its tokens.
    pub tokens: usize,
    /// The decoded text, in parts that are trained or not.
    pub parts: Vec<ShownPart>,
}

/// A part of a shown example.
#[derive(Debug, Serialize)]
pub struct ShownPart {
    /// The text, control tokens as their texts.
    pub text: String,
    /// Whether loss is taken on it.
    pub trained: bool,
}

impl Report {
    /// Whether the run would be worthless, or would not start.
    pub fn is_worthless(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// Checks what `recipe` asks for. The base is not fetched: without it, the texts alone are looked at.
///
/// # Errors
/// Those of [`prepare`]; those of the steps that are timed. An output folder that is not free is a finding.
pub fn check(
    recipe: &Recipe,
    choice: &DeviceChoice,
    max_memory: Option<Size>,
    options: CheckOptions<'_>,
    watch: &mut dyn Watch,
) -> Result<Report> {
    let plan = recipe.plan()?;
    if let Presence::Fetchable(fetches) = pull::look_up(&plan.base.model)? {
        let examples = read_examples(&plan).map_err(|error| recipe.locate(error))?;
        let mut report = of_texts(recipe, &plan, &examples);
        if options.show.is_some() || options.time.is_some() {
            let option = if options.show.is_some() { "--show" } else { "--time" };
            let error = Error::input(Place::argument(option), format!("needs the base {}", plan.base.model));
            return Err(error.hint(format!("`burnish pull {}` fetches {fetches}", plan.base.model)));
        }
        report.to_fetch = Some(ToFetch { base: plan.base.model, fetches });
        return Ok(report);
    }
    let prepared = prepare(recipe, choice, max_memory, &mut WithoutNotices(watch))?;
    let on_nodes = (*choice == DeviceChoice::Cpu).then(|| advice(&nodes(), Launched::of_this_process())).flatten();
    notices_of_run(&prepared).iter().chain(&on_nodes).for_each(|notice| watch.notice(notice));
    watch.stage(Stage::Check);
    // Read again: a run needs the texts no longer once they are encoded.
    let examples = read_examples(&prepared.plan).map_err(|error| recipe.locate(error))?;
    let plan = &prepared.plan;
    let encoder = &prepared.base.encoder;
    let (train_file, valid_file) = files(plan);
    // The examples of a rehearsal are other people's.
    let own = &examples.train[..examples.own];
    let train = Split { name: "train", file: &train_file, rows: own, encoded: Some(&prepared.train) };
    let valid = Split { name: "valid", file: &valid_file, rows: &examples.valid, encoded: Some(&prepared.valid) };
    let has_valid = !examples.valid.is_empty();
    let mut findings = preflight(train, has_valid.then_some(valid), Some(encoder));
    if has_no_end(&prepared) {
        findings.push(Finding::about(Code::NoEndToken, None, None, ""));
    }
    findings.extend(of_output(recipe, plan, prepared.disk_bytes()));
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    let shown = options.show.map(|number| shown(number, &examples.train, encoder)).transpose()?;
    let time = match options.time {
        Some(ranks) => {
            let same = ranks::check(ranks, &prepared, &identity(&prepared, choice), watch);
            let time = same.and_then(|()| probe(&prepared, ranks, watch));
            Some(time.map_err(|error| recipe.locate(error))?)
        }
        None => None,
    };
    let files = file_facts(&examples);
    Ok(Report { files, run: Some(RunFacts::of(&prepared)), to_fetch: None, findings, shown, time })
}

/// Checks the texts of a data file alone.
///
/// # Errors
/// Input: every bad row.
pub fn check_file(path: &Path) -> Result<Report> {
    let rows = read(path, None)?;
    let file = path.display().to_string();
    let split = Split { name: "train", file: &file, rows: &rows, encoded: None };
    let mut findings = preflight(split, None, None);
    // A file alone is no run.
    findings.retain(|finding| finding.code != Code::NoValidation);
    let files = facts_of("train", &rows);
    Ok(Report { files, run: None, to_fetch: None, findings, shown: None, time: None })
}

/// The names of the files of both splits.
fn files(plan: &Plan) -> (String, String) {
    let train = plan.data.train_names();
    let valid = plan.data.valid.as_ref().map_or_else(|| train.clone(), Paths::to_string);
    (train, valid)
}

/// The files of some rows, each with the shape of its first row.
fn facts_of(split: &'static str, rows: &[Row]) -> Vec<FileFacts> {
    let files = rows.chunk_by(|a, b| a.position.file == b.position.file);
    let facts = files.filter_map(|rows| {
        let Row { position, example, .. } = rows.first()?;
        Some(FileFacts { split, file: position.file.to_string(), format: example.format().name(), rows: rows.len() })
    });
    facts.collect()
}

fn file_facts(examples: &Examples) -> Vec<FileFacts> {
    [facts_of("train", &examples.train), facts_of("valid", &examples.valid)].concat()
}

/// The report on the texts of a run whose base is not here.
fn of_texts(recipe: &Recipe, plan: &Plan, examples: &Examples) -> Report {
    let (train_file, valid_file) = files(plan);
    let own = &examples.train[..examples.own];
    let train = Split { name: "train", file: &train_file, rows: own, encoded: None };
    let valid = Split { name: "valid", file: &valid_file, rows: &examples.valid, encoded: None };
    let mut findings = preflight(train, (!examples.valid.is_empty()).then_some(valid), None);
    // The size of the adapter is not known yet.
    findings.extend(of_output(recipe, plan, 0));
    findings.sort_by_key(|finding| (finding.severity, finding.code));
    Report { files: file_facts(examples), run: None, to_fetch: None, findings, shown: None, time: None }
}

/// The progress of a preparation without its notices: they are findings here.
struct WithoutNotices<'a>(&'a mut dyn Watch);

impl Watch for WithoutNotices<'_> {
    fn stage(&mut self, stage: Stage) {
        self.0.stage(stage);
    }

    fn pull(&mut self, event: pull::Event<'_>) {
        self.0.pull(event);
    }

    fn encoding(&mut self, done: usize, total: usize) {
        self.0.encoding(done, total);
    }
}

/// The finding about an output folder that a run could not have; `bytes` is the room that the run takes there.
fn of_output(recipe: &Recipe, plan: &Plan, bytes: u64) -> Option<Finding> {
    let error = recipe.locate(RunFolder::check_usable(&plan.output.dir, bytes).err()?);
    let reasons = error.paragraphs().join("; ").replace("\n  hint: ", "; ");
    Some(Finding::about(Code::OutputUnusable, None, None, &reasons))
}

/// The training example `number` as the model sees it.
fn shown(number: usize, rows: &[Row], encoder: &Encoder) -> Result<Shown> {
    let row = number
        .checked_sub(1)
        .and_then(|index| rows.get(index))
        .ok_or_else(|| Error::input(Place::argument("--show"), format!("is {number}; expected 1 to {}", rows.len())))?;
    let encoded = encoder.encode(&row.example).map_err(|error| error.within(format_args!("example {number}")))?;
    let mut parts: Vec<ShownPart> = Vec::new();
    let mut add = |text: String, trained: bool| match parts.last_mut() {
        Some(last) if last.trained == trained => last.text += &text,
        _ if text.is_empty() => {}
        _ => parts.push(ShownPart { text, trained }),
    };
    let mut last = false;
    let label = match &row.example {
        Example::Class { label, .. } => Some(label),
        _ => None,
    };
    for (number, (ids, trained)) in encoded.sequences().enumerate() {
        if number > 0 {
            add("\n\n(rejected)\n".to_owned(), false);
        }
        let mut stream = TextStream::new(encoder.tokenizer(), false);
        // The number of a label stands in the place of a token.
        let tokens = ids.len() - usize::from(label.is_some());
        let runs = ids[..tokens].chunk_by(|a, b| is_feature(*a) && *b == *a + 1);
        let mut trained = trained.iter();
        for run in runs {
            let is_trained = trained.nth(run.len() - 1).is_some_and(|trained| *trained);
            match run.first() {
                Some(id) if is_feature(*id) => {
                    add(format!("[{} of a picture]", counted(run.len(), "token")), is_trained)
                }
                _ => add(stream.push(run[0])?, is_trained),
            }
            last = is_trained;
        }
        add(stream.finish()?, last);
    }
    if let Some(label) = label {
        add(format!("\n\n(label)\n{label}"), true);
    }
    Ok(Shown { number, place: row.position.to_string(), tokens: encoded.ids.len(), parts })
}

impl SplitFacts {
    fn of(set: &EncodedSet) -> Self {
        Self {
            examples: set.sequences.len(),
            tokens: set.tokens,
            trained_tokens: set.trained_tokens,
            longest_tokens: set.sequences.iter().map(Encoded::longest_tokens).max().unwrap_or(0),
            lengths: histogram(&set.sequences),
            left_out: set.dropped_long + set.dropped_untrained,
            truncated: set.truncated,
            untrained_turns: set.untrained_turns,
        }
    }
}

impl RunFacts {
    fn of(prepared: &Prepared) -> Self {
        Self {
            total_steps: prepared.total_steps,
            format: prepared.train.format.map(crate::data::Format::name),
            train: SplitFacts::of(&prepared.train),
            valid: (!prepared.valid.sequences.is_empty()).then(|| SplitFacts::of(&prepared.valid)),
            seen_in_training: prepared.seen_in_training,
            base_parameters: prepared.base.files.config().parameters(),
            adapter_parameters: prepared.start.parameters(),
            chat_template: prepared.base.encoder.has_template(),
            memory: prepared.memory,
            memory_bytes: prepared.memory.total(),
        }
    }
}

impl fmt::Display for SplitFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trained_tokens, longest_tokens, .. } = self;
        let (examples, tokens) = (counted(self.examples, "example"), counted(self.tokens, "token"));
        let share = 100.0 * *trained_tokens as f64 / self.tokens.max(1) as f64;
        write!(
            f,
            "{examples}, {tokens}, {trained_tokens} of them trained ({share:.0}%); the longest has {longest_tokens}\n            "
        )?;
        let classes: Vec<String> =
            self.lengths.iter().map(|class| format!("up to {}: {}", class.up_to, class.sequences)).collect();
        write!(f, "by tokens: {}", classes.join(", "))
    }
}

impl fmt::Display for RunFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// The report but for the shown example, which a terminal colours.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for FileFacts { split, file, format, rows } in &self.files {
            writeln!(f, "data        {split}: {file}, {}, read as `{format}`", counted(*rows, "row"))?;
        }
        if let Some(run) = &self.run {
            writeln!(f, "{run}")?;
        }
        if let Some(time) = &self.time {
            writeln!(f, "time        {time}")?;
        }
        if let Some(ToFetch { base, fetches }) = &self.to_fetch {
            writeln!(f, "base        {base} is not on this machine; `burnish train` fetches {fetches}")?;
            writeln!(
                f,
                "            tokens, steps and memory depend on the base: `burnish pull {base}` fetches it now, then check again"
            )?;
        }
        let counts = [Severity::Error, Severity::Warning, Severity::Note].map(|severity| {
            let count = self.findings.iter().filter(|finding| finding.severity == severity).count();
            (count > 0).then(|| counted(count, severity.name()))
        });
        let counts: Vec<String> = counts.into_iter().flatten().collect();
        write!(f, "findings    {}", if counts.is_empty() { "none".to_owned() } else { counts.join(", ") })?;
        for finding in &self.findings {
            write!(f, "\n  {finding}")?;
        }
        match self.findings.first() {
            Some(first) => write!(f, "\n`burnish explain {}` says what a finding means and what to do", first.code),
            None => Ok(()),
        }
    }
}
