//! The settings of the data: which files, which shape, how long.

use super::augment::Augment;
use super::bare::ControlTokens;
use super::canaries::Canaries;
use super::columns::Columns;
use super::example::Row;
use super::format::Format;
use super::paths::Paths;
use super::read::{DataSet, Shape};
use super::set::LongPolicy;
use crate::error::{Error, Place, Result};
use crate::settings::{Limit, OrAuto, above, any, between, not_empty, optional, section};

section! {
    /// The examples that the adapter is trained on.
    DataSettings {
        /// The training examples: a `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet` file, packed with gzip or zstd or not; a
        /// folder of such files, a pattern such as `data/*.jsonl`, or a list of these. A path is relative to the current folder.
        train: Paths = Take(Paths::default()), not_empty();
        /// The validation examples: files, folders and patterns of the same kinds.
        valid: Option<Paths> = Take(None), optional(not_empty());
        /// Instead of `valid`: this share of the training examples is held out, chosen by the seed. Examples with the same
        /// prompt stay together.
        valid_fraction: Option<f64> = Take(None), optional(Limit::new("above 0, below 1", |share| *share > 0.0 && *share < 1.0));
        /// The column whose value decides which examples `valid_fraction` keeps together, in the place of the prompt: the
        /// name of a document, a user or a conversation.
        group: Option<String> = Take(None), optional(not_empty());
        /// The test examples: base and adapter are measured on them once, at the end. Nothing is chosen by them, unlike by the
        /// validation examples, which choose the best adapter.
        test: Option<Paths> = Take(None), optional(not_empty());
        /// The shape of the examples; `auto` looks at the first of each file.
        format: OrAuto<Format> = Take(OrAuto::Auto), any();
        /// Under `train.objective = "classify"`: the labels in the order of their numbers. By default those of the training and validation
        /// examples, sorted.
        labels: Option<Vec<String>> = Take(None), optional(labels());
        /// The chat template in place of the base's: `chatml`, `llama2`, `llama3`, `mistral`, `gemma`, `phi3`, `qwen`, `zephyr`,
        /// `vicuna` or a file. It is saved with the adapter.
        template: Option<String> = Take(None), optional(not_empty());
        /// The reading of control tokens that rows without a chat template spell: as text, or as control tokens where the rows
        /// were rendered beforehand.
        control_tokens: ControlTokens = Take(ControlTokens::Text), any();
        /// The longest sequence, in tokens.
        max_seq_tokens: usize = Take(512), between(2..=1 << 24);
        /// The treatment of an example longer than `max_seq_tokens`.
        overlong: LongPolicy = Take(LongPolicy::Drop), any();
        /// Fill micro-batches by best fit up to `micro_batch_seqs` × `max_seq_tokens` tokens instead of counting sequences;
        /// attention never crosses from one example to the next.
        packing: bool = Take(false), any();
        /// Changes of the prompts of the training examples.
        augment: Option<Augment> = Take(None), any();
        /// General examples that are mixed in.
        rehearsal: Option<Rehearsal> = Take(None), any();
        /// The keys of the shapes, each with the key or column of the data file that has its place.
        columns: Columns = ReadEmpty, any();
        /// Training examples beside those of `train`, each with a weight of its own.
        sources: Vec<DataSource> = Take(Vec::new()), any();
        /// Made-up secrets among the training examples, to measure what the adapter remembers.
        canaries: Option<Canaries> = Take(None), any();
    }
}

/// Different texts, two or more, none of them empty.
fn labels() -> Limit<Vec<String>> {
    Limit::new("two or more different texts that are not empty", |labels: &Vec<String>| {
        let is_new = |(index, label): (usize, &String)| !label.trim().is_empty() && !labels[..index].contains(label);
        labels.len() > 1 && labels.iter().enumerate().all(is_new)
    })
}

section! {
    /// Training examples with a weight.
    DataSource {
        /// The files, as in `train`.
        path: Paths = Refuse, not_empty();
        /// How often an epoch shows each example: 2 is twice, 0.25 a quarter of the examples, drawn anew for every epoch by
        /// the seed. Validation examples held out by `valid_fraction` count once.
        weight: f64 = Take(1.0), above(0.0, 1000.0);
        /// The shape of the examples; `auto` looks at the first of each file.
        format: OrAuto<Format> = Take(OrAuto::Auto), any();
        /// The keys of the shapes in these files; without any, those of `[data.columns]`.
        columns: Columns = ReadEmpty, any();
    }
}

section! {
    /// General examples, conversations for instance, that are mixed into the training so that the adapter keeps what the base can.
    Rehearsal {
        /// The files, as in `train`.
        path: Paths = Refuse, not_empty();
        /// The share of an epoch's examples that come from these files, drawn anew for every epoch by the seed.
        share: f64 = Take(0.1), Limit::new("above 0, below 1", |share| *share > 0.0 && *share < 1.0);
        /// The shape of the examples; `auto` looks at the first of each file.
        format: OrAuto<Format> = Take(OrAuto::Auto), any();
    }
}

impl DataSettings {
    /// Reads the training examples: those of `train`, then those of each source.
    ///
    /// # Errors
    /// Input: no examples are named; every bad row, equal problems together.
    pub fn read_train(&self) -> Result<DataSet> {
        let mut parts = Vec::new();
        if self.train != Paths::default() {
            parts.push(DataSet::read(&self.train, &Shape { group: self.group.clone(), ..self.shape() }));
        }
        parts.extend(self.sources.iter().map(|source| {
            let columns = if source.columns == Columns::unmapped() { &self.columns } else { &source.columns };
            let shape = Shape { format: source.format.given(), columns: columns.clone(), group: self.group.clone() };
            DataSet::read(&source.path, &shape).map(|set| set.with_weight(source.weight))
        }));
        if parts.is_empty() {
            return Err(Error::input(Place::setting("data.train"), "is missing"));
        }
        DataSet::join(parts)
    }

    /// The names of the training files, for messages.
    pub fn train_names(&self) -> String {
        self.train_paths().map(Paths::to_string).collect::<Vec<_>>().join(", ")
    }

    fn train_paths(&self) -> impl Iterator<Item = &Paths> {
        let sources = self.sources.iter().map(|source| &source.path);
        std::iter::once(&self.train).filter(|train| **train != Paths::default()).chain(sources)
    }

    /// The files in folders of training and validation examples that are not read, in words.
    pub fn passed_over(&self) -> Option<String> {
        let paths = self.train_paths().chain(&self.valid).flat_map(Paths::passed_over);
        let names: Vec<String> = paths.map(|path| path.display().to_string()).collect();
        (!names.is_empty()).then(|| format!("not read, by their endings no data files: {}", names.join(", ")))
    }

    /// Reads the validation examples; `None` where the recipe names none.
    ///
    /// # Errors
    /// Those of [`Self::read_train`].
    pub fn read_valid(&self) -> Result<Option<DataSet>> {
        self.valid.as_ref().map(|paths| DataSet::read(paths, &self.shape())).transpose()
    }

    /// Reads the examples of rehearsal, with the weights that make them the share of an epoch beside the training examples
    /// `own`; `None` where the recipe names none.
    ///
    /// # Errors
    /// Input: every bad row, equal problems together; no row at all.
    pub fn read_rehearsal(&self, own: &[Row]) -> Result<Option<DataSet>> {
        let Some(Rehearsal { path, share, format }) = &self.rehearsal else { return Ok(None) };
        let set = DataSet::read(path, &Shape { format: format.given(), columns: Columns::unmapped(), group: None })?;
        if set.rows.is_empty() {
            return Err(Error::input(Place::setting("data.rehearsal.path"), format!("{path} has no examples")));
        }
        let own_weight: f64 = own.iter().map(|row| row.weight).sum();
        let weight = own_weight * share / (1.0 - share) / set.rows.len() as f64;
        Ok(Some(set.with_weight(weight)))
    }

    /// The form of the objects in files that have no settings of their own and are not split into groups.
    pub fn shape(&self) -> Shape {
        Shape { format: self.format.given(), columns: self.columns.clone(), group: None }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The defaults, over this file.
    pub(crate) fn over(train: &str, max_seq_tokens: usize) -> DataSettings {
        DataSettings { train: train.into(), max_seq_tokens, ..crate::settings::defaults() }
    }
}
