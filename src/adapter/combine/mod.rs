//! The combination of several adapters into one, equal to PEFT's `add_weighted_adapter`.
//!
//! An adapter changes a weight by `s·B·A`. [`Method::Cat`] and [`Method::Svd`] combine these products; the other methods combine
//! the factors themselves, `A` with `A` and `B` with `B`, each weighted by `√|w·s|`.

mod factors;

use std::collections::{BTreeMap, BTreeSet};

use rand::SeedableRng;
use rand_chacha::ChaCha12Rng;

use super::host::{HostAdapter, HostPair, SCORE};
use super::svd;
use crate::error::{Error, Place, Result, counted};
use crate::settings::choice;
use factors::Mixture;

choice! {
    /// The method that combines adapters.
    Method {
        /// The weighted sum of the factors. Cheap, and rough: products of different adapters' factors come in.
        Linear = "linear",
        /// The exact weighted sum of the updates, at the sum of the ranks.
        Cat = "cat",
        /// The best approximation of the weighted sum of the updates at a given rank (truncated singular value decomposition).
        Svd = "svd",
        /// The largest values of each factor, those of the majority's sign averaged (TIES, Yadav et al. 2023).
        Ties = "ties",
        /// Values dropped at random, the rest scaled up, then the weighted sum (DARE, Yu et al. 2024).
        Dare = "dare",
        /// Values dropped at random, the rest scaled up, then TIES's vote.
        DareTies = "dare-ties",
        /// The largest values of each factor, then the weighted sum.
        MagnitudePrune = "magnitude-prune",
    }
}

choice! {
    /// The vote on the sign of a value.
    Majority {
        /// The sign of the sum of the values.
        Total = "total",
        /// The sign that more adapters have.
        Frequency = "frequency",
    }
}

/// The settings of a combination.
#[derive(Debug, Clone)]
pub struct CombineOptions {
    /// How.
    pub method: Method,
    /// The weight of each adapter; negative ones subtract.
    pub weights: Vec<f64>,
    /// The share of values that a pruning method keeps; its default is one half.
    pub density: Option<f64>,
    /// The vote of TIES.
    pub majority: Majority,
    /// The rank of an SVD; the largest of the adapters' by default.
    pub rank: Option<usize>,
    /// Decides which values DARE drops.
    pub seed: u64,
}

/// The share of values that is kept where no other is given.
const DEFAULT_DENSITY: f64 = 0.5;

impl Method {
    /// Whether values are left out of the factors.
    fn prunes(self) -> bool {
        matches!(self, Self::Ties | Self::Dare | Self::DareTies | Self::MagnitudePrune)
    }
}

impl CombineOptions {
    /// Whether the options fit `count` adapters and each other.
    ///
    /// # Errors
    /// Input: every option that does not.
    pub fn check(&self, count: usize) -> Result<()> {
        let mut errors = Vec::new();
        let mut refuse =
            |option: &'static str, message: String| errors.push(Error::input(Place::argument(option), message));
        if self.weights.len() != count {
            let weights = counted(self.weights.len(), "weight");
            refuse("--weights", format!("has {weights}; expected one for each of {}", counted(count, "adapter")));
        }
        if let Some(weight) = self.weights.iter().find(|weight| !weight.is_finite()) {
            refuse("--weights", format!("has {weight}; expected finite numbers"));
        }
        match self.density {
            Some(_) if !self.method.prunes() => {
                refuse("--density", format!("has no meaning for `{}`, which keeps every value", self.method));
            }
            Some(density) if !(density > 0.0 && density <= 1.0) => {
                refuse("--density", format!("is {density}; expected a share above 0, at most 1"));
            }
            _ => {}
        }
        if self.rank.is_some() && self.method != Method::Svd {
            refuse("--rank", format!("has no meaning for `{}`; only `svd` takes a rank", self.method));
        }
        Error::none_of(errors, ())
    }
}

/// Combines `adapters`, each given with the place that errors name. Provenance that all of them share is kept.
///
/// # Errors
/// Input: options that do not fit ([`CombineOptions::check`]); adapters of different bases, or trained over differently
/// quantised ones; pairs of one module with different sizes, or with different ranks where the method combines factors.
pub fn combine(adapters: &[(String, HostAdapter)], options: &CombineOptions) -> Result<HostAdapter> {
    options.check(adapters.len())?;
    let adapters: Vec<(String, HostAdapter)> =
        adapters.iter().map(|(place, adapter)| (place.clone(), adapter.without_subtraction().into_owned())).collect();
    let adapters = adapters.as_slice();
    // A single adapter needs no vote and no decomposition (as in PEFT).
    let method = if adapters.len() == 1 { Method::Linear } else { options.method };
    let modules: BTreeSet<&str> =
        adapters.iter().flat_map(|(_, adapter)| adapter.pairs.keys().map(String::as_str)).collect();
    let mut errors: Vec<Error> =
        ["burnish.base_sha256", "burnish.quant"].iter().filter_map(|key| check_shared(adapters, key).err()).collect();
    errors.extend(adapters.iter().filter_map(|(place, adapter)| check_is_plain(place, adapter).err()));
    errors.extend(modules.iter().filter_map(|module| check_pairs(adapters, module, method).err()));
    errors.extend(adapters.iter().filter_map(|(place, adapter)| {
        let rows = adapter.rows.iter().flat_map(|rows| rows.values.keys());
        let score = adapter.classifier.iter().map(|_| SCORE);
        let name = adapter.whole.keys().chain(rows).map(String::as_str).chain(score).next()?;
        let message = "is trained in part or as a whole, which cannot be combined";
        Some(Error::input(format_args!("{place}: tensor {name}"), message))
    }));
    Error::none_of(errors, ())?;

    let largest = adapters.iter().flat_map(|(_, adapter)| adapter.pairs.values()).map(|pair| pair.rank).max();
    let svd_rank = options.rank.or(largest).unwrap_or(1);
    let mut mixture = Mixture {
        method,
        density: options.density.unwrap_or(DEFAULT_DENSITY),
        majority: options.majority,
        random: ChaCha12Rng::seed_from_u64(options.seed),
    };
    let mut pairs = BTreeMap::new();
    for module in modules {
        let parts: Vec<(f64, &HostPair)> = adapters
            .iter()
            .zip(&options.weights)
            .filter_map(|((_, adapter), weight)| Some((*weight, adapter.pairs.get(module)?)))
            .collect();
        let pair = match method {
            Method::Cat => cat(&parts),
            Method::Svd => svd::truncated(&cat(&parts), svd_rank),
            _ => mixture.of(&parts),
        };
        pairs.insert(module.to_owned(), pair);
    }
    let rank = pairs.values().map(|pair| pair.rank).max().unwrap_or(1);
    let (first, others) = adapters.split_first().map_or((None, &[][..]), |(first, others)| (Some(&first.1), others));
    let shared = first.map_or_else(BTreeMap::new, |first| {
        let is_shared = |(key, value): &(&String, &String)| {
            others.iter().all(|(_, other)| other.metadata.get(*key) == Some(*value))
        };
        first.metadata.iter().filter(is_shared).map(|(key, value)| (key.clone(), value.clone())).collect()
    });
    Ok(HostAdapter { pairs, rank, alpha: rank as f64, metadata: shared, ..HostAdapter::default() })
}

/// Whether an adapter has nothing but low-rank pairs. PEFT drops the magnitudes of DoRA in silence here.
fn check_is_plain(place: &str, adapter: &HostAdapter) -> Result<()> {
    match adapter.pairs.iter().find(|(_, pair)| pair.magnitude.is_some()) {
        None => Ok(()),
        Some((module, _)) => {
            let at = format_args!("{place}: module {module}");
            let error =
                Error::input(at, "has DoRA's magnitudes, which belong to its own factors and cannot be combined");
            Err(error.hint("merge one of the adapters into the base, and train or apply the others over that"))
        }
    }
}

/// Whether the adapters that record `key` agree on it.
fn check_shared(adapters: &[(String, HostAdapter)], key: &str) -> Result<()> {
    let mut known = adapters.iter().filter_map(|(place, adapter)| Some((place, adapter.metadata.get(key)?)));
    let Some((first_place, first)) = known.next() else { return Ok(()) };
    match known.find(|(_, value)| *value != first) {
        Some((place, value)) => {
            let message = format!("`{key}` is {value}, and that of {first_place} is {first}");
            Err(Error::input(place, message).hint("only adapters of the same base, quantised alike, can be combined"))
        }
        None => Ok(()),
    }
}

/// Whether the pairs of `module` fit together.
fn check_pairs(adapters: &[(String, HostAdapter)], module: &str, method: Method) -> Result<()> {
    let mut pairs = adapters.iter().filter_map(|(place, adapter)| Some((place, adapter.pairs.get(module)?)));
    let Some((first_place, first)) = pairs.next() else { return Ok(()) };
    for (place, pair) in pairs {
        let at = format_args!("{place}: module {module}");
        if (pair.input, pair.output) != (first.input, first.output) {
            let message = format!(
                "changes a weight [{}, {}], and {first_place} one [{}, {}]",
                pair.output, pair.input, first.output, first.input
            );
            return Err(Error::input(at, message).hint("only adapters of the same base can be combined"));
        }
        if pair.rank != first.rank && !matches!(method, Method::Cat | Method::Svd) {
            let message =
                format!("has rank {}, and {first_place} rank {}; `{method}` needs equal ranks", pair.rank, first.rank);
            return Err(Error::input(at, message).hint("`--method cat` and `--method svd` take any ranks"));
        }
    }
    Ok(())
}

/// The pairs one beside the other: `Σ w·s·B·A` exactly, each weight and scale in its rows of `A`.
fn cat(parts: &[(f64, &HostPair)]) -> HostPair {
    let (input, output) = parts.first().map_or((0, 0), |(_, pair)| (pair.input, pair.output));
    let rank = parts.iter().map(|(_, pair)| pair.rank).sum();
    let a = parts.iter().flat_map(|(weight, pair)| {
        let factor = (weight * f64::from(pair.scale)) as f32;
        pair.a.iter().map(move |value| value * factor)
    });
    let row = |row: usize| parts.iter().flat_map(move |(_, pair)| &pair.b[row * pair.rank..(row + 1) * pair.rank]);
    HostPair {
        a: a.collect(),
        b: (0..output).flat_map(row).copied().collect(),
        rank,
        input,
        output,
        scale: 1.0,
        ..HostPair::default()
    }
}
