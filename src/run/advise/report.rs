//! Advice for people and as JSON.

use std::fmt;
use std::path::PathBuf;

use serde::Serialize;

use super::machine::Machine;
use crate::bytes::Size;
use crate::error::counted;
use crate::model::decoder::Recompute;
use crate::quant::Quant;
use crate::report::table::Table;
use crate::run::probe::words;

/// The languages of a model that the table names.
const NAMED_LANGUAGES: usize = 4;

/// Advice: every model with its costs on this machine, and the one that is recommended.
#[derive(Debug, Clone, Serialize)]
pub struct Advice {
    /// The speeds of this machine.
    pub machine: Machine,
    /// The memory that a run may take; none where the system does not say.
    pub memory_bytes: Option<u64>,
    /// The longest run that is recommended, in seconds.
    pub limit_seconds: f64,
    /// The file of the examples; none where usual ones are assumed.
    pub data: Option<PathBuf>,
    /// The examples.
    pub examples: usize,
    /// Their tokens for the first model.
    pub tokens: usize,
    /// Their language, where it is certain.
    pub language: Option<&'static str>,
    /// The models.
    pub models: Vec<Model>,
    /// The name of the recommended one.
    pub recommended: Option<String>,
    /// Its recipe, where there are examples.
    pub recipe: Option<String>,
}

/// A model with its costs.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// Its name as a base.
    pub base: String,
    /// The last part of its name.
    pub name: String,
    /// Its parameters.
    pub parameters: usize,
    /// Its licence, where it is known.
    pub licence: Option<String>,
    /// Whether the hub asks for consent to the licence before it gives the files.
    pub is_gated: bool,
    /// The languages that it knows; empty where that is not known.
    pub languages: Vec<String>,
    /// Whether its own tokenizer counted the tokens.
    pub tokens_are_exact: bool,
    /// Tokens a second of an answer afterwards, at most.
    pub answer_tokens_per_second: f64,
    /// The costs by method.
    pub methods: Vec<Method>,
    /// The fastest method that fits, by its place among them.
    pub chosen: Option<usize>,
    /// The recipe of that method.
    #[serde(skip)]
    pub recipe: Option<String>,
}

/// A way to hold weights and activations, with its costs.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Method {
    /// The quantisation of the frozen weights.
    pub quant: Quant,
    /// The activations that are computed again.
    pub recompute: Recompute,
    /// The peak of memory by the memory plan.
    pub peak_bytes: u64,
    /// Whether that is allowed.
    pub fits: bool,
    /// The time of all steps.
    pub training_seconds: f64,
    /// The time of all evaluations.
    pub evaluation_seconds: f64,
    /// Tokens through the model in training, by second.
    pub tokens_per_second: f64,
    /// The base and the run folder, at most.
    pub disk_bytes: u64,
}

impl Method {
    /// The time of the run.
    pub fn seconds(&self) -> f64 {
        self.training_seconds + self.evaluation_seconds
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weights = if self.quant == Quant::None { "bf16" } else { self.quant.name() };
        let again = if self.recompute == Recompute::Block { ", recompute" } else { "" };
        write!(f, "{weights}{again}")
    }
}

impl Model {
    /// The costs of the chosen method.
    pub fn chosen(&self) -> Option<&Method> {
        self.chosen.and_then(|index| self.methods.get(index))
    }
}

/// A rate with two digits, where it is small.
fn rate(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

impl Advice {
    fn table(&self) -> Table {
        let mut table = Table::new(&[
            "model",
            "parameters",
            "licence",
            "languages",
            "method",
            "memory",
            "time",
            "tokens/s",
            "answers",
            "disk",
        ]);
        for model in &self.models {
            let mark = if self.recommended.as_ref() == Some(&model.name) { "* " } else { "  " };
            let mut languages = model.languages.iter().take(NAMED_LANGUAGES).cloned().collect::<Vec<_>>().join(" ");
            if model.languages.len() > NAMED_LANGUAGES {
                languages += " …";
            }
            let licence = model.licence.as_deref().unwrap_or("-");
            let licence = if model.is_gated { format!("{licence}, gated") } else { licence.to_owned() };
            let parameters = match model.parameters as f64 {
                count if count < 999.5e6 => format!("{:.0}M", count / 1e6),
                count => format!("{:.1}B", count / 1e9),
            };
            let first = [format!("{mark}{}", model.name), parameters, licence, languages];
            let costs = match (model.chosen(), model.methods.last()) {
                (Some(method), _) => [
                    method.to_string(),
                    Size(method.peak_bytes).to_string(),
                    words(method.seconds()),
                    rate(method.tokens_per_second),
                    format!("{}/s", rate(model.answer_tokens_per_second)),
                    Size(method.disk_bytes).to_string(),
                ],
                (None, least) => {
                    let least = least.map_or_else(String::new, |method| Size(method.peak_bytes).to_string());
                    ["does not fit".to_owned(), least, "-".into(), "-".into(), "-".into(), "-".into()]
                }
            };
            table.add(first.into_iter().chain(costs).collect());
        }
        table
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let examples = counted(self.examples, "example");
        let of = match &self.data {
            Some(path) => format!(" of {}", path.display()),
            None => " (assumed; --data FILE takes yours)".to_owned(),
        };
        let memory = self.memory_bytes.map_or_else(String::new, |bytes| format!(" in {} of memory", Size(bytes)));
        writeln!(f, "{examples}{of}, {} tokens, within {}{memory}:\n", self.tokens, words(self.limit_seconds))?;
        writeln!(f, "{}", self.table())?;
        let Machine { layers: [_, wide], threads, seconds, .. } = &self.machine;
        writeln!(
            f,
            "times by {:.0} GFLOP/s in bf16 and {:.0} in NF4, on {}, from steps of {seconds:.1} s",
            wide.dense / 1e9,
            wide.packed / 1e9,
            counted(*threads, "thread")
        )?;
        match &self.recommended {
            Some(name) => write!(f, "recommended: {name}, the largest that fits"),
            None => write!(f, "none fits: allow more memory (--memory) or time (--time), or take fewer examples"),
        }
    }
}
