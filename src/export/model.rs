//! A whole model as GGUF: the plan of every tensor, and its writing.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use super::importance::Importance;
use super::lora::check_language_model_alone;
use super::types::GgufType;
use super::{check, pieces};
use crate::adapter::host::HostAdapter;
use crate::adapter::merge::{Change, Changes, MergeBase, Source};
use crate::error::{Error, Place, Result};
use crate::files::gguf::split;
use crate::files::gguf::write::{TensorDigest, write};
use crate::files::gguf::{TensorInfo, Value};
use crate::files::staging::Staging;
use crate::files::{Dtype, FloatType};
use crate::model::BaseFiles;
use crate::model::config::GgufHead;
use crate::model::spec::{GgufRows, TensorSpec};
use crate::text::Tokenizer;

/// The version of the block formats (ggml `GGML_QNT_VERSION`).
const QUANTIZATION_VERSION: u32 = 2;

/// The options of an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportOptions {
    /// The weights that the adapter is added to.
    pub weights: MergeBase,
    /// The type of the file. `None`: each tensor as the base has it, and f32 for what bitsandbytes packed.
    pub gguf_type: Option<GgufType>,
    /// The model is split into files of this size; a tensor above it gets a file of its own. `None`: one file.
    pub split_bytes: Option<u64>,
}

/// The files that were written, and the outcome of the comparison after it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ExportReport {
    /// The files' names, in order.
    pub files: Vec<String>,
    /// Tensors written; every one was read again and compared.
    pub tensors: usize,
    /// Number of tensors of each format.
    pub formats: BTreeMap<&'static str, usize>,
    /// Size of all tensors.
    pub bytes: u64,
    /// Modules that the adapter changes.
    pub modules: usize,
    /// The head shared the embedding's matrix, and has its own now: the adapter changes it.
    pub untied_head: bool,
    /// Remarks on what the consumer does otherwise, a sentence each.
    pub notices: Vec<String>,
}

/// A tensor of the new file.
#[derive(Debug)]
pub(super) struct Planned<'a> {
    pub info: TensorInfo,
    pub content: Content<'a>,
}

/// The source of a tensor's values.
#[derive(Debug)]
pub(super) enum Content<'a> {
    /// Known since planning.
    Values(Vec<f32>),
    /// The tensor of the same name in the base's own GGUF file, byte for byte.
    Stored,
    /// Rows of a tensor of the base by its Hugging Face name.
    Rows {
        source: String,
        rows: Rows,
        change: Change<'a>,
        /// Added to every value.
        offset: f32,
    },
}

/// Rows of a tensor in GGUF's order: `range` of all of them.
#[derive(Debug, Clone)]
pub(super) struct Rows {
    pub order: GgufRows,
    pub range: Range<usize>,
}

/// A model as it will be written.
#[derive(Debug)]
pub struct ModelPlan<'a> {
    source: Source<'a>,
    pub(super) metadata: Vec<(String, Value)>,
    pub(super) tensors: Vec<Planned<'a>>,
    split_bytes: Option<u64>,
    importance: Option<&'a Importance>,
    report: ExportReport,
}

impl<'a> ModelPlan<'a> {
    /// Plans the model that `base` becomes with `adapter`; `name` is its name in the file.
    ///
    /// # Errors
    /// Input: everything about model or tokenizer that GGUF cannot express; a row that does not divide.
    pub fn new(
        base: &'a BaseFiles,
        adapter: Option<&'a HostAdapter>,
        tokenizer: &Tokenizer,
        name: &str,
        options: &ExportOptions,
    ) -> Result<Self> {
        let source = Source { base, weights: options.weights };
        let (tensors, untied_head) = plan_tensors(base, adapter, options)?;
        let described = base.config().to_gguf().map_err(|error| {
            error.within(Place::file(base.path())).hint("a Hugging Face folder holds any of these models")
        })?;
        let mut tensors = tensors;
        if !base.is_gguf() {
            tensors.extend(described.tensors.iter().map(|(name, values)| Planned {
                info: TensorInfo { name: name.clone(), dtype: Dtype::F32, shape: vec![values.len()] },
                content: Content::Values(values.clone()),
            }));
        }
        let mut notices = Vec::new();
        let mut metadata = general(base, name, options.gguf_type, &tensors);
        let own_vocabulary = base.gguf().filter(|gguf| gguf.place() == tokenizer.place());
        match base.gguf() {
            None => drop(metadata.splice(0..0, described.metadata)),
            Some(gguf) => {
                let carried = gguf.metadata().iter().filter(|(key, _)| {
                    let is_set = metadata.iter().any(|(set, _)| set == *key);
                    !is_set && (own_vocabulary.is_some() || !key.starts_with("tokenizer."))
                });
                let size = format!("{}.vocab_size", base.config().family.gguf);
                let own = |key: &str, value: &Value| match key == size {
                    true => Value::U32(base.config().vocab_size as u32),
                    false => value.clone(),
                };
                let carried: Vec<_> = carried.map(|(key, value)| (key.clone(), own(key, value))).collect();
                metadata.extend(carried);
            }
        }
        if own_vocabulary.is_none() {
            let vocabulary = tokenizer.to_gguf(base.config().vocab_size)?;
            metadata.extend(vocabulary.metadata);
            notices.extend(vocabulary.notices);
        }
        notices.extend(check::window_notice(base.config()));
        let mut report = ExportReport {
            tensors: tensors.len(),
            modules: adapter.map_or(0, HostAdapter::modules),
            untied_head,
            notices,
            ..ExportReport::default()
        };
        for Planned { info, .. } in &tensors {
            *report.formats.entry(info.dtype.name()).or_insert(0) += 1;
            report.bytes += info.bytes()?;
        }
        let plan = Self { source, metadata, tensors, split_bytes: options.split_bytes, importance: None, report };
        check::comes_out_the_same(&plan, base)?;
        Ok(plan)
    }

    /// The same plan, whose blocks weigh their errors by the importance of the columns.
    pub fn weighted(self, importance: Option<&'a Importance>) -> Self {
        Self { importance, ..self }
    }

    /// The tensors' names, formats and shapes.
    pub(super) fn infos(&self) -> Vec<TensorInfo> {
        self.tensors.iter().map(|planned| planned.info.clone()).collect()
    }

    /// Writes the file, or files, that would be `out` beside it, under names that start so; reads them again and compares. They
    /// get their names once `examine`, which gets the path of the first, is content.
    ///
    /// # Errors
    /// Input: something lies there. Failed: a full disk, a value that the type cannot hold, a file that reads back as
    /// something else. After any of them nothing is there.
    pub fn write(self, out: &Path, examine: impl FnOnce(&Path) -> Result<()>) -> Result<ExportReport> {
        let counts = self.counts()?;
        let outs: Vec<_> = (0..counts.len()).map(|number| split::file_path(out, number, counts.len())).collect();
        Error::none_of(outs.iter().filter_map(|path| Staging::check_free(path).err()).collect(), ())?;
        let staging = Staging::beside(out)?;
        let report = self.write_into(staging.path(), out, examine)?;
        staging.publish_files(&outs)?;
        Ok(report)
    }

    fn counts(&self) -> Result<Vec<usize>> {
        match self.split_bytes {
            Some(max_bytes) => split::plan(&self.infos(), max_bytes),
            None => Ok(vec![self.tensors.len()]),
        }
    }

    /// Writes into `folder` under the file name of `out`; reads again and compares; `examine` gets the path of the first file.
    ///
    /// # Errors
    /// Those of [`Self::write`].
    pub fn write_into(
        mut self,
        folder: &Path,
        out: &Path,
        examine: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<ExportReport> {
        let counts = self.counts()?;
        let name = out.file_name().ok_or_else(|| Error::input(out.display(), "does not name a file to write"))?;
        let path = |number| split::file_path(&folder.join(name), number, counts.len());
        let infos = self.infos();
        let mut digests: Vec<TensorDigest> = Vec::with_capacity(infos.len());
        for (number, count) in counts.iter().enumerate() {
            let begin = digests.len();
            let part = infos.get(begin..begin + count).unwrap_or_default();
            let mut metadata = if number == 0 { self.metadata.clone() } else { Vec::new() };
            if counts.len() > 1 {
                metadata.extend(split::metadata(number, counts.len(), infos.len()));
            }
            let mut planned = self.tensors.iter().skip(begin);
            digests.extend(write(&path(number), &metadata, part, |info, writer| match planned.next() {
                Some(planned) => pieces::write(&self.source, planned, self.importance, writer),
                None => Err(Error::failed(&info.name, "was not planned")),
            })?);
        }
        check::reads_back(&path(0), &self.metadata, &infos, &digests)?;
        examine(&path(0))?;
        let file_name = |number| path(number).file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.report.files = (0..counts.len()).map(file_name).collect();
        Ok(self.report)
    }
}

/// The keys of every model.
fn general(base: &BaseFiles, name: &str, gguf_type: Option<GgufType>, tensors: &[Planned<'_>]) -> Vec<(String, Value)> {
    let mut metadata = Vec::new();
    let mut add = |key: &str, value: Value| metadata.push((key.to_owned(), value));
    let text = |text: &str| Value::String(text.to_owned());
    let has = |key: &str| base.gguf().is_some_and(|gguf| gguf.get(key).is_some());
    if !base.is_gguf() {
        add("general.type", text("model"));
        add("general.name", text(name));
    }
    let stored = gguf_type.or_else(|| type_of_matrices(tensors)).map(GgufType::file_type);
    if let Some(file_type) = stored.filter(|_| gguf_type.is_some() || !has("general.file_type")) {
        add("general.file_type", Value::U32(file_type));
    }
    add("general.quantization_version", Value::U32(QUANTIZATION_VERSION));
    metadata
}

/// The type of a file whose type was not asked for: that of its largest matrix of floats.
fn type_of_matrices(tensors: &[Planned<'_>]) -> Option<GgufType> {
    let matrices = tensors.iter().filter(|planned| planned.info.shape.len() > 1);
    let largest = matrices.max_by_key(|planned| planned.info.shape.iter().product::<usize>())?;
    match largest.info.dtype {
        Dtype::F32 => Some(GgufType::F32),
        Dtype::F16 => Some(GgufType::F16),
        Dtype::Bf16 => Some(GgufType::Bf16),
        _ => None,
    }
}

/// Plans every tensor, and makes sure that every pair of the adapter is used exactly once. Returns whether the head of a
/// tied model gets a matrix of its own because of the adapter.
fn plan_tensors<'a>(
    base: &'a BaseFiles,
    adapter: Option<&'a HostAdapter>,
    options: &ExportOptions,
) -> Result<(Vec<Planned<'a>>, bool)> {
    let config = base.config();
    let head = config.head();
    adapter.map_or(Ok(()), |adapter| {
        Error::both(adapter.check_gives_text("adapter"), check_language_model_alone(config, adapter)).map(drop)
    })?;
    let mut changes = Changes::of(adapter);
    let mut specs: Vec<(TensorSpec, String)> =
        config.tensors().into_iter().map(|spec| (spec.clone(), spec.hf)).collect();
    let untied_head = adapter.is_some_and(|adapter| adapter.unties_head(config));
    if config.tied_head && (untied_head || config.family.gguf_head == GgufHead::Always) {
        specs.extend(head.tensors(false).map(|spec| (spec, config.embedding_name())));
    }
    let has_head = specs.iter().any(|(spec, _)| spec.gguf == "output.weight");
    if !base.is_gguf() || untied_head {
        check::check_tensors(config, has_head)?;
    }
    let mut tensors = Vec::new();
    for (spec, source) in &specs {
        tensors.extend(plan_one(base, spec, source, changes.take(&spec.hf), options, has_head)?);
    }
    changes.finish()?;
    // Frequency factors, which are a part of the configuration elsewhere.
    let planned: Vec<String> = tensors.iter().map(|planned: &Planned<'_>| planned.info.name.clone()).collect();
    if let Some(gguf) = base.gguf() {
        for name in gguf.names().filter(|name| !planned.iter().any(|planned| planned == name)) {
            let (Some(dtype), Some(shape)) = (gguf.dtype(name), gguf.shape(name)) else { continue };
            let info = TensorInfo { name: name.to_owned(), dtype, shape: shape.to_vec() };
            tensors.push(Planned { info, content: Content::Stored });
        }
    }
    Ok((tensors, untied_head))
}

/// The one or two tensors that a tensor of the base becomes.
fn plan_one<'a>(
    base: &BaseFiles,
    spec: &TensorSpec,
    source: &str,
    change: Change<'a>,
    options: &ExportOptions,
    has_head: bool,
) -> Result<Vec<Planned<'a>>> {
    let rows = spec.shape.first().copied().unwrap_or(1);
    let parts = match spec.gguf_rows {
        GgufRows::GateApart => {
            vec![(spec.gguf.replace("ffn_up", "ffn_gate"), 0..rows / 2), (spec.gguf.clone(), rows / 2..rows)]
        }
        _ => vec![(spec.gguf.clone(), 0..rows)],
    };
    let stored = base.dtype(source).ok_or_else(|| Error::failed(source, "the base has no such tensor"))?;
    let mut planned = Vec::new();
    for (name, range) in parts {
        let mut shape = spec.shape.clone();
        shape.iter_mut().take(1).for_each(|rows| *rows = range.len());
        let dtype = match options.gguf_type {
            Some(gguf_type) => gguf_type
                .dtype(&name, &shape, base.config(), has_head)
                .map_err(|error| error.within(Place::file(base.path())))?,
            None => type_of(stored, &shape, base.is_gguf()),
        };
        let is_unchanged = matches!(change, Change::Nothing)
            && base.gguf().is_some_and(|gguf| gguf.dtype(&name) == Some(dtype) && gguf.shape(&name) == Some(&shape))
            && !(matches!(options.weights, MergeBase::Dequantized(_)) && spec.is_projection);
        let content = match is_unchanged {
            true => Content::Stored,
            false => Content::Rows {
                source: source.to_owned(),
                rows: Rows { order: spec.gguf_rows, range },
                change,
                offset: spec.gguf_offset,
            },
        };
        planned.push(Planned { info: TensorInfo { name, dtype, shape }, content });
    }
    Ok(planned)
}

/// The format of a tensor where none was asked for: that of a GGUF file's own tensor; of a folder's, the float of a
/// matrix and f32 for vectors.
fn type_of(stored: Dtype, shape: &[usize], is_gguf: bool) -> Dtype {
    match stored {
        stored if is_gguf => stored,
        Dtype::F16 if shape.len() > 1 => FloatType::F16.dtype(),
        Dtype::Bf16 if shape.len() > 1 => FloatType::Bf16.dtype(),
        _ => Dtype::F32,
    }
}
