//! An adapter on the host: its low-rank pairs in f32, its settings, and what it came from.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::base_modules::{check_sizes, check_whole};
use crate::data::{ControlTokens, Format};
use crate::error::{Error, Place, Result};
use crate::model::ModelConfig;
use crate::quant::{Compute, Quant};

/// Provenance keys in the metadata of the weights' file.
pub mod provenance {
    /// The fingerprint of the base model ([`BaseFiles::content_hash`](crate::model::BaseFiles::content_hash)): a SHA-256
    /// over its files.
    pub const BASE_SHA256: &str = "burnish.base_sha256";
    /// The scheme of the base's weights while training: `none`, `nf4`, …
    pub const QUANT: &str = "burnish.quant";
    /// The precision of the frozen products while training: `f32` or `bf16`.
    pub const COMPUTE: &str = "burnish.compute";
    /// SHA-256 of what the scheme makes of a fixed matrix ([`quantiser_sha256`](crate::model::base::quantiser_sha256)); missing
    /// where it packs nothing.
    pub const QUANTISER_SHA256: &str = "burnish.quantiser_sha256";
    /// SHA-256 of the tokenizer, chat templates excepted.
    pub const TOKENIZER_SHA256: &str = "burnish.tokenizer_sha256";
    /// SHA-256 of the chat template; missing where there is none.
    pub const TEMPLATE_SHA256: &str = "burnish.template_sha256";
    /// SHA-256 of the training data.
    pub const DATA_SHA256: &str = "burnish.data_sha256";
    /// SHA-256 of the validation data; missing where there is none of its own.
    pub const VALID_SHA256: &str = "burnish.valid_sha256";
    /// The shape of the training data: `prompt-completion`, `alpaca`, `chat` or `text`.
    pub const DATA_FORMAT: &str = "burnish.data_format";
    /// The reading of control tokens that the training data spells: `text` or `tokens`.
    pub const CONTROL_TOKENS: &str = "burnish.control_tokens";
    /// The labels of a classifier in the order of their numbers, as a list in JSON; missing for any other adapter.
    pub const LABELS: &str = "burnish.labels";
    /// The guarantee of a private run (DP-SGD), as JSON: ε, δ and all that they follow from; missing for any other run.
    pub const PRIVACY: &str = "burnish.privacy";
    /// The run's seed.
    pub const SEED: &str = "burnish.seed";
    /// The version that wrote the file.
    pub const VERSION: &str = "burnish.version";
    /// The hash of the program's sources, dependencies and compiler.
    pub const BUILD: &str = "burnish.build";
    /// The verdicts of the run that has come to its end, by data set, as JSON: losses of base and adapter, their difference with
    /// its 95% interval, and the conclusion.
    pub const VERDICT: &str = "burnish.verdict";
}

/// The module of the head of labels, as transformers names it.
pub const SCORE: &str = "score";

/// A low-rank pair on the host, in f32.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostPair {
    /// `[rank, in]`, row-major.
    pub a: Vec<f32>,
    /// `[out, rank]`, row-major.
    pub b: Vec<f32>,
    /// Rows of `a`, columns of `b`.
    pub rank: usize,
    /// Input width of the module.
    pub input: usize,
    /// Output width of the module.
    pub output: usize,
    /// The factor on `B · A`: `alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA; patterns already resolved.
    pub scale: f32,
    /// The length of each row of the adapted weight, `out` values (DoRA); `None` for plain LoRA.
    pub magnitude: Option<Vec<f32>>,
    /// `A₀` and `B₀`, of the same shapes as `a` and `b`, of which the update is subtracted while training (PiSSA, OLoRA): the
    /// change of the weight then is `scale · (B · A − B₀ · A₀)`. They are in no file.
    pub subtracted: Option<Arc<[Vec<f32>; 2]>>,
}

impl HostPair {
    /// Whether there are as many values as the sizes say, and at least one.
    fn is_whole(&self) -> bool {
        !self.a.is_empty()
            && !self.b.is_empty()
            && Some(self.a.len()) == self.rank.checked_mul(self.input)
            && Some(self.b.len()) == self.output.checked_mul(self.rank)
            && self.magnitude.as_ref().is_none_or(|magnitude| magnitude.len() == self.output)
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.a.len() + self.b.len() + self.magnitude.as_ref().map_or(0, Vec::len)
    }

    /// The products that make up row `index` of `B · A − B₀ · A₀`: a factor, and a row of `A` or `A₀` that it multiplies.
    pub fn terms_of_row(&self, index: usize) -> impl Iterator<Item = (f32, &[f32])> {
        let subtracted = self.subtracted.as_deref().map(|[a_0, b_0]| (-1f32, a_0, b_0));
        let pairs = std::iter::once((1f32, &self.a, &self.b)).chain(subtracted);
        pairs.flat_map(move |(sign, a, b)| {
            let factors = b.get(index * self.rank..(index + 1) * self.rank).unwrap_or_default();
            factors.iter().map(move |factor| sign * factor).zip(a.chunks_exact(self.input))
        })
    }

    /// The same change of the weight without a subtracted pair, of twice the rank: `B · (A − A₀) + (B − B₀) · A₀` as one product, with
    /// `B` and `B − B₀` side by side. `B · A − B₀ · A₀` itself would leave a small difference to whatever multiplies it in 16 bits.
    pub fn without_subtraction(&self) -> Cow<'_, Self> {
        let Some(subtracted) = &self.subtracted else { return Cow::Borrowed(self) };
        let [a_0, b_0] = &**subtracted;
        let difference = |(value, first): (&f32, &f32)| value - first;
        let rows = self.b.chunks(self.rank).zip(b_0.chunks(self.rank));
        let rows = rows.flat_map(|(b, b_0)| b.iter().copied().chain(b.iter().zip(b_0).map(difference)));
        Cow::Owned(Self {
            a: self.a.iter().zip(a_0).map(difference).chain(a_0.iter().copied()).collect(),
            b: rows.collect(),
            rank: 2 * self.rank,
            magnitude: self.magnitude.clone(),
            subtracted: None,
            ..*self
        })
    }
}

/// A tensor of the base that is trained as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row-major, in the place of the base's values.
    pub values: Vec<f32>,
}

/// Rows of the embedding, and of the head where it has a matrix of its own, that are trained in the place of the base's.
#[derive(Debug, Clone, PartialEq)]
pub struct HostRows {
    /// The tokens.
    pub ids: Vec<u32>,
    /// By module path: the rows of the tokens, one after another.
    pub values: BTreeMap<String, Vec<f32>>,
}

/// The head of a classifier, in f32: the logits of the labels are its product with the normed hidden state of the last token.
#[derive(Debug, Clone, PartialEq)]
pub struct HostClassifier {
    /// The labels, in the order of their numbers.
    pub labels: Vec<String>,
    /// `[labels, width]`, row-major.
    pub weight: Vec<f32>,
}

/// An adapter on the host, with everything that its folder holds.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HostAdapter {
    /// By module path (`model.layers.0.self_attn.q_proj`, `lm_head`).
    pub pairs: BTreeMap<String, HostPair>,
    /// The tensors of the base that are trained as wholes, by name (`model.norm.weight`): those of the modules to save, and
    /// biases.
    pub whole: BTreeMap<String, HostTensor>,
    /// Trained rows of some tokens.
    pub rows: Option<HostRows>,
    /// The head of labels, where the adapter is a classifier.
    pub classifier: Option<HostClassifier>,
    /// The rank where no pattern gives another one.
    pub rank: usize,
    /// The numerator of the scale where no pattern gives another one.
    pub alpha: f64,
    /// The probability of dropping an input value while training.
    pub dropout: f64,
    /// Provenance from the safetensors metadata (`burnish.base_sha256`, …); empty for a foreign adapter.
    pub metadata: BTreeMap<String, String>,
}

impl HostAdapter {
    /// The quantisation of the base while this adapter learned; `None` where there was none or the file does not say.
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

    /// The precision of the frozen products while this adapter learned; `None` where the file does not say.
    ///
    /// # Errors
    /// Input: a precision that this program does not know.
    pub fn trained_in(&self) -> Result<Option<Compute>> {
        let Some(name) = self.metadata.get(provenance::COMPUTE) else { return Ok(None) };
        Compute::from_name(name).map(Some).ok_or_else(|| {
            let known = Compute::ALL.map(Compute::name).join(", ");
            Error::input(provenance::COMPUTE, format!("is `{name}`; known are {known}"))
        })
    }

    /// The shape of the data that this adapter was trained on; `None` where the file does not say, as every adapter of
    /// another program.
    ///
    /// # Errors
    /// Input: a shape that this program does not know.
    pub fn data_format(&self) -> Result<Option<Format>> {
        let Some(name) = self.metadata.get(provenance::DATA_FORMAT) else { return Ok(None) };
        let known = Format::ALL.into_iter().find(|format| format.name() == name);
        known.map(Some).ok_or_else(|| {
            let formats = Format::ALL.map(Format::name).join(", ");
            Error::input(provenance::DATA_FORMAT, format!("is `{name}`; known are {formats}"))
        })
    }

    /// The reading of control tokens in the data that this adapter was trained on; as text where the file does not say.
    ///
    /// # Errors
    /// Input: a reading that this program does not know.
    pub fn control_tokens(&self) -> Result<ControlTokens> {
        let Some(name) = self.metadata.get(provenance::CONTROL_TOKENS) else { return Ok(ControlTokens::Text) };
        name.parse().map_err(|message: String| Error::input(provenance::CONTROL_TOKENS, message))
    }

    /// Records the shape of the training data in the adapter's metadata, for [`data_format`](Self::data_format).
    pub fn record_data_format(&mut self, format: Format) {
        self.metadata.insert(provenance::DATA_FORMAT.to_owned(), format.name().to_owned());
    }

    /// Whether the head of a model, tied to the embedding, needs a matrix of its own once this adapter is merged: it changes one of
    /// the two, as PEFT applies it, and not the other.
    pub fn unties_head(&self, config: &ModelConfig) -> bool {
        let changes =
            |module: &str| self.pairs.contains_key(module) || self.whole.contains_key(&format!("{module}.weight"));
        config.tied_head && (changes(config.names.head) || changes(config.names.embedding))
    }

    /// Every vector that is trained, with a name of its own.
    pub fn vectors(&self) -> impl Iterator<Item = (String, &Vec<f32>)> {
        let pairs = self.pairs.iter().flat_map(|(module, pair)| {
            let factors = [("a", &pair.a), ("b", &pair.b)].into_iter();
            let parts = factors.chain(pair.magnitude.as_ref().map(|magnitude| ("magnitude", magnitude)));
            parts.map(move |(part, values)| (format!("{module}.{part}"), values))
        });
        let whole = self.whole.iter().map(|(name, tensor)| (name.clone(), &tensor.values));
        let rows = self.rows.iter().flat_map(|rows| &rows.values);
        let score = self.classifier.iter().map(|classifier| (SCORE.to_owned(), &classifier.weight));
        pairs.chain(whole).chain(rows.map(|(module, values)| (format!("{module}.rows"), values))).chain(score)
    }

    /// [`Self::vectors`], to be changed.
    pub fn vectors_mut(&mut self) -> impl Iterator<Item = (String, &mut Vec<f32>)> {
        let pairs = self.pairs.iter_mut().flat_map(|(module, pair)| {
            let factors = [("a", &mut pair.a), ("b", &mut pair.b)].into_iter();
            let parts = factors.chain(pair.magnitude.as_mut().map(|magnitude| ("magnitude", magnitude)));
            parts.map(move |(part, values)| (format!("{module}.{part}"), values))
        });
        let whole = self.whole.iter_mut().map(|(name, tensor)| (name.clone(), &mut tensor.values));
        let rows = self.rows.iter_mut().flat_map(|rows| &mut rows.values);
        let score = self.classifier.iter_mut().map(|classifier| (SCORE.to_owned(), &mut classifier.weight));
        pairs.chain(whole).chain(rows.map(|(module, values)| (format!("{module}.rows"), values))).chain(score)
    }

    /// Number of trained values.
    pub fn parameters(&self) -> usize {
        self.vectors().map(|(_, values)| values.len()).sum()
    }

    /// The modules that are changed: those with a pair, and those of which a tensor is trained in part or as a whole.
    pub fn modules(&self) -> usize {
        let whole = self.whole.keys().filter_map(|name| name.rsplit_once('.'));
        let rows = self.rows.iter().flat_map(|rows| rows.values.keys());
        let modules: BTreeSet<&str> =
            self.pairs.keys().chain(rows).map(String::as_str).chain(whole.map(|(module, _)| module)).collect();
        modules.len()
    }

    /// The same adapter without subtracted pairs, which no other program knows ([`HostPair::without_subtraction`]); its rank is
    /// twice as large if there are any.
    pub fn without_subtraction(&self) -> Cow<'_, Self> {
        if self.pairs.values().all(|pair| pair.subtracted.is_none()) {
            return Cow::Borrowed(self);
        }
        let pairs = self.pairs.iter().map(|(module, pair)| (module.clone(), pair.without_subtraction().into_owned()));
        Cow::Owned(Self { pairs: pairs.collect(), rank: 2 * self.rank, ..self.clone() })
    }

    /// Checks that the adapter gives text, as answers, merging and exports need it; a classifier gives labels. `place` is that of the adapter.
    ///
    /// # Errors
    /// Input: it is a classifier.
    pub fn check_gives_text(&self, place: impl Into<Place>) -> Result<()> {
        let Some(HostClassifier { labels, .. }) = &self.classifier else { return Ok(()) };
        let message = format!("is a classifier of the labels {}: it gives no text", labels.join(", "));
        let hint = "`burnish predict` gives the labels of texts, `burnish eval` measures it";
        Err(Error::input(place, message).hint(hint))
    }

    /// The modules with pairs and the tensors trained as wholes that belong to the tower or the connector of `base`.
    pub fn of_vision(&self, base: &ModelConfig) -> impl Iterator<Item = &str> {
        let vision = base.vision.as_ref();
        let names = self.pairs.keys().chain(self.whole.keys()).map(String::as_str);
        names.filter(move |name| vision.is_some_and(|vision| vision.owns(name)))
    }

    /// Whether it changes the tower or the connector of `base`, and so the features of pictures.
    pub fn changes_vision(&self, base: &ModelConfig) -> bool {
        self.of_vision(base).next().is_some()
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
        errors.extend(self.check_rows(base));
        errors.extend(self.check_classifier(base));
        errors.extend(
            check_whole("adapter", self.whole.iter().map(|(name, tensor)| (name.as_str(), &tensor.shape[..])), base)
                .err(),
        );
        Error::none_of(errors, ())
    }

    /// The problem with the head of labels for a base of this shape.
    fn check_classifier(&self, base: &ModelConfig) -> Option<Error> {
        let HostClassifier { labels, weight } = self.classifier.as_ref()?;
        let expected = labels.len() * base.hidden_size;
        (weight.len() != expected || labels.is_empty()).then(|| {
            let message =
                format!("has {} values in the head of {} labels; expected {expected}", weight.len(), labels.len());
            Error::input("adapter", message)
        })
    }

    /// Every problem with the rows of tokens for a base of this shape.
    fn check_rows(&self, base: &ModelConfig) -> Vec<Error> {
        let Some(rows) = &self.rows else { return Vec::new() };
        let mut errors = Vec::new();
        if let Some(id) = rows.ids.iter().find(|id| **id as usize >= base.vocab_size) {
            let message = format!("has a row for token {id}; the base has {} tokens", base.vocab_size);
            errors.push(Error::input("adapter", message));
        }
        for (module, values) in &rows.values {
            let place = format!("adapter: {module}");
            let is_tied_head = base.tied_head && *module == base.names.head;
            if is_tied_head || ![base.names.embedding, base.names.head].contains(&module.as_str()) {
                errors.push(Error::input(
                    &place,
                    "has rows of tokens, and is neither the embedding nor a head of its own",
                ));
            } else if values.len() != rows.ids.len() * base.hidden_size {
                let expected = rows.ids.len() * base.hidden_size;
                let message = format!("has {} values in its rows; expected {expected}", values.len());
                errors.push(Error::input(&place, message));
            }
            if self.pairs.contains_key(module) || self.whole.contains_key(&format!("{module}.weight")) {
                errors.push(Error::input(&place, "has rows of tokens beside another change of the same matrix"));
            }
        }
        errors
    }
}
