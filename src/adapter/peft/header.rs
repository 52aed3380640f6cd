//! The header of an adapter folder: its configuration, and the pairs that its weights file lists, checked against each
//! other. No value is read.

use std::collections::BTreeMap;
use std::path::Path;

use super::config::PeftConfig;
use super::missing::{no_adapter, no_weights};
use super::renaming::Renaming;
use super::roles::{Role, refusals};
use super::{CLASSIFIER_MODULES, CONFIG_FILE, PREFIX, SEQ_CLS, WEIGHTS_FILE};
use super::{embedding, mlx, tokens};
use crate::adapter::base_modules::{check_sizes, check_whole, module_shapes};
use crate::adapter::host::SCORE;
use crate::error::{Error, Result};
use crate::files::safetensors::SafeTensorsFile;
use crate::files::{Dtype, RawTensor};
use crate::model::ModelConfig;

/// An adapter folder whose values have not been read yet.
pub struct AdapterHeader {
    pub(super) config: PeftConfig,
    /// The path of the weights file.
    pub(super) place: String,
    /// By module path as it stands in the file.
    pub pairs: BTreeMap<String, PairHeader>,
    /// The tensors that are trained as wholes, by name as it stands in the file.
    pub whole: BTreeMap<String, RawTensor>,
    /// The trained rows of some tokens, by module path as it stands in the file.
    pub rows: BTreeMap<String, RawTensor>,
    /// The head of labels, `[labels, width]`, where the adapter is a classifier.
    pub score: Option<RawTensor>,
    /// From the paths in the file to those of the base.
    pub(super) renaming: Renaming,
    /// `burnish.…` from the file of weights.
    pub metadata: BTreeMap<String, String>,
}

/// A pair whose shapes agree with each other and with the configuration.
pub struct PairHeader {
    /// `[rank, in]`.
    pub(super) a: RawTensor,
    /// `[out, rank]`.
    pub(super) b: RawTensor,
    pub(super) rank: usize,
    pub(super) input: usize,
    pub(super) output: usize,
    pub(super) scale: f32,
    /// Both factors are stored with rows and columns exchanged.
    pub(super) is_transposed: bool,
    /// `[out]`, where the configuration says that there are magnitudes.
    pub(super) magnitude: Option<RawTensor>,
}

/// Most entries without effect that are named; further ones are only counted.
const MAX_UNUSED: usize = 20;
/// Bytes of zeros that are read to find out whether a pair is zero; a header can promise any number of them.
const MAX_ZEROS_READ: usize = 1 << 30;

impl PairHeader {
    /// Values of both factors and of the magnitude.
    fn values(&self) -> usize {
        self.a.elements() + self.b.elements() + self.magnitude.as_ref().map_or(0, RawTensor::elements)
    }

    /// Whether the update is zero: a factor of only zeros, or a scale of zero, and no magnitude. Reading ends at the first other
    /// value, and after `budget` bytes, which then count as not zero.
    fn is_zero(&self, budget: &mut usize) -> bool {
        if self.magnitude.is_some() {
            return false;
        }
        self.scale == 0.0 || is_zero(&self.b, budget) || is_zero(&self.a, budget)
    }
}

/// Whether all values of a float tensor are zero, of either sign.
fn is_zero(tensor: &RawTensor, budget: &mut usize) -> bool {
    let width = if tensor.dtype == Dtype::F32 { 4 } else { 2 };
    let zeros = tensor.bytes.chunks_exact(width).take(*budget / width);
    let zeros = zeros.take_while(|value| {
        value.split_last().is_some_and(|(last, rest)| last & 0x7f == 0 && rest.iter().all(|byte| *byte == 0))
    });
    let zeros = zeros.count() * width;
    *budget -= zeros;
    zeros == tensor.bytes.len()
}

impl AdapterHeader {
    /// Reads the configuration of the adapter folder `dir` and the header of its weights. Tensors named like the embedding
    /// or the head are refused, unless `is_copy` says that they are the base's own.
    ///
    /// # Errors
    /// Those of [`HostAdapter::load`](crate::adapter::host::HostAdapter::load), except numbers that are not finite.
    pub fn read(dir: &Path, is_copy: impl Fn(&str, &RawTensor) -> bool) -> Result<Self> {
        if let Some(error) = no_adapter(dir) {
            return Err(error);
        }
        if mlx::is_mlx(dir) {
            return mlx::read(dir);
        }
        let path = dir.join(WEIGHTS_FILE);
        let place = path.display().to_string();
        let (config, weights) = (PeftConfig::read(dir), no_weights(dir).map_or_else(|| read_weights(&path), Err));
        let known = config.as_ref().ok();
        let mut errors = weights.as_ref().map_or(Vec::new(), |(tensors, _)| refusals(&place, known, tensors, is_copy));
        let (config, (tensors, metadata)) = match Error::both(config, weights) {
            Ok(read) => read,
            Err(error) => {
                errors.insert(0, error.clone());
                return Err(Error::join(errors).unwrap_or(error));
            }
        };
        let (wholes, tensors): (BTreeMap<_, _>, BTreeMap<_, _>) =
            tensors.into_iter().partition(|(name, _)| Role::of(name).whole(&config).is_some());
        let whole = wholes.iter().filter_map(|(name, tensor)| Some((Role::of(name).whole(&config)?, tensor.clone())));
        let mut whole: BTreeMap<String, RawTensor> = whole.collect();
        errors.extend(whole.iter().filter_map(|(name, tensor)| float(&place, name, tensor).err()));
        let rows = tensors.iter().filter_map(|(name, tensor)| match Role::of(name) {
            Role::Rows(module) => Some((module.to_owned(), tensor.clone())),
            _ => None,
        });
        let rows: BTreeMap<String, RawTensor> = rows.collect();
        errors.extend(tokens::check(&place, &config, &rows));
        let pairs = pairs_of(&place, &config, tensors, &mut errors);
        if pairs.is_empty() && errors.is_empty() {
            errors.push(Error::input(&place, "holds no low-rank pair"));
        }
        let score = if config.is_classifier { whole.remove(&format!("{SCORE}.weight")) } else { None };
        match &score {
            Some(score) => errors.extend(matrix(&place, SCORE, score).err()),
            None if config.is_classifier => {
                let message =
                    format!("has no `{PREFIX}{SCORE}.weight`, and {CONFIG_FILE} says `task_type` = \"{SEQ_CLS}\"");
                errors.push(Error::input(&place, message));
            }
            None => {}
        }
        let metadata = metadata.into_iter().filter(|(key, _)| key.starts_with("burnish.")).collect();
        let renaming = Renaming::default();
        Error::none_of(errors, Self { config, place, pairs, whole, rows, score, renaming, metadata })
    }

    /// The configuration.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// Number of values.
    pub fn parameters(&self) -> usize {
        let pairs: usize = self.pairs.values().map(PairHeader::values).sum();
        pairs + self.whole.values().chain(self.rows.values()).chain(&self.score).map(RawTensor::elements).sum::<usize>()
    }

    /// Remarks for the user, a sentence each: pairs that change nothing, and entries of the configuration without effect.
    /// Entries of `target_modules` and `exclude_modules` are judged only with a `base`.
    ///
    /// # Errors
    /// A pattern of the configuration that takes too many steps.
    pub fn notices(&self, base: Option<&ModelConfig>) -> Result<Vec<String>> {
        let mut notices = Vec::new();
        let mut budget = MAX_ZEROS_READ;
        let zero: Vec<&str> = self
            .pairs
            .iter()
            .filter(|(_, pair)| pair.is_zero(&mut budget))
            .map(|(module, _)| module.as_str())
            .collect();
        match zero.split_first() {
            Some(_) if zero.len() == self.pairs.len() => {
                notices.push(format!("the adapter changes nothing: all of its {} low-rank pairs are zero", zero.len()));
            }
            Some((first, rest)) => notices.push(format!(
                "{} of {} low-rank pairs are zero and change nothing: {first}{}",
                zero.len(),
                self.pairs.len(),
                and_more(rest.len())
            )),
            None => {}
        }
        let adapted: Vec<&str> = self.pairs.keys().map(String::as_str).collect();
        let in_file = |module: String| self.renaming.in_file(&module);
        let modules = base.map(|base| module_shapes(base).into_keys().map(in_file).collect::<Vec<_>>());
        let whole = self.whole.keys().filter_map(|name| Some(name.rsplit_once('.')?.0));
        let whole: Vec<&str> = whole.chain(self.score.iter().flat_map(|_| CLASSIFIER_MODULES)).collect();
        let unused = self.config.unused_entries(&adapted, &whole, modules.as_deref())?;
        notices.extend(unused.iter().take(MAX_UNUSED).map(|entry| format!("{CONFIG_FILE}: {entry}")));
        if let Some(more @ 1..) = unused.len().checked_sub(MAX_UNUSED) {
            notices.push(format!("{CONFIG_FILE}: and {more} more entries without effect"));
        }
        Ok(notices)
    }

    /// Modules of `base` that the configuration targets and that have no pair here. Those of a tower count where the file has any: a list of
    /// names means the language model alone where that was trained by itself.
    pub(super) fn missing_pairs(&self, base: &ModelConfig) -> Result<Vec<String>> {
        let of_vision = |module: &str| base.vision.as_ref().is_some_and(|vision| vision.owns(module));
        let has_vision = self.pairs.keys().any(|path| of_vision(&self.renaming.in_base(path)));
        let mut missing = Vec::new();
        for module in module_shapes(base).into_keys().filter(|module| has_vision || !of_vision(module)) {
            let path = self.renaming.in_file(&module);
            if !self.pairs.contains_key(&path) && self.config.covers(&path)? {
                missing.push(path);
            }
        }
        Ok(missing)
    }

    pub(super) fn check_against(&self, base: &ModelConfig) -> Result<()> {
        let renamed = self.pairs.iter().map(|(path, pair)| (self.renaming.in_base(path), (pair.input, pair.output)));
        let renamed: Vec<_> = renamed.collect();
        let sizes = check_sizes(&self.place, renamed.iter().map(|(module, sizes)| (module.as_str(), *sizes)), base);
        let whole: Vec<_> =
            self.whole.iter().map(|(name, tensor)| (self.renaming.in_base(name), &tensor.shape)).collect();
        let shapes = whole.iter().map(|(name, shape)| (name.as_str(), &shape[..]));
        let score = match self.score.as_ref().map(|score| score.shape.as_slice()) {
            Some(&[labels, width]) if width != base.hidden_size => {
                let message =
                    format!("is a head of {labels} labels over {width} values; the base has {}", base.hidden_size);
                Err(Error::input(format_args!("{}: module {SCORE}", self.place), message))
            }
            _ => Ok(()),
        };
        Error::both(Error::both(sizes, check_whole(&self.place, shapes, base)), score).map(drop)
    }
}

/// Tensors and metadata of the weights' file.
type Weights = (BTreeMap<String, RawTensor>, BTreeMap<String, String>);

pub(super) fn read_weights(path: &Path) -> Result<Weights> {
    let file = SafeTensorsFile::open(path)?;
    let mut tensors = BTreeMap::new();
    let mut errors = Vec::new();
    for name in file.names() {
        match file.tensor(name) {
            Ok(tensor) => drop(tensors.insert(name.to_owned(), tensor)),
            Err(error) => errors.push(error),
        }
    }
    Error::none_of(errors, (tensors, file.metadata().clone()))
}

/// The two halves of a pair and its magnitude, as far as the file has them.
#[derive(Default)]
struct Halves {
    a: Option<RawTensor>,
    b: Option<RawTensor>,
    /// `lora_embedding_A` and `lora_embedding_B`.
    of_embedding: [Option<RawTensor>; 2],
    magnitude: Option<RawTensor>,
}

/// Sorts the tensors into pairs and checks every one but those that [`refusals`] names; what is wrong goes to `errors`.
fn pairs_of(
    place: &str,
    config: &PeftConfig,
    tensors: BTreeMap<String, RawTensor>,
    errors: &mut Vec<Error>,
) -> BTreeMap<String, PairHeader> {
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let mut copies: Vec<(String, RawTensor)> = Vec::new();
    errors.extend(mixed_dtypes(place, &tensors));
    for (name, tensor) in tensors {
        match Role::of(&name) {
            Role::A(module) => halves.entry(module.to_owned()).or_default().a = Some(tensor),
            Role::B(module) => halves.entry(module.to_owned()).or_default().b = Some(tensor),
            Role::EmbeddingA(module) => halves.entry(module.to_owned()).or_default().of_embedding[0] = Some(tensor),
            Role::EmbeddingB(module) => halves.entry(module.to_owned()).or_default().of_embedding[1] = Some(tensor),
            Role::Magnitude(module) => halves.entry(module.to_owned()).or_default().magnitude = Some(tensor),
            Role::BaseCopy(module) => copies.push((module.to_owned(), tensor)),
            Role::Refused(_) | Role::Whole(..) | Role::Rows(_) => {}
        }
    }
    let mut pairs = BTreeMap::new();
    let mut untargeted = Vec::new();
    for (module, halves) in halves {
        match config.covers(&module) {
            Ok(true) => {}
            Ok(false) => untargeted.push(module.clone()),
            Err(error) => {
                // A pattern that cannot be matched fails for every module alike.
                errors.push(error);
                return pairs;
            }
        }
        match pair_of(place, config, &module, halves) {
            Ok(pair) => drop(pairs.insert(module, pair)),
            Err(error) => errors.push(error),
        }
    }
    if let Some((first, rest)) = untargeted.split_first() {
        errors.push(Error::input(
            format_args!("{place}: module {first}{}", and_more(rest.len())),
            format!("is not among the targets in {CONFIG_FILE}, so that PEFT would not load it"),
        ));
    }
    errors.extend(misplaced_copies(place, &pairs, &copies));
    pairs
}

/// ` (and 3 more)`, or nothing.
pub(super) fn and_more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" (and {count} more)") }
}

/// PEFT writes all of an adapter in one dtype: several are a file pieced together.
fn mixed_dtypes(place: &str, tensors: &BTreeMap<String, RawTensor>) -> Option<Error> {
    let mut counts: Vec<(Dtype, usize)> = Vec::new();
    for (name, tensor) in tensors {
        if matches!(Role::of(name), Role::BaseCopy(_) | Role::Refused(_) | Role::Whole(..) | Role::Rows(_)) {
            continue;
        }
        match counts.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
            Some((_, count)) => *count += 1,
            None => counts.push((tensor.dtype, 1)),
        }
    }
    (counts.len() > 1).then(|| {
        let counts: Vec<String> = counts.iter().map(|(dtype, count)| format!("{count} in {dtype}")).collect();
        Error::input(place, format!("mixes dtypes ({}); expected one for all pairs", counts.join(", ")))
    })
}

/// Copies of the base's matrices that belong to no pair, or have another size than it.
fn misplaced_copies<'a>(
    place: &'a str,
    pairs: &'a BTreeMap<String, PairHeader>,
    copies: &'a [(String, RawTensor)],
) -> impl Iterator<Item = Error> + 'a {
    copies.iter().filter_map(move |(module, tensor)| {
        let expected = pairs.get(module).map(|pair| vec![pair.output, pair.input]);
        (expected.as_ref() != Some(&tensor.shape)).then(|| {
            Error::input(
                format_args!("{place}: tensor {PREFIX}{module}.base_layer.weight"),
                format!(
                    "is a copy of a base matrix of shape {:?}, and no pair of these sizes goes with it",
                    tensor.shape
                ),
            )
        })
    })
}

/// One pair, or everything that is wrong with it.
fn pair_of(place: &str, config: &PeftConfig, module: &str, halves: Halves) -> Result<PairHeader> {
    let place = format!("{place}: module {module}");
    let (a, b) = match (halves.a, halves.b, halves.of_embedding) {
        (Some(a), Some(b), [None, None]) => (a, b),
        (None, None, [Some(a), Some(b)]) if halves.magnitude.is_none() => {
            return embedding::pair_of(&place, config, module, a, b);
        }
        (None, None, [None, None]) => {
            return Err(Error::input(place, "has a magnitude and neither lora_A nor lora_B"));
        }
        (Some(_), None, [None, None]) => return Err(Error::input(place, "has lora_A and no lora_B")),
        (None, Some(_), [None, None]) => return Err(Error::input(place, "has lora_B and no lora_A")),
        (None, None, _) => {
            return Err(Error::input(place, "has not just both lora_embedding_A and lora_embedding_B"));
        }
        _ => return Err(Error::input(place, "has factors of a linear layer and of an embedding")),
    };
    let rank = config.rank_of(module)?;
    let ([a_rank, input], [output, b_rank]) = Error::both(matrix(&place, "lora_A", &a), matrix(&place, "lora_B", &b))?;
    let mut errors = Vec::new();
    if a_rank != rank {
        errors.push(other_rank(&place, "lora_A", "[rank, in]", [a_rank, input], rank));
    }
    if b_rank != rank {
        errors.push(other_rank(&place, "lora_B", "[out, rank]", [output, b_rank], rank));
    }
    errors.extend(
        [("lora_A", &a), ("lora_B", &b)].into_iter().filter_map(|(half, tensor)| float(&place, half, tensor).err()),
    );
    let magnitude = halves.magnitude;
    errors.extend(check_magnitude(&place, config.dora, magnitude.as_ref(), output));
    let scale = config.scale_of(module)? as f32;
    Error::none_of(errors, PairHeader { a, b, rank, input, output, scale, magnitude, is_transposed: false })
}

/// A magnitude that is missing, of no use, or of another size or type than the pair needs.
pub(super) fn check_magnitude(place: &str, dora: bool, magnitude: Option<&RawTensor>, output: usize) -> Option<Error> {
    const NAME: &str = "lora_magnitude_vector";
    match (magnitude, dora) {
        (None, false) => None,
        (None, true) => Some(Error::input(place, format!("has no {NAME}; {CONFIG_FILE} says `use_dora`"))),
        (Some(_), false) => {
            let message = format!("has a {NAME}, which PEFT does not load without `use_dora` in {CONFIG_FILE}");
            Some(Error::input(place, message))
        }
        (Some(tensor), true) if tensor.shape != [output] => {
            let message = format!("{NAME} has shape {:?}; expected [{output}], the rows of lora_B", tensor.shape);
            Some(Error::input(place, message))
        }
        (Some(tensor), true) => float(place, NAME, tensor).err(),
    }
}

/// A half whose shape does not have the rank that the configuration gives.
pub(super) fn other_rank(place: &str, half: &str, layout: &str, shape: [usize; 2], rank: usize) -> Error {
    let turned = if shape.contains(&rank) { "; is it transposed?" } else { "" };
    Error::input(
        place,
        format!("{half} has shape {shape:?}; expected {layout} with rank {rank} from {CONFIG_FILE}{turned}"),
    )
}

/// The two sizes of a matrix.
pub(super) fn matrix(place: &str, half: &str, tensor: &RawTensor) -> Result<[usize; 2]> {
    tensor
        .shape
        .as_slice()
        .try_into()
        .map_err(|_| Error::input(place, format!("{half} has shape {:?}; expected two dimensions", tensor.shape)))
}

/// Whether it is of a type of float.
pub(super) fn float(place: &str, half: &str, tensor: &RawTensor) -> Result<()> {
    match tensor.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Ok(()),
        other => Err(Error::input(place, format!("{half} is {other}; expected F32, F16 or BF16"))),
    }
}
