//! The recipe that an import writes: settings with the keys that they come from, and comments for all that has no equal.

use serde::Serialize;

use super::value::{Entry, Value, one_line};
use crate::recipe::Recipe;

/// The sections of a recipe, in the order in which they are written.
const SECTIONS: &[&str] =
    &["base", "data", "data.columns", "adapter", "train", "train.early_stopping", "eval", "output", "sample"];
/// The settings that every recipe has, and what stands in their place where the configuration has none.
const REQUIRED: &[(&str, &str)] =
    &[("base.model", "MODEL"), ("data.train", "my.train.jsonl"), ("output.dir", "adapters/imported")];
/// Characters of a comment of one line.
const COMMENT_CHARACTERS: usize = 400;

/// A setting of the recipe.
#[derive(Debug, Clone)]
struct Setting {
    key: &'static str,
    value: toml::Value,
    /// The comment behind it: the key that it comes from.
    comment: String,
    /// The key, where one stands behind the setting.
    origin: Option<Entry>,
}

impl Setting {
    /// The section that it stands in.
    fn section(&self) -> &'static str {
        self.key.rsplit_once('.').map_or("", |(section, _)| section)
    }
}

/// A key that has no equal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LeftOut {
    /// The key.
    pub key: String,
    /// Its line.
    pub line: usize,
    /// Its value, shortened.
    pub value: String,
    /// The reason.
    pub reason: String,
}

/// A source of training examples.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The file.
    pub(super) path: String,
    /// The key that it comes from.
    pub(super) entry: Entry,
    /// A remark on the file.
    pub(super) remark: String,
    /// The shape of the examples.
    pub(super) format: Option<&'static str>,
    /// Keys of the shape, with the entries that name the columns in their place.
    pub(super) columns: Vec<(&'static str, Entry)>,
}

/// A recipe under construction.
#[derive(Debug)]
pub(super) struct Draft<'c> {
    configuration: &'c [Entry],
    settings: Vec<Setting>,
    sources: Vec<Source>,
    left_out: Vec<LeftOut>,
}

/// A finished recipe.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Written {
    pub(super) text: String,
    pub(super) carried_over: usize,
    pub(super) left_out: Vec<LeftOut>,
}

impl<'c> Draft<'c> {
    pub(super) fn new(configuration: &'c [Entry]) -> Self {
        Self { configuration, settings: Vec::new(), sources: Vec::new(), left_out: Vec::new() }
    }

    /// The value of another key of the configuration, by its name with the sections before it or without.
    pub(super) fn value_of(&self, key: &str) -> Option<&'c Value> {
        fn find<'c>(entries: &'c [Entry], key: &str) -> Option<&'c Value> {
            let whole = entries.iter().find(|entry| entry.key == key || entry.name() == key);
            let in_section = |entry: &'c Entry| {
                find(entry.value.entries(), key.strip_prefix(&format!("{}.", entry.key)).unwrap_or(key))
            };
            whole.map(|entry| &entry.value).or_else(|| entries.iter().find_map(in_section))
        }
        find(self.configuration, key)
    }

    /// Whether the recipe has a value for the setting.
    pub(super) fn has(&self, key: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key)
    }

    /// Whether the recipe has this word for the setting.
    pub(super) fn is(&self, key: &str, word: &str) -> bool {
        self.settings.iter().any(|setting| setting.key == key && setting.value.as_str() == Some(word))
    }

    /// Takes a setting from a key.
    pub(super) fn set(&mut self, key: &'static str, value: impl Into<toml::Value>, entry: &Entry) {
        self.set_with(key, value, entry, "");
    }

    /// Takes a setting from a key, with a remark. The first key of several that mean one setting counts.
    pub(super) fn set_with(&mut self, key: &'static str, value: impl Into<toml::Value>, entry: &Entry, remark: &str) {
        let value = value.into();
        if let Some(first) = self.settings.iter().find(|setting| setting.key == key) {
            let origin = first.origin.as_ref().map_or("another key", |origin| &origin.key);
            let reason = match first.value == value {
                true => format!("says the same as {origin}"),
                false => format!("`{key}` follows from {origin}"),
            };
            return self.leave_out(entry, reason);
        }
        self.settings.push(Setting { key, value, comment: commented(entry, remark), origin: Some(entry.clone()) });
    }

    /// Gives a setting the value that the other program takes where its configuration says nothing.
    pub(super) fn default(&mut self, key: &'static str, value: impl Into<toml::Value>, remark: &str) {
        if !self.has(key) {
            self.settings.push(Setting { key, value: value.into(), comment: remark.to_owned(), origin: None });
        }
    }

    /// Takes training examples from a key.
    pub(super) fn add_source(&mut self, source: Source) {
        self.sources.push(source);
    }

    /// Whether the recipe has training examples.
    pub(super) fn has_sources(&self) -> bool {
        !self.sources.is_empty()
    }

    /// Names a key that has no equal, and why.
    pub(super) fn leave_out(&mut self, entry: &Entry, reason: impl Into<String>) {
        let (key, value) = (one_line(&entry.key, COMMENT_CHARACTERS), entry.value.to_string());
        self.left_out.push(LeftOut { key, line: entry.line, value, reason: reason.into() });
    }

    /// The recipe as text. A setting that the reader of recipes does not take is left out, with the reader's own words.
    pub(super) fn finish(mut self, head: &str) -> Written {
        self.place_sources();
        // A setting may need others: early stopping the validation examples, most of [train] the objective.
        let mut settings = std::mem::take(&mut self.settings);
        let section = |setting: &Setting| SECTIONS.iter().position(|section| *section == setting.section());
        settings.sort_by_key(|setting| (setting.key != "train.objective", section(setting)));
        // A whole recipe, to which one setting after another is added.
        let is_needed = |key: &str| key != "data.train" || self.sources.is_empty();
        for (key, value) in REQUIRED.iter().filter(|(key, _)| is_needed(key)) {
            let comment = "the configuration names none: put yours here".to_owned();
            self.settings.push(Setting { key, value: toml::Value::from(*value), comment, origin: None });
        }
        for setting in settings {
            let (before, key, origin) = (self.settings.clone(), setting.key, setting.origin.clone());
            self.settings.retain(|other| other.key != key);
            self.settings.push(setting);
            let Some(message) = self.problem() else { continue };
            self.settings = before;
            if let Some(entry) = origin {
                self.leave_out(&entry, format!("no value for `{key}`: {message}"));
            }
        }
        let mut text = format!("{head}\n{}", self.sections());
        if !self.left_out.is_empty() {
            text += "\n# Keys without an equal here:\n";
            for LeftOut { key, line, value, reason } in &self.left_out {
                text += &format!("# {key} = {value} (line {line}): {}\n", one_line(reason, COMMENT_CHARACTERS));
            }
        }
        let carried_over = self.settings.iter().filter(|setting| setting.origin.is_some()).count() + self.sources.len();
        Written { text, carried_over, left_out: self.left_out }
    }

    /// The first thing that the reader of recipes has against the recipe as it is.
    fn problem(&self) -> Option<String> {
        let read = Recipe::parse(&self.sections(), "", &[]).and_then(|recipe| recipe.settings());
        Some(read.err()?.problems().first()?.message.clone())
    }

    /// One source is `data.train`; several are sections of their own.
    fn place_sources(&mut self) {
        let [source] = &self.sources[..] else { return };
        let Source { path, entry, remark, format, columns } = source.clone();
        self.set_with("data.train", path, &entry, &remark);
        if let Some(format) = format {
            self.default("data.format", format, "the type of the dataset");
        }
        for (name, entry) in columns {
            // The names of columns are few, and known.
            let key = COLUMNS.iter().find(|key| key.ends_with(&format!(".{name}")));
            if let (Some(key), Some(column)) = (key, entry.value.text()) {
                self.set(key, column, &entry);
            }
        }
        self.sources.clear();
    }

    fn sections(&self) -> String {
        let mut text = String::new();
        for section in SECTIONS {
            let settings = self.settings.iter().filter(|setting| setting.section() == *section);
            let settings: Vec<&Setting> = settings.collect();
            if !settings.is_empty() {
                text += &format!("\n[{section}]\n");
            }
            for Setting { key, value, comment, .. } in settings {
                let name = key.rsplit('.').next().unwrap_or_default();
                let line = format!("{name} = {value}");
                text += &format!("{line:<32}  # {}\n", one_line(comment, COMMENT_CHARACTERS));
            }
            if *section == "data.columns" {
                text += &self.several_sources();
            }
        }
        text
    }

    fn several_sources(&self) -> String {
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let mut text = String::new();
        for Source { path, entry, remark, format, columns } in &self.sources {
            let comment = one_line(&commented(entry, remark), COMMENT_CHARACTERS);
            text += &format!("\n[[data.sources]]\npath = {}  # {comment}\n", quoted(path));
            if let Some(format) = format {
                text += &format!("format = {}\n", quoted(format));
            }
            if !columns.is_empty() {
                let pair = |(name, entry): &(&str, Entry)| {
                    format!("{name} = {}", quoted(entry.value.text().unwrap_or_default()))
                };
                let (pairs, keys): (Vec<String>, Vec<&str>) =
                    columns.iter().map(|column| (pair(column), column.1.key.as_str())).unzip();
                let keys = one_line(&keys.join(", "), COMMENT_CHARACTERS);
                text += &format!("columns = {{ {} }}  # {keys}\n", pairs.join(", "));
            }
        }
        text
    }
}

/// The comment behind a setting: its key, and a remark where there is one.
fn commented(entry: &Entry, remark: &str) -> String {
    if remark.is_empty() { entry.key.clone() } else { format!("{}: {remark}", entry.key) }
}

/// The settings that name columns.
const COLUMNS: &[&str] = &[
    "data.columns.prompt",
    "data.columns.completion",
    "data.columns.instruction",
    "data.columns.input",
    "data.columns.output",
    "data.columns.history",
    "data.columns.messages",
    "data.columns.system",
    "data.columns.tools",
    "data.columns.text",
    "data.columns.chosen",
    "data.columns.rejected",
    "data.columns.label",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: Value) -> Entry {
        Entry { key: key.into(), line: 3, value }
    }

    #[test]
    fn a_setting_that_the_reader_refuses_is_named_with_its_words() {
        let mut draft = Draft::new(&[]);
        draft.set("base.model", "hf:a/b", &entry("model", Value::Null));
        draft.set("train.epochs", 0.5, &entry("num_epochs", Value::Float(0.5)));
        draft.set("adapter.rank", 16, &entry("r", Value::Integer(16)));
        draft.set("adapter.rank", 8, &entry("rank", Value::Integer(8)));
        let written = draft.finish("# head");
        assert!(Recipe::parse(&written.text, "", &[]).and_then(|recipe| recipe.settings()).is_ok(), "{}", written.text);
        assert!(written.text.starts_with("# head\n\n[base]\nmodel = \"hf:a/b\""), "{}", written.text);
        assert!(
            written.text.contains("rank = 16") && written.text.contains("the configuration names none"),
            "{}",
            written.text
        );
        let [rank, epochs] = &written.left_out[..] else { panic!("{:?}", written.left_out) };
        assert_eq!((rank.key.as_str(), rank.reason.as_str()), ("rank", "`adapter.rank` follows from r"));
        assert!(epochs.key == "num_epochs" && epochs.reason.starts_with("no value for `train.epochs`: "), "{epochs:?}");
        assert_eq!(written.carried_over, 2);
    }

    #[test]
    fn several_sources_have_sections_of_their_own() {
        let mut draft = Draft::new(&[]);
        let source = |path: &str| Source {
            path: path.into(),
            entry: entry("datasets[0].path", Value::Text(path.into())),
            remark: String::new(),
            format: Some("chat"),
            columns: vec![("messages", entry("field_messages", Value::Text("turns".into())))],
        };
        draft.add_source(source("a.jsonl"));
        draft.add_source(source("b\".jsonl"));
        let text = draft.finish("#").text;
        let plan = Recipe::parse(&text, "", &[]).and_then(|recipe| recipe.settings()).expect("a recipe");
        assert_eq!(plan.data.sources.len(), 2, "{text}");
    }

    #[test]
    fn texts_of_the_configuration_stay_in_their_places() {
        let mut draft = Draft::new(&[]);
        let evil = "x\"\n[train]\nepochs = 9\n#";
        draft.set("base.model", format!("hf:{evil}"), &entry(evil, Value::Text(evil.into())));
        draft.leave_out(&entry(evil, Value::Text(evil.into())), evil);
        let text = draft.finish("#").text;
        assert!(!text.contains("\nepochs = 9"), "{text}");
        assert!(Recipe::parse(&text, "", &[]).and_then(|recipe| recipe.settings()).is_ok(), "{text}");
    }
}
