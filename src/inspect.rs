//! The kind of a path, with its facts: a base model, an adapter, a run, a data file or a recipe. Weights are not read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use crate::adapter::peft::{AdapterHeader, CONFIG_FILE, WEIGHTS_FILE, no_adapter};
use crate::data::{self, Example};
use crate::error::{Error, Result, counted, printable};
use crate::files::json;
use crate::model::BaseFiles;
use crate::model::vision::short_name;
use crate::recipe::Recipe;
use crate::text::Tokenizer;

/// The file in a run folder that records the run.
pub const RUN_FILE: &str = "run.json";

/// The kind of a path, with its facts.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspection {
    /// A base model.
    Base(Base),
    /// An adapter without its run.
    Adapter(Adapter),
    /// A run folder.
    Run(Run),
    /// A file of examples.
    Data(Data),
    /// A recipe.
    Recipe(RecipeFacts),
}

/// A file of examples, all of one shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Data {
    /// The file.
    pub path: PathBuf,
    /// The shape of its examples, as `data.format` names it.
    pub format: &'static str,
    /// The number of examples.
    pub examples: usize,
    /// The turns of all conversations; `None` for other shapes.
    pub turns: Option<usize>,
    /// The size of the file.
    pub bytes: u64,
}

/// A recipe without errors.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecipeFacts {
    /// The recipe file.
    pub path: PathBuf,
    /// Every setting, defaults filled in, by section.
    pub settings: Value,
}

/// A base model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Base {
    /// The folder or the `.gguf` file.
    pub path: PathBuf,
    /// `huggingface` or `gguf`.
    pub format: &'static str,
    /// The class name that `config.json` uses.
    pub architecture: &'static str,
    /// Values of all tensors; a tied head counts once.
    pub parameters: usize,
    /// The size of the files of weights.
    pub bytes: usize,
    /// Tensors and parameters by storage format.
    pub storage: BTreeMap<String, Storage>,
    /// Number of decoder layers.
    pub layers: usize,
    /// Values of a hidden state.
    pub hidden_size: usize,
    /// Query heads of a layer.
    pub heads: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// The longest sequence that the configuration allows, in tokens.
    pub max_positions: usize,
    /// Whether the output head is the embedding.
    pub tied_head: bool,
    /// The tokenizer; `None` where the model has none. Training and generation need one.
    pub tokenizer: Option<TokenizerFacts>,
    /// The reason why the tokenizer cannot be read; the facts of the model hold without it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer_problem: Option<String>,
    /// The hash that identifies the weights; an adapter records that of its base.
    pub sha256: String,
    /// The parts of a larger model that are not used, each with its number of tensors.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub passed_over: BTreeMap<String, usize>,
}

/// Tensors that are stored alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Storage {
    /// Number of tensors.
    pub tensors: usize,
    /// Values of all of them.
    pub parameters: usize,
}

/// A base's tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenizerFacts {
    /// Number of tokens, added ones included.
    pub vocab_size: usize,
    /// The token that begins a text; `None` where none does.
    pub bos: Option<String>,
    /// The tokens that end a text, each by itself.
    pub eos: Vec<String>,
    /// Whether it comes with a chat template.
    pub chat_template: bool,
}

/// An adapter in PEFT's format.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Adapter {
    /// The adapter's folder.
    pub path: PathBuf,
    /// The default rank of its pairs.
    pub rank: usize,
    /// `lora_alpha`: the update is scaled by alpha / rank.
    pub alpha: f64,
    /// Dropout of the update's input during training.
    pub dropout: f64,
    /// Whether the scale is alpha / √rank instead.
    pub rslora: bool,
    /// Whether the pairs have magnitudes.
    pub dora: bool,
    /// The base that its configuration names. The name is shown and not followed.
    pub base: Option<String>,
    /// Values of all pairs.
    pub parameters: usize,
    /// Number of pairs by projection.
    pub targets: BTreeMap<String, usize>,
    /// Remarks on what has no effect: pairs that are zero, entries of the configuration that match nothing.
    pub notices: Vec<String>,
    /// `burnish.…` from the file of weights; empty for a foreign adapter.
    pub provenance: BTreeMap<String, String>,
}

/// A run folder: its adapter, and the record of the run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// The best adapter of the run.
    pub adapter: Adapter,
    /// The content of `run.json`.
    pub run: Value,
}

/// The kind of `path`, with its facts.
///
/// # Errors
/// Input: `path` is none of the kinds of [`Inspection`], or it is broken.
pub fn inspect(path: &Path) -> Result<Inspection> {
    let metadata = std::fs::metadata(path).map_err(|error| Error::read(path, &error))?;
    let has = |file: &str| path.join(file).is_file();
    if metadata.is_dir() && (has(CONFIG_FILE) || has(WEIGHTS_FILE)) {
        let adapter = adapter(path)?;
        return Ok(match has(RUN_FILE) {
            true => Inspection::Run(Run { adapter, run: json::read(&path.join(RUN_FILE))? }),
            false => Inspection::Adapter(adapter),
        });
    }
    if metadata.is_dir() && !has("config.json") {
        if let Some(error) = no_adapter(path) {
            return Err(error);
        }
        let message = format!("holds neither config.json nor {CONFIG_FILE}");
        return Err(Error::input(path.display(), message).hint("expected a model, an adapter or a run folder"));
    }
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "jsonl" | "json" | "csv" | "tsv" | "parquet" | "gz" | "zst" if metadata.is_file() => {
            data_file(path).map(Inspection::Data)
        }
        "toml" if metadata.is_file() => recipe(path).map(Inspection::Recipe),
        "gguf" | "safetensors" => base(path).map(Inspection::Base),
        _ => base(path).map(Inspection::Base).map_err(|error| match metadata.is_file() {
            true => error.hint(
                "expected a model, an adapter or a run folder, a .gguf file, data (.jsonl, .json, .csv, .parquet) or a \
                 recipe (.toml)",
            ),
            false => error,
        }),
    }
}

fn data_file(path: &Path) -> Result<Data> {
    let rows = data::read(path, None)?;
    let (mut format, mut turns) = ("", None);
    for row in &rows {
        format = row.example.format().name();
        if let Example::Chat { messages, .. } = row.example.plain() {
            *turns.get_or_insert(0) += messages.len();
        }
    }
    let bytes = std::fs::metadata(path).map_err(|error| Error::read(path, &error))?.len();
    Ok(Data { path: path.to_owned(), format, examples: rows.len(), turns, bytes })
}

fn recipe(path: &Path) -> Result<RecipeFacts> {
    let plan = Recipe::load(path, &[])?.settings()?;
    let settings = serde_json::to_value(plan)
        .map_err(|error| Error::failed(path, format!("its settings cannot be shown: {error}")).because(error))?;
    Ok(RecipeFacts { path: path.to_owned(), settings })
}

fn base(path: &Path) -> Result<Base> {
    let base = BaseFiles::open(path)?;
    let config = base.config();
    let mut storage: BTreeMap<String, Storage> = BTreeMap::new();
    for tensor in config.tensors() {
        let Some(name) = base.storage_name(&tensor.hf) else { continue };
        let entry = storage.entry(name).or_default();
        entry.tensors += 1;
        entry.parameters += tensor.shape.iter().product::<usize>();
    }
    let (tokenizer, tokenizer_problem) = match tokenizer(&base) {
        Ok(tokenizer) => (tokenizer, None),
        Err(error) => (None, Some(error.to_string())),
    };
    Ok(Base {
        path: path.to_owned(),
        format: if base.is_gguf() { "gguf" } else { "huggingface" },
        architecture: config.family.class_name,
        parameters: config.parameters(),
        bytes: base.file_bytes(),
        storage,
        layers: config.layers,
        hidden_size: config.hidden_size,
        heads: config.heads,
        kv_heads: config.kv_heads,
        vocab_size: config.vocab_size,
        max_positions: config.max_positions,
        tied_head: config.tied_head,
        tokenizer,
        tokenizer_problem,
        passed_over: if config.vision.is_some() { BTreeMap::new() } else { base.passed_over() },
        sha256: base.content_hash()?,
    })
}

fn tokenizer(base: &BaseFiles) -> Result<Option<TokenizerFacts>> {
    let has_tokenizer = match base.gguf() {
        Some(gguf) => gguf.get("tokenizer.ggml.tokens").is_some(),
        None => base.path().join("tokenizer.json").is_file(),
    };
    if !has_tokenizer {
        return Ok(None);
    }
    let tokenizer = Tokenizer::of_base(base)?;
    let name = |id: u32| tokenizer.id_to_token(id).unwrap_or_else(|| id.to_string());
    Ok(Some(TokenizerFacts {
        vocab_size: tokenizer.vocab_size(),
        bos: tokenizer.bos().map(name),
        eos: tokenizer.eos_tokens().into_iter().map(name).collect(),
        chat_template: tokenizer.chat_template().is_some(),
    }))
}

fn adapter(path: &Path) -> Result<Adapter> {
    // Only the header is read: it can announce any number of values.
    // Without the base, a copy of its embedding cannot be distinguished from a trained one.
    let header = AdapterHeader::read(path, |_, _| true)?;
    let config = header.config();
    let mut targets = BTreeMap::new();
    for module in header.pairs.keys() {
        *targets.entry(short_name(module)).or_insert(0) += 1;
    }
    Ok(Adapter {
        path: path.to_owned(),
        rank: config.rank,
        alpha: config.alpha,
        dropout: config.dropout,
        rslora: config.rslora,
        dora: config.dora,
        base: config.base_name.clone(),
        parameters: header.parameters(),
        targets,
        notices: header.notices(None)?,
        provenance: header.metadata,
    })
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(base) => base.fmt(f),
            Self::Adapter(adapter) => adapter.fmt(f),
            Self::Data(data) => data.fmt(f),
            Self::Recipe(recipe) => recipe.fmt(f),
            Self::Run(run) => {
                writeln!(f, "{}", run.adapter)?;
                let lines = run.run.as_object().into_iter().flatten();
                let plain = lines.filter(|(_, value)| !value.is_object() && !value.is_array());
                let plain: Vec<(&str, String)> = plain.map(|(key, value)| (key.as_str(), text(value))).collect();
                table(f, &plain)
            }
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let turns = self.turns.map_or(String::new(), |turns| format!(", {}", counted(turns, "turn")));
        let lines = [
            ("data", self.path.display().to_string()),
            ("shape", self.format.to_owned()),
            ("examples", format!("{}{turns}", self.examples)),
            ("file", format!("{:.1} kB", self.bytes as f64 / 1e3)),
        ];
        table(f, &lines)?;
        write!(f, "\n`burnish check RECIPE` reports its trained parts and its length in tokens")
    }
}

impl fmt::Display for RecipeFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![("recipe".to_owned(), self.path.display().to_string())];
        for (section, settings) in self.settings.as_object().into_iter().flatten() {
            let settings = settings.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
            lines.extend(settings.map(|(key, value)| (format!("{section}.{key}"), text(value))));
        }
        let lines: Vec<(&str, String)> = lines.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
        table(f, &lines)?;
        write!(f, "\n`burnish check {}` checks it against its base and its data", self.path.display())
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storage = self.storage.iter().map(|(name, storage)| format!("{name} × {}", storage.tensors));
        let attention = if self.heads == self.kv_heads { "" } else { " (grouped)" };
        let mut lines = vec![
            ("base", self.path.display().to_string()),
            ("architecture", format!("{}, {}", self.architecture, self.format)),
            ("parameters", format!("{} ({})", self.parameters, in_millions(self.parameters))),
            ("files", format!("{:.1} MB", self.bytes as f64 / 1e6)),
            ("stored as", storage.collect::<Vec<_>>().join(", ")),
            ("layers", self.layers.to_string()),
            ("hidden size", self.hidden_size.to_string()),
            ("heads", format!("{} query, {} key/value{attention}", self.heads, self.kv_heads)),
            ("positions", self.max_positions.to_string()),
            ("vocabulary", format!("{}{}", self.vocab_size, if self.tied_head { ", head tied" } else { "" })),
        ];
        match &self.tokenizer {
            Some(tokenizer) => {
                let bos = tokenizer.bos.as_deref().unwrap_or("none");
                let tokens = format!("{} tokens, begin {bos}, end {}", tokenizer.vocab_size, tokenizer.eos.join(" "));
                lines.push(("tokenizer", tokens));
                lines.push(("chat template", if tokenizer.chat_template { "yes" } else { "none" }.to_owned()));
            }
            None => {
                let problem = self.tokenizer_problem.as_deref().map(|problem| problem.replace('\n', ";"));
                let found = problem.map_or_else(|| "none".to_owned(), |problem| format!("cannot be read: {problem}"));
                lines.push(("tokenizer", found));
            }
        }
        let parts = self.passed_over.iter().map(|(part, tensors)| format!("{part} × {tensors}"));
        let parts = parts.collect::<Vec<_>>().join(", ");
        if !parts.is_empty() {
            lines.push(("passed over", format!("{parts}; only the text decoder is used")));
        }
        lines.push(("sha256", self.sha256.clone()));
        table(f, &lines)
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let targets = self.targets.iter().map(|(target, count)| format!("{target} × {count}"));
        let scaling = if self.rslora { ", alpha / √rank" } else { "" };
        let mut lines = vec![
            ("adapter", self.path.display().to_string()),
            ("kind", if self.dora { "DoRA" } else { "LoRA" }.to_owned()),
            ("rank", self.rank.to_string()),
            ("alpha", format!("{}{scaling}", self.alpha)),
            ("dropout", self.dropout.to_string()),
            ("targets", targets.collect::<Vec<_>>().join(", ")),
            ("parameters", format!("{} ({})", self.parameters, in_millions(self.parameters))),
            ("base", self.base.clone().unwrap_or_else(|| "not named".to_owned())),
        ];
        lines.extend(self.notices.iter().map(|notice| ("notice", notice.clone())));
        lines.extend(self.provenance.iter().map(|(key, value)| (key.as_str(), value.clone())));
        table(f, &lines)
    }
}

fn in_millions(count: usize) -> String {
    match count {
        0..1_000_000 => format!("{:.1} k", count as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} B", count as f64 / 1e9),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Writes two columns. The last line ends without a line break.
fn table(f: &mut fmt::Formatter<'_>, lines: &[(&str, String)]) -> fmt::Result {
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (index, (name, value)) in lines.iter().enumerate() {
        let end = if index + 1 == lines.len() { "" } else { "\n" };
        write!(f, "{:width$}  {}{end}", printable(name), printable(value))?;
    }
    Ok(())
}
