//! The adapter that a run begins with: fresh, or another one's values.

use std::path::Path;

use super::host::HostAdapter;
use super::init::Init;
use super::spec::AdapterSpec;
use crate::error::{Error, Place, Result};
use crate::model::BaseFiles;
use crate::quant::Quant;

impl AdapterSpec {
    /// The adapter before the first step of a run on `base`, of which the projections are packed by `quant`.
    ///
    /// # Errors
    /// Those of [`AdapterSpec::initialise`], and of [`HostAdapter::load_over`] for one to begin with. Input: its rank, scale,
    /// kind or projections are not those of the settings; first values are asked for besides.
    pub fn begin(&self, base: &BaseFiles, quant: Quant, seed: u64) -> Result<HostAdapter> {
        if let (Some(folder), true) = (&self.from, self.init != Init::Kaiming) {
            let message =
                format!("is `{}`, and `from` gives the values of the adapter in {}", self.init, folder.display());
            return Err(Error::input(Place::setting("adapter.init"), message).hint("remove one of the two"));
        }
        let fresh = self.initialise(base, quant, seed)?;
        let Some(folder) = &self.from else { return Ok(fresh) };
        let found = HostAdapter::load_over(folder, base)?;
        self.check_like(&fresh, &found, folder)?;
        // Dropout is a matter of training, and provenance that of another run.
        Ok(HostAdapter { pairs: found.pairs, ..fresh })
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
        let mut pairs = found.pairs.iter().filter(|(module, _)| fresh.pairs.contains_key(*module));
        let is_unlike =
            |(_, pair): &(&String, &super::host::HostPair)| pair.rank != self.rank || pair.scale != self.scale() as f32;
        if errors.is_empty()
            && let Some((module, pair)) = pairs.find(is_unlike)
        {
            let message = format!(
                "give every pair rank {} and scale {}; in {folder}, {module} has rank {} and scale {}",
                self.rank,
                self.scale(),
                pair.rank,
                pair.scale
            );
            errors.push(Error::input(Place::setting("adapter.rank"), message)
                .hint("`adapter.rslora` decides the scale too; adapters with ranks of their own for some projections cannot be trained on"));
        }
        Error::none_of(errors, ())
    }
}
