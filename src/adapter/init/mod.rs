//! The first values of an adapter: its factors, by one of PEFT's ways, and the magnitudes of DoRA.

mod decomposition;
mod random;

use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::host::{HostAdapter, HostClassifier, HostPair};
use super::merge::{MergeBase, Source};
use super::spec::{AdaptedSite, AdapterSpec};
use crate::error::{Error, Place, Result};
use crate::model::{BaseFiles, Site, SiteKind};
use crate::quant::Quant;
use crate::settings::choice;

choice! {
    /// The first values of the factors.
    Init {
        /// `A` uniform within `±1/√in` (Kaiming with `a = √5`), `B` zero: PEFT's default.
        Kaiming = "kaiming",
        /// `A` normal with a standard deviation of `1/rank`, `B` zero.
        Gaussian = "gaussian",
        /// Random factors in orthogonal spaces, so that their product is zero. The rank has to be even.
        Orthogonal = "orthogonal",
        /// The largest singular values of the weight with their vectors (PiSSA, Meng et al. 2024).
        Pissa = "pissa",
        /// The beginning of the weight's QR decomposition (OLoRA, Büyükakyüz 2024).
        Olora = "olora",
    }
}

impl Init {
    /// Whether the factors begin with a product other than zero, which is subtracted from then on.
    pub fn subtracts(self) -> bool {
        matches!(self, Self::Pissa | Self::Olora)
    }

    /// Makes the pairs of `adapter` subtract what this initialisation takes from the weights of `base`, as PEFT does again when it
    /// loads an adapter that was not converted.
    ///
    /// # Errors
    /// A weight that cannot be read.
    pub(super) fn subtract_from(self, base: &BaseFiles, adapter: &mut HostAdapter) -> Result<()> {
        let original = Source { base, weights: MergeBase::Original };
        let mut generator = ChaCha8Rng::seed_from_u64(0);
        for (_, site) in base.config().all_sites() {
            let Some(pair) = adapter.pairs.get_mut(&site.module) else { continue };
            let (rank, scale) = (pair.rank, pair.scale);
            let first = match self {
                Self::Pissa => {
                    let weight = weight_of(&original, &site)?;
                    decomposition::pissa(&weight, site.columns, rank, scale, decomposition::EXACT, &mut generator)
                }
                Self::Olora => decomposition::olora(&weight_of(&original, &site)?, site.columns, rank),
                Self::Kaiming | Self::Gaussian | Self::Orthogonal => continue,
            };
            pair.subtracted = Some(Arc::new(first));
        }
        Ok(())
    }
}

impl AdapterSpec {
    /// A fresh adapter for `base`, of which the projections are packed by `quant`. It changes nothing yet.
    ///
    /// # Errors
    /// Input: a target that the model does not have; a rank above the smaller side of a projection, or an odd one for orthogonal
    /// factors; dropout where it has no meaning; a weight that cannot be read, where the values are made from it.
    pub fn initialise(&self, base: &BaseFiles, quant: Quant, seed: u64) -> Result<HostAdapter> {
        let mut adapter =
            HostAdapter { rank: self.rank, alpha: self.alpha, dropout: self.dropout, ..HostAdapter::default() };
        let adapted = self.adapted(base.config())?;
        self.check(&adapted)?;
        // An adapter over packed weights sees these decoded; a decomposition is that of the weights as they were before.
        let original = Source { base, weights: MergeBase::Original };
        let seen = Source { base, weights: MergeBase::Dequantized(quant) };
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        for AdaptedSite { site, rank, scale } in adapted {
            let (output, input, scale) = (site.rows, site.columns, scale as f32);
            let [a, b] = match self.init {
                // As PEFT has it for an embedding.
                Init::Kaiming | Init::Gaussian if site.kind == SiteKind::Embedding => {
                    random::normal_factor(&mut generator, rank, output, input)
                }
                Init::Kaiming => random::kaiming(&mut generator, rank, output, input),
                Init::Gaussian => random::gaussian(&mut generator, rank, output, input),
                Init::Orthogonal => random::orthogonal(&mut generator, rank, output, input),
                Init::Pissa => {
                    let weight = weight_of(&original, &site)?;
                    decomposition::pissa(&weight, input, rank, scale, decomposition::NEAR, &mut generator)
                }
                Init::Olora => decomposition::olora(&weight_of(&original, &site)?, input, rank),
            };
            let magnitude = if self.dora { Some(row_norms(&weight_of(&seen, &site)?, input)) } else { None };
            let subtracted = self.init.subtracts().then(|| Arc::new([a.clone(), b.clone()]));
            adapter.pairs.insert(site.module, HostPair { a, b, rank, input, output, scale, magnitude, subtracted });
        }
        Ok(adapter)
    }

    /// Whether adapters of these sites can have the settings.
    fn check(&self, sites: &[AdaptedSite]) -> Result<()> {
        let mut problems = Vec::new();
        let mut refuse = |key: &'static str, message: String, hint: &str| {
            problems.push(Error::input(Place::setting(key), message).hint(hint));
        };
        let odd = sites.iter().find(|site| !site.rank.is_multiple_of(2));
        if let (Some(odd), Init::Orthogonal) = (odd, self.init) {
            let message = format!("is {}; `init = \"orthogonal\"` splits it into two halves", odd.rank);
            refuse("adapter.rank", message, "set an even rank");
        }
        if let Some(embedding) = sites.iter().find(|site| site.site.kind == SiteKind::Embedding) {
            let module = &embedding.site.module;
            if self.dora {
                refuse(
                    "adapter.dora",
                    format!("is true, and the adapter changes {module}"),
                    "DoRA is for linear layers: leave it out",
                );
            }
            if !matches!(self.init, Init::Kaiming | Init::Gaussian) {
                let message = format!("is `{}`, and the adapter changes {module}", self.init);
                refuse("adapter.init", message, "an embedding begins with `kaiming` or `gaussian`");
            }
        }
        let without_dropout = match (self.dora, self.init) {
            (true, _) => {
                Some("DoRA scales the whole output of a projection, of which dropout changes a part only".to_owned())
            }
            (false, init) if init.subtracts() => {
                Some(format!("`init = \"{init}\"` takes away from the base what dropout would leave out at random"))
            }
            _ => None,
        };
        if let Some(reason) = without_dropout.filter(|_| self.dropout > 0.0) {
            refuse("adapter.dropout", format!("is {}; {reason}", self.dropout), "set it to 0");
        }
        Error::none_of(problems, ())
    }
}

/// The stream of the seed that begins a head of labels: not that of the factors, which it leaves as they are.
const SCORE_STREAM: u64 = 1;

/// The head of `labels` before the first step, for hidden states of this width.
pub(super) fn classifier(labels: &[String], width: usize, seed: u64) -> HostClassifier {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    generator.set_stream(SCORE_STREAM);
    HostClassifier { labels: labels.to_vec(), weight: random::score(&mut generator, labels.len() * width) }
}

/// The weight of a site, that of the embedding for a tied head.
fn weight_of(source: &Source<'_>, site: &Site) -> Result<Vec<f32>> {
    let config = source.base.config();
    let name = match site.kind {
        SiteKind::Head if config.tied_head => config.embedding_name(),
        _ => format!("{}.weight", site.module),
    };
    let tensor = source.tensor(&name)?;
    let values = tensor.to_f32();
    tensor.bytes.release();
    values
}

/// `‖W_r‖` of every row of a weight.
fn row_norms(weight: &[f32], columns: usize) -> Vec<f32> {
    let norm = |row: &[f32]| row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
    weight.chunks(columns).map(norm).collect()
}
