//! The map of an adapter: the size of its update at each module against the weight there, and the directions that it spreads over.

use rayon::prelude::*;
use serde::Serialize;

use super::host::HostAdapter;
use super::merge::{MergeBase, Source};
use super::svd::singular_values;
use crate::error::Result;
use crate::files::RawTensor;
use crate::model::sites::Site;
use crate::model::{BaseFiles, SiteKind};
use crate::quant::Quant;

/// Values that are decoded at once: a weight is read in pieces, whatever its size.
const PIECE_VALUES: usize = 1 << 20;

/// The update of one module, `ΔW = scale · B · A`. Of DoRA it is the low-rank part, without the magnitudes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModuleUpdate {
    /// The path of the module.
    pub module: String,
    /// The last part of the path; all of it in a tower or its connector.
    pub name: String,
    /// The layer of the decoder; none for any other module.
    pub layer: Option<usize>,
    /// The rank of the pair.
    pub rank: usize,
    /// `‖ΔW‖_F`.
    pub update_norm: f64,
    /// The largest singular value of `ΔW`.
    pub spectral_norm: f64,
    /// `exp(−Σ pᵢ ln pᵢ)` with `pᵢ = σᵢ / Σσ` (Roy and Vetterli 2007): the number of directions that the update uses; 0 where there is
    /// no update.
    pub effective_rank: f64,
    /// `‖W‖_F` of the base's weight as the adapter saw it; none where the time did not suffice.
    pub weight_norm: Option<f64>,
}

/// The update at every pair of `adapter`, in the order of the model. The weights are those of `base`, packed by `quant` and decoded;
/// the rest of their norms is left out once `has_time` says no.
///
/// # Errors
/// Input: a weight that cannot be read.
pub fn map(
    adapter: &HostAdapter,
    base: &BaseFiles,
    quant: Quant,
    has_time: &dyn Fn() -> bool,
) -> Result<Vec<ModuleUpdate>> {
    let adapter = adapter.without_subtraction();
    let sites = base.config().all_sites().into_iter().map(|(_, site)| site);
    let sites: Vec<Site> = sites.filter(|site| adapter.pairs.contains_key(&site.module)).collect();
    let spectra: Vec<Vec<f64>> = sites.par_iter().map(|site| singular_values(&adapter.pairs[&site.module])).collect();
    let source = Source { base, weights: MergeBase::Dequantized(quant) };
    let mut updates = Vec::with_capacity(sites.len());
    for (site, values) in sites.iter().zip(spectra) {
        let weight_norm = if has_time() { Some(norm_of(&source, site)?) } else { None };
        updates.push(ModuleUpdate {
            module: site.module.clone(),
            name: if site.kind.is_of_vision() { site.module.clone() } else { site.name().to_owned() },
            layer: site.layer,
            rank: adapter.pairs[&site.module].rank,
            update_norm: values.iter().map(|value| value.powi(2)).sum::<f64>().sqrt(),
            spectral_norm: values.first().copied().unwrap_or(0.0),
            effective_rank: effective_rank(&values),
            weight_norm,
        });
    }
    Ok(updates)
}

/// The effective rank of singular values, as [`ModuleUpdate::effective_rank`] has it.
fn effective_rank(values: &[f64]) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum == 0.0 {
        return 0.0;
    }
    let shares = values.iter().map(|value| value / sum).filter(|share| *share > 0.0);
    (-shares.map(|share| share * share.ln()).sum::<f64>()).exp()
}

/// `‖W‖_F` of a site's weight, that of the embedding for a tied head.
fn norm_of(source: &Source<'_>, site: &Site) -> Result<f64> {
    let config = source.base.config();
    let name = match site.kind {
        SiteKind::Head if config.tied_head => config.embedding_name(),
        _ => format!("{}.weight", site.module),
    };
    let tensor = source.tensor(&name)?;
    tensor.check_size()?;
    let sum = sum_of_squares(&tensor);
    tensor.bytes.release();
    Ok(sum.sqrt())
}

fn sum_of_squares(tensor: &RawTensor) -> f64 {
    let values = tensor.elements();
    let pieces: Vec<f64> = (0..values.div_ceil(PIECE_VALUES))
        .into_par_iter()
        .map(|piece| {
            let first = piece * PIECE_VALUES;
            let mut decoded = vec![0f32; PIECE_VALUES.min(values - first)];
            tensor.decode(first, &mut decoded);
            decoded.iter().map(|value| f64::from(*value).powi(2)).sum()
        })
        .collect();
    // In the order of the values, so that the sum does not depend on the threads.
    pieces.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_effective_rank_counts_directions() {
        assert_eq!(effective_rank(&[]), 0.0);
        assert_eq!(effective_rank(&[0.0, 0.0]), 0.0);
        assert!((effective_rank(&[3.0, 0.0, 0.0]) - 1.0).abs() < 1e-12);
        assert!((effective_rank(&[2.0; 4]) - 4.0).abs() < 1e-12);
        let between = effective_rank(&[4.0, 1.0]);
        assert!(between > 1.0 && between < 2.0, "{between}");
    }
}
