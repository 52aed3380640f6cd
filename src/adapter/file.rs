//! PEFT's adapter folder: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reading takes a LoRA folder of any PEFT version and refuses by name what cannot be applied (every problem at
//! once). Writing keeps to the keys that every PEFT since 0.6 knows.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::adapter::peft_config::{CONFIG_FILE, PeftConfig};
use crate::adapter::spec::Target;
use crate::error::{Error, Result};
use crate::files::safetensors::{self, SafeTensorsFile, TensorHeader};
use crate::files::{Bytes, Dtype, RawTensor, atomic, temporary};
use crate::quant::Quant;
use crate::model::{BaseFiles, ModelConfig, names};

/// The weights' file name in an adapter folder.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// What PEFT puts before every module path.
const PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";

/// Provenance keys in the metadata of the weights' file.
pub mod provenance {
    /// SHA-256 of the base model's files.
    pub const BASE_SHA256: &str = "burnish.base_sha256";
    /// How the base was held while training: `none`, `nf4`, …
    pub const QUANT: &str = "burnish.quant";
    /// SHA-256 of the training data.
    pub const DATA_SHA256: &str = "burnish.data_sha256";
    /// SHA-256 of the chat template.
    pub const TEMPLATE_SHA256: &str = "burnish.template_sha256";
    /// The run's seed.
    pub const SEED: &str = "burnish.seed";
    /// The version that wrote the file.
    pub const VERSION: &str = "burnish.version";
}

/// A low-rank pair on the host, in f32.
#[derive(Debug, Clone, PartialEq)]
pub struct HostPair {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    pub rank: usize,
    pub input: usize,
    pub output: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA; patterns already resolved.
    pub scale: f32,
}

impl HostPair {
    /// Whether there are as many values as the sizes say, and at least one.
    fn is_whole(&self) -> bool {
        !self.a.is_empty()
            && !self.b.is_empty()
            && Some(self.a.len()) == self.rank.checked_mul(self.input)
            && Some(self.b.len()) == self.output.checked_mul(self.rank)
    }
}

/// An adapter on the host: what a folder holds.
#[derive(Debug, Clone, PartialEq)]
pub struct HostAdapter {
    /// By module path (`model.layers.0.self_attn.q_proj`, `lm_head`).
    pub pairs: BTreeMap<String, HostPair>,
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f64,
    /// Provenance from the safetensors metadata (`burnish.base_sha256`, …); empty for a foreign adapter.
    pub metadata: BTreeMap<String, String>,
}

/// What [`HostAdapter::save`] writes beside the numbers.
#[derive(Debug, Clone, Copy)]
pub struct SaveOptions<'a> {
    /// The projections that the pairs lie on, in every layer.
    pub targets: &'a [Target],
    /// `base_model_name_or_path`: a hub name where one is known.
    pub base_name: Option<&'a str>,
    /// `revision`: the hub's branch, tag or commit that the base was taken from, if it is not the default one.
    pub revision: Option<&'a str>,
    /// The scales are `alpha / sqrt(rank)`.
    pub rslora: bool,
}

impl HostAdapter {
    /// Reads the adapter folder `dir`. The base that its configuration names is not followed.
    ///
    /// # Errors
    /// Everything wrong with the folder, in one error: what plain LoRA arithmetic cannot apply (DoRA, biases,
    /// `modules_to_save`, …), halves of pairs, ranks and shapes that disagree, numbers that are not finite.
    pub fn load(dir: &Path) -> Result<Self> {
        Outline::read(dir, |_, _| false)?.decode()
    }

    /// How the base was quantised while this adapter learned; `None` where it was not, or the file does not say.
    ///
    /// # Errors
    /// Input: a scheme that this program does not know.
    pub fn trained_over(&self) -> Result<Option<Quant>> {
        let Some(name) = self.metadata.get(provenance::QUANT) else { return Ok(None) };
        let quant = Quant::from_name(name).ok_or_else(|| {
            let schemes = Quant::ALL.map(Quant::name).join(", ");
            Error::input(provenance::QUANT, format!("is `{name}`; known are {schemes}"))
        })?;
        Ok((quant != Quant::None).then_some(quant))
    }

    /// Like [`load`](Self::load), for a base of the shape `base`: every pair fits it, and no module that the
    /// configuration asks for lacks its pair.
    pub fn load_for(dir: &Path, base: &ModelConfig) -> Result<Self> {
        Self::load_with(dir, base, |_, _| false)
    }

    /// [`load_for`](Self::load_for) with the base at hand: unchanged copies of its embedding and its head, as PEFT's
    /// `save_embedding_layers=True` adds them, are passed over.
    pub fn load_over(dir: &Path, base: &BaseFiles) -> Result<Self> {
        Self::load_with(dir, base.config(), |name, tensor| is_copy(base, name, tensor))
    }

    fn load_with(dir: &Path, base: &ModelConfig, is_copy: impl Fn(&str, &RawTensor) -> bool) -> Result<Self> {
        let outline = Outline::read(dir, is_copy)?;
        let missing = outline.missing_pairs(base)?;
        // Before any value is read: what fits the base is no larger than the base allows.
        let mut errors = Vec::from_iter(outline.check_against(base).err());
        if let Some((first, rest)) = missing.split_first() {
            let more = and_more(rest.len());
            errors.push(Error::input(
                dir.join(WEIGHTS_FILE).display(),
                format!("{CONFIG_FILE} targets `{first}`{more} of the base, and the file holds no pair for it"),
            ));
        }
        Error::none_of(errors, outline)?.decode()
    }

    /// Whether every pair has its module in a base of this shape, with the right sizes.
    ///
    /// # Errors
    /// All pairs that do not fit.
    pub fn check_against(&self, base: &ModelConfig) -> Result<()> {
        let broken = self.pairs.iter().filter(|(_, pair)| !pair.is_whole());
        let mut errors: Vec<Error> = broken
            .map(|(module, _)| Error::input(format_args!("adapter: {module}"), "its values do not fill its shape"))
            .collect();
        let sizes = self.pairs.iter().map(|(module, pair)| (module.as_str(), (pair.input, pair.output)));
        errors.extend(check_sizes("adapter", sizes, base).err());
        Error::none_of(errors, ())
    }

    /// Writes the two files into the folder `dir`, which is made if need be; numbers in f32.
    ///
    /// Both files are first written in full under temporary names. If the configuration on disk is already what
    /// it shall be, renaming the weights replaces the adapter in one step. Otherwise the old configuration is
    /// removed, then the weights and last the new configuration are renamed: a crash in between leaves a folder
    /// that every reader refuses for want of a configuration, never the weights of one adapter under the
    /// configuration of another.
    pub fn save(&self, dir: &Path, options: &SaveOptions<'_>) -> Result<()> {
        let config = self.config_json(options)?;
        std::fs::create_dir_all(dir).map_err(|error| Error::write(dir, &error))?;
        let staging = || tempfile::Builder::new().prefix(".burnish-").tempdir_in(dir);
        let staging =
            temporary::make(staging, |staging| staging.path().to_owned()).map_err(|error| Error::write(dir, &error))?;
        let staged = |name: &str| staging.path().join(name);
        self.write_weights(&staged(WEIGHTS_FILE))?;
        let config_path = dir.join(CONFIG_FILE);
        if std::fs::read(&config_path).is_ok_and(|old| old == config.as_bytes()) {
            return temporary::undisturbed(|| rename(&staged(WEIGHTS_FILE), &dir.join(WEIGHTS_FILE)));
        }
        atomic::write_bytes(&staged(CONFIG_FILE), config.as_bytes())?;
        temporary::undisturbed(|| {
            match std::fs::remove_file(&config_path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(Error::write(&config_path, &error)),
                _ => {}
            }
            rename(&staged(WEIGHTS_FILE), &dir.join(WEIGHTS_FILE))?;
            rename(&staged(CONFIG_FILE), &config_path)
        })
    }

    /// `adapter_model.safetensors`: `lora_A` `[rank, in]` and `lora_B` `[out, rank]` of every pair, in f32.
    fn write_weights(&self, path: &Path) -> Result<()> {
        let mut metadata = self.metadata.clone();
        metadata.insert("format".to_owned(), "pt".to_owned());
        let mut headers = Vec::with_capacity(2 * self.pairs.len());
        let mut values: BTreeMap<String, &[f32]> = BTreeMap::new();
        for (module, pair) in &self.pairs {
            let halves = [
                (A_SUFFIX, vec![pair.rank, pair.input], pair.a.as_slice()),
                (B_SUFFIX, vec![pair.output, pair.rank], pair.b.as_slice()),
            ];
            for (suffix, shape, numbers) in halves {
                let name = format!("{PREFIX}{module}{suffix}");
                values.insert(name.clone(), numbers);
                headers.push(TensorHeader { name, dtype: Dtype::F32, shape });
            }
        }
        safetensors::write(path, &metadata, &headers, |header| {
            let numbers = values.get(&header.name).copied().unwrap_or_default();
            Ok(Bytes::from(numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>()))
        })
    }

    /// `adapter_config.json`, keys sorted as PEFT writes them.
    fn config_json(&self, options: &SaveOptions<'_>) -> Result<String> {
        let mut ranks = Map::new();
        let mut alphas = Map::new();
        for (module, pair) in &self.pairs {
            let projection = module.rsplit('.').next().unwrap_or(module);
            if !options.targets.iter().any(|target| target.name() == projection) {
                return Err(Error::failed(module, "has a pair, and is not among the targets to be saved"));
            }
            if pair.rank != self.rank {
                ranks.insert(module.clone(), json!(pair.rank));
            }
            let root = if options.rslora { (pair.rank as f64).sqrt() } else { pair.rank as f64 };
            if pair.scale != (self.alpha / root) as f32 {
                alphas.insert(module.clone(), number(f64::from(pair.scale) * root));
            }
        }
        let targets: Vec<&str> = options.targets.iter().map(|target| target.name()).collect();
        let mut config = json!({
            "alpha_pattern": alphas,
            "base_model_name_or_path": options.base_name,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": number(self.alpha),
            "lora_dropout": self.dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.rank,
            "rank_pattern": ranks,
            "revision": options.revision,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
        });
        if options.rslora {
            // Older PEFT does not know the key, so it stands only where it is needed.
            config["use_rslora"] = json!(true);
        }
        Ok(format!("{config:#}\n"))
    }
}

/// An adapter folder whose values have not been read yet.
pub struct Outline {
    config: PeftConfig,
    /// The file of weights.
    place: String,
    /// By module path.
    pub pairs: BTreeMap<String, PairOutline>,
    /// `burnish.…` from the file of weights.
    pub metadata: BTreeMap<String, String>,
}

/// A pair whose shapes agree with each other and with the configuration.
pub struct PairOutline {
    a: RawTensor,
    b: RawTensor,
    rank: usize,
    input: usize,
    output: usize,
    scale: f32,
}

impl PairOutline {
    /// Values of both factors.
    pub fn values(&self) -> usize {
        self.a.elements() + self.b.elements()
    }
}

impl Outline {
    /// Reads the configuration of the adapter folder `dir` and the header of its weights. Tensors named like the embedding
    /// or the head are refused, unless `is_copy` says that they are the base's own.
    ///
    /// # Errors
    /// As [`HostAdapter::load`], but for the numbers.
    pub fn read(dir: &Path, is_copy: impl Fn(&str, &RawTensor) -> bool) -> Result<Self> {
        let place = dir.join(WEIGHTS_FILE).display().to_string();
        let (config, weights) = (PeftConfig::read(dir), read_weights(dir));
        let mut errors = weights.as_ref().map_or(Vec::new(), |(tensors, _)| refusals(&place, tensors, is_copy));
        let (config, (tensors, metadata)) = match both(config, weights) {
            Ok(read) => read,
            Err(error) => {
                errors.insert(0, error.clone());
                return Err(Error::join(errors).unwrap_or(error));
            }
        };
        let pairs = pairs_of(&place, &config, tensors, &mut errors);
        if pairs.is_empty() && errors.is_empty() {
            errors.push(Error::input(&place, "holds no low-rank pair"));
        }
        let metadata = metadata.into_iter().filter(|(key, _)| key.starts_with("burnish.")).collect();
        Error::none_of(errors, Self { config, place, pairs, metadata })
    }

    /// What the configuration says.
    pub fn config(&self) -> &PeftConfig {
        &self.config
    }

    /// Reads the values.
    fn decode(self) -> Result<HostAdapter> {
        let Self { config, place, pairs, metadata } = self;
        let mut errors = Vec::new();
        let mut decoded = BTreeMap::new();
        for (module, PairOutline { a, b, rank, input, output, scale }) in pairs {
            let place = format!("{place}: module {module}");
            match both(numbers(&place, "lora_A", &a), numbers(&place, "lora_B", &b)) {
                Ok((a, b)) => drop(decoded.insert(module, HostPair { a, b, rank, input, output, scale })),
                Err(error) => errors.push(error),
            }
        }
        let (rank, alpha, dropout) = (config.rank, config.alpha, config.dropout);
        Error::none_of(errors, HostAdapter { pairs: decoded, rank, alpha, dropout, metadata })
    }

    /// Modules of `base` that the configuration targets and that have no pair here.
    fn missing_pairs(&self, base: &ModelConfig) -> Result<Vec<String>> {
        let mut missing = Vec::new();
        for module in module_shapes(base).into_keys() {
            if !self.pairs.contains_key(&module) && self.config.covers(&module)? {
                missing.push(module);
            }
        }
        Ok(missing)
    }

    fn check_against(&self, base: &ModelConfig) -> Result<()> {
        let sizes = self.pairs.iter().map(|(module, pair)| (module.as_str(), (pair.input, pair.output)));
        check_sizes(&self.place, sizes, base)
    }
}

/// Whether every module is one of `base`, with the given sizes of input and output.
fn check_sizes<'a>(
    place: &str,
    modules: impl Iterator<Item = (&'a str, (usize, usize))>,
    base: &ModelConfig,
) -> Result<()> {
    let shapes = module_shapes(base);
    let mut errors = Vec::new();
    for (module, (from, to)) in modules {
        match shapes.get(module) {
            None => errors.push(unknown_module(place, module, base)),
            Some(&(input, output)) if (input, output) != (from, to) => {
                let message =
                    format!("is for a projection from {from} to {to} values; the base's goes from {input} to {output}");
                errors.push(Error::input(format_args!("{place}: {module}"), message));
            }
            Some(_) => {}
        }
    }
    match Error::join(errors) {
        None => Ok(()),
        Some(error) => Err(error.hint("is this the base that the adapter was trained on?")),
    }
}

/// A whole number where it is one: PEFT's `lora_alpha` is an integer by convention.
fn number(value: f64) -> Value {
    const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT_INTEGERS { json!(value as i64) } else { json!(value) }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| Error::write(to, &error))
}

/// The values of both, or the problems of both.
fn both<T, U>(first: Result<T>, second: Result<U>) -> Result<(T, U)> {
    match (first, second) {
        (Ok(first), Ok(second)) => Ok((first, second)),
        (Err(first), Err(second)) => Err(Error::join([first, second.clone()]).unwrap_or(second)),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

/// Tensors and metadata of the weights' file.
type Weights = (BTreeMap<String, RawTensor>, BTreeMap<String, String>);

fn read_weights(dir: &Path) -> Result<Weights> {
    let path = dir.join(WEIGHTS_FILE);
    if !path.exists() && dir.join("adapter_model.bin").exists() {
        return Err(Error::input(dir.display(), "holds adapter_model.bin, a pickle, which is never read")
            .hint("save it again with PEFT's `save_pretrained(..., safe_serialization=True)`"));
    }
    let file = SafeTensorsFile::open(&path)?;
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

/// What a tensor's name says it is.
enum Role<'a> {
    A(&'a str),
    B(&'a str),
    /// PEFT stores the base's own matrix along with an adapter on the head.
    BaseCopy(&'a str),
    /// Of no use to plain LoRA; why.
    Refused(&'static str),
}

impl<'a> Role<'a> {
    fn of(name: &'a str) -> Self {
        let Some(path) = name.strip_prefix(PREFIX) else {
            return Self::Refused("not named as PEFT names a tensor (`base_model.model.<path>.lora_A.weight`)");
        };
        if let Some(module) = path.strip_suffix(A_SUFFIX) {
            return Self::A(module);
        }
        if let Some(module) = path.strip_suffix(B_SUFFIX) {
            return Self::B(module);
        }
        if let Some(module) = path.strip_suffix(".base_layer.weight") {
            return Self::BaseCopy(module);
        }
        let reason = REFUSED_NAMES.iter().find(|(part, _)| path.contains(part)).map(|(_, reason)| *reason);
        Self::Refused(reason.unwrap_or("neither half of a low-rank pair"))
    }
}

/// What PEFT copies of the base when it is asked to (or when a vocabulary has grown).
const EMBEDDINGS: [&str; 2] = ["model.embed_tokens.weight", "lm_head.weight"];

/// Parts of names that tell what else PEFT can store.
const REFUSED_NAMES: [(&str, &str); 8] = [
    (".lora_magnitude_vector", "a DoRA magnitude, which cannot be applied"),
    (".lora_embedding_", "an adapter on an embedding, which cannot be applied"),
    (".lora_B.bias", "a bias of the low-rank pair, which cannot be applied"),
    (".token_adapter.", "trained tokens, which cannot be applied"),
    (".lora_A.", "a half with an adapter's name inside (a raw state dictionary, not PEFT's file)"),
    (".lora_B.", "a half with an adapter's name inside (a raw state dictionary, not PEFT's file)"),
    (".bias", "a trained bias, which cannot be applied"),
    (".weight", "a wholly trained module, which cannot be applied"),
];

/// The two halves of a pair, as far as the file has them.
#[derive(Default)]
struct Halves {
    a: Option<RawTensor>,
    b: Option<RawTensor>,
}

/// Whether a tensor is the base's own of that name, value for value.
fn is_copy(base: &BaseFiles, name: &str, tensor: &RawTensor) -> bool {
    // A tied head is the embedding.
    let name = if base.has(name) { name } else { EMBEDDINGS[0] };
    base.shape(name) == Some(tensor.shape.as_slice())
        && base.tensor(name).is_ok_and(|own| match own.dtype == tensor.dtype {
            true => own.bytes[..] == tensor.bytes[..],
            false => own.to_f32().is_ok_and(|own| tensor.to_f32().is_ok_and(|copy| own == copy)),
        })
}

/// Tensors that plain LoRA has no use for, by what they are.
fn refusals(
    place: &str,
    tensors: &BTreeMap<String, RawTensor>,
    is_copy: impl Fn(&str, &RawTensor) -> bool,
) -> Vec<Error> {
    let mut refused: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
    for (name, tensor) in tensors {
        if let Role::Refused(reason) = Role::of(name) {
            let base_name = name.strip_prefix(PREFIX).filter(|name| EMBEDDINGS.contains(name));
            if base_name.is_some_and(|base_name| is_copy(base_name, tensor)) {
                continue;
            }
            refused.entry(reason).or_default().push(name);
        }
    }
    let told = refused.into_iter().filter_map(|(reason, names)| {
        let (first, rest) = names.split_first()?;
        Some(Error::input(format_args!("{place}: tensor {first}{}", and_more(rest.len())), reason))
    });
    told.collect()
}

/// Sorts the tensors into pairs and checks every one but those that [`refusals`] names; what is wrong goes to `errors`.
fn pairs_of(
    place: &str,
    config: &PeftConfig,
    tensors: BTreeMap<String, RawTensor>,
    errors: &mut Vec<Error>,
) -> BTreeMap<String, PairOutline> {
    let mut halves: BTreeMap<String, Halves> = BTreeMap::new();
    let mut copies: Vec<(String, RawTensor)> = Vec::new();
    errors.extend(mixed_dtypes(place, &tensors));
    for (name, tensor) in tensors {
        match Role::of(&name) {
            Role::A(module) => halves.entry(module.to_owned()).or_default().a = Some(tensor),
            Role::B(module) => halves.entry(module.to_owned()).or_default().b = Some(tensor),
            Role::BaseCopy(module) => copies.push((module.to_owned(), tensor)),
            Role::Refused(_) => {}
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
fn and_more(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" (and {count} more)") }
}

/// PEFT writes all of an adapter in one dtype: several are a file pieced together.
fn mixed_dtypes(place: &str, tensors: &BTreeMap<String, RawTensor>) -> Option<Error> {
    let mut counts: Vec<(Dtype, usize)> = Vec::new();
    for (name, tensor) in tensors {
        if !matches!(Role::of(name), Role::A(_) | Role::B(_)) {
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
    pairs: &'a BTreeMap<String, PairOutline>,
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
fn pair_of(place: &str, config: &PeftConfig, module: &str, halves: Halves) -> Result<PairOutline> {
    let place = format!("{place}: module {module}");
    let (a, b) = match (halves.a, halves.b) {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) => return Err(Error::input(place, "has lora_A and no lora_B")),
        _ => return Err(Error::input(place, "has lora_B and no lora_A")),
    };
    let rank = config.rank_of(module)?;
    let ([a_rank, input], [output, b_rank]) = both(matrix(&place, "lora_A", &a), matrix(&place, "lora_B", &b))?;
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
    let scale = config.scale_of(module)? as f32;
    Error::none_of(errors, PairOutline { a, b, rank, input, output, scale })
}

/// A half whose shape does not have the rank that the configuration gives.
fn other_rank(place: &str, half: &str, layout: &str, shape: [usize; 2], rank: usize) -> Error {
    let turned = if shape.contains(&rank) { "; is it transposed?" } else { "" };
    Error::input(
        place,
        format!("{half} has shape {shape:?}; expected {layout} with rank {rank} from {CONFIG_FILE}{turned}"),
    )
}

/// The two sizes of a matrix.
fn matrix(place: &str, half: &str, tensor: &RawTensor) -> Result<[usize; 2]> {
    tensor
        .shape
        .as_slice()
        .try_into()
        .map_err(|_| Error::input(place, format!("{half} has shape {:?}; expected two dimensions", tensor.shape)))
}

/// Whether it is of a type of float.
fn float(place: &str, half: &str, tensor: &RawTensor) -> Result<()> {
    match tensor.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Ok(()),
        other => Err(Error::input(place, format!("{half} is {other}; expected F32, F16 or BF16"))),
    }
}

/// The values in f32, all finite.
fn numbers(place: &str, half: &str, tensor: &RawTensor) -> Result<Vec<f32>> {
    tensor.check_finite(format_args!("{place}: {half}"))?;
    tensor.to_f32()
}

/// Every module that can carry a pair, with its input and output size. The head counts even where it is tied.
fn module_shapes(base: &ModelConfig) -> BTreeMap<String, (usize, usize)> {
    let mut shapes = BTreeMap::from([(Target::LmHead.path(0), (base.hidden_size, base.vocab_size))]);
    for tensor in names::tensors(base) {
        let module = tensor.hf.strip_suffix(".weight");
        let adaptable = module.filter(|module| is_projection(module));
        if let (Some(module), [output, input]) = (adaptable, tensor.shape.as_slice()) {
            shapes.insert(module.to_owned(), (*input, *output));
        }
    }
    shapes
}

/// Whether a module's last segment names a projection.
fn is_projection(module: &str) -> bool {
    module.rsplit('.').next().is_some_and(|name| name.parse::<Target>().is_ok())
}

fn unknown_module(place: &str, module: &str, base: &ModelConfig) -> Error {
    let last = base.layers.saturating_sub(1);
    let projections: Vec<&str> = Target::ALL.iter().map(|target| target.name()).collect();
    Error::input(
        format_args!("{place}: {module}"),
        format!("the base has no such module; it has layers 0 to {last} with {}", projections.join(", ")),
    )
}
