//! The adapter that a run begins with: fresh, or another one's values.

use std::collections::BTreeMap;
use std::path::Path;

use super::host::{HostAdapter, HostRows, HostTensor};
use super::init::{self, Init};
use super::spec::AdapterSpec;
use crate::error::{Error, Place, Result};
use crate::model::{BaseFiles, ModelConfig};
use crate::quant::Quant;

/// A token whose rows are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainedToken {
    /// Its id.
    pub id: u32,
    /// The base's tokenizer does not have it.
    pub is_new: bool,
}

/// The rows of `tokens` before the first step: their own, or for a new one the mean of all rows.
fn first_rows(base: &BaseFiles, tokens: &[TrainedToken]) -> Result<Option<HostRows>> {
    if tokens.is_empty() {
        return Ok(None);
    }
    let config = base.config();
    let head = (!config.tied_head).then_some(config.names.head);
    let mut values = BTreeMap::new();
    for module in std::iter::once(config.names.embedding).chain(head) {
        let tensor = base.tensor(&format!("{module}.weight"))?;
        let (known, width) = (base.stored_vocabulary(), config.hidden_size);
        let mut row = vec![0.0; width];
        let mut mean = vec![0.0f64; width];
        for index in 0..known {
            tensor.decode(index * width, &mut row);
            mean.iter_mut().zip(&row).for_each(|(sum, value)| *sum += f64::from(*value) / known as f64);
        }
        let mut rows = Vec::with_capacity(tokens.len() * width);
        for token in tokens {
            match token.is_new {
                true => rows.extend(mean.iter().map(|value| *value as f32)),
                false => {
                    tensor.decode(token.id as usize * width, &mut row);
                    rows.extend(&row);
                }
            }
        }
        values.insert(module.to_owned(), rows);
    }
    Ok(Some(HostRows { ids: tokens.iter().map(|token| token.id).collect(), values }))
}

/// Whether a classifier leaves alone the model's own head, which it does not use.
fn check_head(adapter: &HostAdapter, config: &ModelConfig) -> Result<()> {
    let head = config.names.head;
    let is_changed = adapter.pairs.contains_key(head) || adapter.whole.contains_key(&config.head_name());
    match is_changed {
        true => {
            let message = format!("take {head}, which a classifier does not use: it has a head of labels");
            Err(Error::input(Place::setting("adapter.targets"), message).hint("leave it out"))
        }
        false => Ok(()),
    }
}

impl AdapterSpec {
    /// The adapter before the first step of a run on `base`, of which the projections are packed by `quant`, and which has rows for
    /// the `tokens` to be trained, and a head of `labels` where there are any.
    ///
    /// # Errors
    /// Those of [`AdapterSpec::initialise`], and of [`HostAdapter::load_over`] for one to begin with. Input: its rank, scale,
    /// kind or projections are not those of the settings; first values are asked for besides.
    pub fn begin(
        &self,
        base: &BaseFiles,
        quant: Quant,
        tokens: &[TrainedToken],
        labels: &[String],
        seed: u64,
    ) -> Result<HostAdapter> {
        if let (Some(folder), true) = (&self.from, self.init != Init::Kaiming) {
            let message =
                format!("is `{}`, and `from` gives the values of the adapter in {}", self.init, folder.display());
            return Err(Error::input(Place::setting("adapter.init"), message).hint("remove one of the two"));
        }
        let (mut fresh, whole) = Error::both(self.initialise(base, quant, seed), self.whole(base.config()))?;
        for name in whole {
            // The matrix of a tied head is the embedding's.
            let own = if base.has(&name) { name.clone() } else { base.config().embedding_name() };
            let tensor = base.tensor(&own)?;
            fresh.whole.insert(name, HostTensor { values: tensor.to_f32()?, shape: tensor.shape });
        }
        fresh.rows = first_rows(base, tokens)?;
        if !labels.is_empty() {
            fresh.classifier = Some(init::classifier(labels, base.config().hidden_size, seed));
            check_head(&fresh, base.config())?;
        }
        fresh.check_against(base.config())?;
        let Some(folder) = &self.from else { return Ok(fresh) };
        let found = HostAdapter::load_over(folder, base)?;
        self.check_like(&fresh, &found, folder)?;
        // Dropout is a matter of training, and provenance that of another run.
        let classifier = found.classifier.or(fresh.classifier);
        Ok(HostAdapter { pairs: found.pairs, whole: found.whole, rows: found.rows, classifier, ..fresh })
    }

    /// Whether `found`, from `folder`, has the shape that the settings ask for, as `fresh` does.
    fn check_like(&self, fresh: &HostAdapter, found: &HostAdapter, folder: &Path) -> Result<()> {
        let folder = folder.display();
        let mut errors = Vec::new();
        let mut differs = |key: &'static str, message: String, hint: String| {
            errors.push(Error::input(Place::setting(key), message).hint(hint));
        };
        if found.rank != self.rank {
            let message = format!("is {}; the adapter in {folder} has rank {}", self.rank, found.rank);
            differs("adapter.rank", message, format!("set it to {}", found.rank));
        }
        if found.alpha != self.alpha {
            let message = format!("is {}; the adapter in {folder} has alpha {}", self.alpha, found.alpha);
            differs("adapter.alpha", message, format!("set it to {}", found.alpha));
        }
        let has_magnitudes = found.pairs.values().any(|pair| pair.magnitude.is_some());
        if has_magnitudes != self.dora {
            let kind = if has_magnitudes { "a DoRA" } else { "no DoRA" };
            let message = format!("is {}; the adapter in {folder} is {kind}", self.dora);
            differs("adapter.dora", message, format!("set it to {has_magnitudes}"));
        }
        let missing: Vec<&str> =
            fresh.pairs.keys().filter(|module| !found.pairs.contains_key(*module)).map(String::as_str).collect();
        let extra: Vec<&str> =
            found.pairs.keys().filter(|module| !fresh.pairs.contains_key(*module)).map(String::as_str).collect();
        if let Some(first) = missing.first().or(extra.first()) {
            let verb = if missing.is_empty() { "do not take" } else { "take" };
            let has = if missing.is_empty() { "has" } else { "lacks" };
            let message = format!(
                "{verb} {first}, which the adapter in {folder} {has}; {} projections differ",
                missing.len() + extra.len()
            );
            let mut names: Vec<&str> = found.pairs.keys().filter_map(|module| module.rsplit('.').next()).collect();
            names.sort_unstable();
            names.dedup();
            differs("adapter.targets", message, format!("it has {names:?}"));
        }
        let names = |adapter: &HostAdapter| adapter.whole.keys().cloned().collect::<Vec<_>>();
        let (own, theirs) = (names(fresh), names(found));
        if let Some(name) = own.iter().chain(&theirs).find(|name| !own.contains(name) || !theirs.contains(name)) {
            let (verb, has) = if own.contains(name) { ("train", "does not") } else { ("do not train", "does") };
            let message = format!("{verb} {name} as a whole, and the adapter in {folder} {has}");
            errors.push(
                Error::input(Place::setting("adapter.modules_to_save"), message)
                    .hint("`adapter.modules_to_save` and `adapter.bias` decide which tensors those are"),
            );
        }
        let ids = |adapter: &HostAdapter| adapter.rows.as_ref().map(|rows| rows.ids.clone()).unwrap_or_default();
        if ids(fresh) != ids(found) {
            let message = format!("are tokens {:?}; the adapter in {folder} has rows for {:?}", ids(fresh), ids(found));
            errors.push(Error::input(Place::setting("adapter.new_tokens"), message));
        }
        // An adapter without a head of labels is a beginning for one with a new head.
        if let Some(theirs) = found.classifier.as_ref().map(|classifier| &classifier.labels) {
            let own = fresh.classifier.as_ref().map(|classifier| &classifier.labels);
            if own != Some(theirs) {
                let own = own.map_or_else(|| "none".to_owned(), |labels| labels.join(", "));
                let message = format!("are {own}; the adapter in {folder} is a classifier of {}", theirs.join(", "));
                errors.push(Error::input(Place::setting("data.labels"), message));
            }
        }
        let mut pairs = found.pairs.iter().filter_map(|(module, pair)| Some((module, pair, fresh.pairs.get(module)?)));
        if errors.is_empty()
            && let Some((module, pair, own)) =
                pairs.find(|(_, pair, own)| (pair.rank, pair.scale) != (own.rank, own.scale))
        {
            let message = format!(
                "gives {module} rank {} and scale {}; in {folder} it has rank {} and scale {}",
                own.rank, own.scale, pair.rank, pair.scale
            );
            errors.push(
                Error::input(Place::setting("adapter.rank"), message)
                    .hint("`adapter.rank_pattern`, `adapter.alpha_pattern` and `adapter.rslora` decide them too"),
            );
        }
        Error::none_of(errors, ())
    }
}
