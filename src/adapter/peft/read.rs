//! Reading an adapter folder: header, then what does not fit the base, then the values.

use std::collections::BTreeMap;
use std::path::Path;

use super::header::{AdapterHeader, PairHeader, and_more};
use super::mlx::{self, transposed};
use super::renaming::Renaming;
use super::{CONFIG_FILE, WEIGHTS_FILE};
use crate::adapter::host::{HostAdapter, HostClassifier, HostPair, HostRows, HostTensor, SCORE, provenance};
use crate::error::{Error, Result};
use crate::files::RawTensor;
use crate::model::sites::TRANSFORMERS_HEAD;
use crate::model::{BaseFiles, families};

impl HostAdapter {
    /// Reads the adapter folder `dir`. The base that its configuration names is not followed.
    ///
    /// # Errors
    /// Everything wrong with the folder, in one error: what cannot be applied (`lora_bias`, `target_parameters`, …), halves of pairs,
    /// ranks and shapes that disagree, numbers that are not finite.
    pub fn load(dir: &Path) -> Result<Self> {
        AdapterHeader::read(dir, |_, _| false)?.decode()
    }

    /// Reads the adapter folder `dir` for the base `base`; see [`AdapterHeader::read_over`].
    ///
    /// # Errors
    /// Everything that [`AdapterHeader::read_over`] refuses; numbers that are not finite.
    pub fn load_over(dir: &Path, base: &BaseFiles) -> Result<Self> {
        AdapterHeader::read_over(dir, base)?.decode_over(base)
    }
}

impl AdapterHeader {
    /// Reads the header of the adapter folder `dir` for the base `base`: every pair fits it, and no module that the
    /// configuration targets lacks its pair. Unchanged copies of the base's embedding and head, as PEFT's
    /// `save_embedding_layers=True` adds them, are passed over.
    ///
    /// # Errors
    /// Everything that [`read`](Self::read) refuses; pairs that do not fit the base; targeted modules without a pair.
    pub fn read_over(dir: &Path, base: &BaseFiles) -> Result<Self> {
        let mut header = Self::read(dir, |name, tensor| is_copy(base, name, tensor))?;
        let paths: Vec<&str> =
            header.pairs.keys().chain(header.whole.keys()).chain(header.rows.keys()).map(String::as_str).collect();
        header.renaming = Renaming::of(&known_renamings(base), paths.into_iter());
        let header = header;
        let missing = header.missing_pairs(base.config())?;
        // Before any value is read: what fits the base is no larger than the base allows.
        let mut errors = Vec::from_iter(header.check_against(base.config()).err());
        if mlx::is_mlx(dir)
            && base.config().tied_head
            && let Some(module) = header.pairs.keys().find(|module| families::is_embedding(module))
        {
            let message = "changes the embedding, and in mlx-lm the head that is tied to it, which cannot be applied";
            errors.push(Error::input(format_args!("{}: module {module}", header.place), message));
        }
        if let Some((first, rest)) = missing.split_first() {
            let more = and_more(rest.len());
            errors.push(Error::input(
                dir.join(WEIGHTS_FILE).display(),
                format!("{CONFIG_FILE} targets `{first}`{more} of the base, and the file holds no pair for it"),
            ));
        }
        Error::none_of(errors, header)
    }

    /// Reads the values.
    ///
    /// # Errors
    /// Every factor with a number that is not finite. An adapter over a base that PEFT changes as it loads, which only
    /// [`decode_over`](Self::decode_over) can read.
    pub fn decode(self) -> Result<HostAdapter> {
        match self.config.subtracted {
            None => self.values(),
            Some(init) => {
                let message =
                    format!("belongs to a base from which `init_lora_weights` = `{init}` has taken its first values");
                let error = Error::input(&self.place, message);
                Err(error.hint(
                    "`merge` reads it together with the base; PEFT's `save_pretrained(..., \
                                path_initial_model_for_weight_conversion=...)` makes it a plain LoRA",
                ))
            }
        }
    }

    /// Reads the values of an adapter of `base`. Where PEFT takes the product of the first factors from the base as it loads, they
    /// are computed again, and subtracted by the pairs.
    ///
    /// # Errors
    /// Every factor with a number that is not finite; a weight of the base that cannot be read.
    pub fn decode_over(self, base: &BaseFiles) -> Result<HostAdapter> {
        let subtracted = self.config.subtracted;
        let mut adapter = self.values()?;
        if let Some(init) = subtracted {
            init.subtract_from(base, &mut adapter)?;
        }
        Ok(adapter)
    }

    fn values(self) -> Result<HostAdapter> {
        let Self { config, place, pairs, whole, rows, score, renaming, metadata } = self;
        let rows = renaming.apply(&place, rows)?;
        let whole = renaming.apply(&place, whole)?;
        let pairs = renaming.apply(&place, pairs)?;
        let mut errors = Vec::new();
        let mut decoded = BTreeMap::new();
        for (module, PairHeader { a, b, rank, input, output, scale, magnitude, is_transposed }) in pairs {
            let place = format!("{place}: module {module}");
            let magnitude = magnitude.map(|tensor| numbers(&place, "lora_magnitude_vector", &tensor)).transpose();
            let factors = Error::both(numbers(&place, "lora_A", &a), numbers(&place, "lora_B", &b));
            match Error::both(factors, magnitude) {
                Ok(((a, b), magnitude)) => {
                    let (a, b) = if is_transposed { (transposed(&a, input), transposed(&b, rank)) } else { (a, b) };
                    let pair = HostPair { a, b, rank, input, output, scale, magnitude, subtracted: None };
                    decoded.insert(module, pair);
                }
                Err(error) => errors.push(error),
            }
        }
        let mut tensors = BTreeMap::new();
        for (name, tensor) in whole {
            match numbers(&place, &name, &tensor) {
                Ok(values) => drop(tensors.insert(name, HostTensor { shape: tensor.shape, values })),
                Err(error) => errors.push(error),
            }
        }
        let mut of_tokens = BTreeMap::new();
        for (module, tensor) in rows {
            match numbers(&format!("{place}: module {module}"), "trainable_tokens_delta", &tensor) {
                Ok(values) => drop(of_tokens.insert(module, values)),
                Err(error) => errors.push(error),
            }
        }
        let ids = config.tokens.first().map(|(_, ids)| ids.clone());
        let rows = ids.filter(|_| !of_tokens.is_empty()).map(|ids| HostRows { ids, values: of_tokens });
        let classifier = score.map(|score| classifier(&place, &score, &metadata)).transpose();
        let classifier = classifier.map_err(|error| errors.push(error)).ok().flatten();
        let (rank, alpha, dropout) = (config.rank, config.alpha, config.dropout);
        let adapter = HostAdapter { pairs: decoded, whole: tensors, rows, classifier, rank, alpha, dropout, metadata };
        Error::none_of(errors, adapter)
    }
}

/// Beginnings of module paths that transformers has or had, or that mlx-lm has, in place of those of the base's own checkpoints.
fn known_renamings(base: &BaseFiles) -> Vec<(&'static str, &'static str)> {
    let family = base.config().family;
    let mut known: Vec<_> = base.config().stored_prefixes().copied().collect();
    if family.names.head != TRANSFORMERS_HEAD {
        known.push((TRANSFORMERS_HEAD, family.names.head));
    }
    known.extend(family.mlx_prefixes);
    known
}

/// Whether a tensor is the base's own of that name, value for value.
fn is_copy(base: &BaseFiles, name: &str, tensor: &RawTensor) -> bool {
    let usual = Renaming::of(&known_renamings(base), [name].into_iter()).in_base(name);
    // A tied head is the embedding.
    let name = if base.has(&usual) { usual } else { base.config().embedding_name() };
    let name = name.as_str();
    base.shape(name) == Some(tensor.shape.as_slice())
        && base.tensor(name).is_ok_and(|own| match own.dtype == tensor.dtype {
            true => own.bytes[..] == tensor.bytes[..],
            false => own.to_f32().is_ok_and(|own| tensor.to_f32().is_ok_and(|copy| own == copy)),
        })
}

/// The head of labels with their names: those in the metadata, else `LABEL_0`, `LABEL_1`, …, as transformers names them.
fn classifier(place: &str, score: &RawTensor, metadata: &BTreeMap<String, String>) -> Result<HostClassifier> {
    let weight = numbers(place, SCORE, score)?;
    let count = score.shape.first().copied().unwrap_or_default();
    let labels = match metadata.get(provenance::LABELS) {
        None => (0..count).map(|number| format!("LABEL_{number}")).collect(),
        Some(text) => serde_json::from_str::<Vec<String>>(text).unwrap_or_default(),
    };
    if labels.len() != count {
        let message = format!("has a head of {count} labels, and `{}` names {}", provenance::LABELS, labels.len());
        return Err(Error::input(place, message));
    }
    Ok(HostClassifier { labels, weight })
}

/// The values in f32, all finite.
fn numbers(place: &str, half: &str, tensor: &RawTensor) -> Result<Vec<f32>> {
    tensor.check_finite(format_args!("{place}: {half}"))?;
    tensor.to_f32()
}
