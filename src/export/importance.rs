//! The importance of the columns of projections, by which quantised types weigh their errors: the mean square of the activations that
//! a column is multiplied by (an importance matrix, as llama.cpp calls it).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{DType, Tensor};

use crate::data::Encoded;
use crate::error::{Error, Result};
use crate::files::gguf::{Gguf, Value};
use crate::model::load::LoadOptions;
use crate::model::{BaseFiles, Decoder};
use crate::nn::{Adapter, Observer};

/// The endings of the tensors of a file: the sums of squares, and the number of activations in them.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// The least importance, as a share of the mean: a column that was never used must not lose all of its precision.
const LEAST_SHARE: f32 = 1e-6;
/// The most tokens that are measured: further ones change little.
pub const MAX_TOKENS: usize = 4096;

/// The importance of columns, by tensor.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// By the name of the tensor, in a GGUF file or at Hugging Face.
    by_tensor: BTreeMap<String, Vec<f32>>,
}

impl Importance {
    /// Runs the first [`MAX_TOKENS`] tokens of examples through `base`, a layer at a time, with `adapter` if there is one.
    ///
    /// # Errors
    /// Those of loading. Input: there is no token.
    pub fn measure(
        base: &BaseFiles,
        options: &LoadOptions,
        sequences: &[Encoded],
        adapter: Option<&Adapter>,
    ) -> Result<Self> {
        let mut left = MAX_TOKENS;
        let (mut ids, mut lengths) = (Vec::new(), Vec::new());
        for (sequence, _) in sequences.iter().flat_map(Encoded::sequences) {
            let part = &sequence[..sequence.len().min(left)];
            if !part.is_empty() {
                ids.extend_from_slice(part);
                lengths.push(part.len());
                left -= part.len();
            }
        }
        if ids.is_empty() {
            return Err(Error::input("importance matrix", "there is no example to measure it on"));
        }
        let sums = Sums::default();
        Decoder::stream_inputs(base, options, (&ids, &lengths), adapter, &sums)?;
        let sites = base.config().sites();
        let tokens = ids.len() as f64;
        let by_tensor = sums.0.into_inner().into_iter().filter_map(|(site, sums)| {
            let means = sums.into_iter().map(|sum| (sum / tokens) as f32).collect();
            Some((format!("{}.weight", sites.get(site)?.module), floored(means)?))
        });
        Ok(Self { by_tensor: by_tensor.collect() })
    }

    /// Reads llama.cpp's file of an importance matrix, in its GGUF form.
    ///
    /// # Errors
    /// Input: another kind of file; a tensor without its counts.
    pub fn read(path: &Path) -> Result<Self> {
        let file = Gguf::open(path)?;
        if file.get("general.type") != Some(&Value::String("imatrix".to_owned())) {
            let message = "is no importance matrix (`general.type` is not `imatrix`)";
            return Err(Error::input(path, message)
                .hint("llama.cpp's `llama-imatrix` writes one; its older form without GGUF is not read"));
        }
        let mut by_tensor = BTreeMap::new();
        for name in file.names().filter_map(|name| name.strip_suffix(SUMS)) {
            let sums = file.tensor(&format!("{name}{SUMS}"))?.to_f32()?;
            let counts = file.tensor(&format!("{name}{COUNTS}"))?.to_f32()?;
            // One count for each expert of a layer; the models of this program have one.
            let &[count] = &counts[..] else {
                let message = format!("`{name}` has {} experts; expected one", counts.len());
                return Err(Error::input(path, message));
            };
            if count > 0.0 {
                let means = floored(sums.into_iter().map(|sum| sum / count).collect());
                by_tensor.extend(means.map(|means| (name.to_owned(), means)));
            }
        }
        if by_tensor.is_empty() {
            return Err(Error::input(path, "has no sums of activations"));
        }
        Ok(Self { by_tensor })
    }

    /// The importance of the `columns` of a tensor by one of its names; `None` where it was not measured.
    ///
    /// # Errors
    /// Input: it has another number of columns.
    pub fn of(&self, names: [&str; 2], columns: usize) -> Result<Option<&[f32]>> {
        let Some(found) = names.into_iter().find_map(|name| self.by_tensor.get(name)) else { return Ok(None) };
        if found.len() != columns {
            let message = format!("has {} columns of {}, which has {columns}", found.len(), names[0]);
            return Err(Error::input("importance matrix", message).hint("it is that of another model"));
        }
        Ok(Some(found))
    }
}

/// Means of which none is zero; `None` where all are, or one is not finite.
fn floored(means: Vec<f32>) -> Option<Vec<f32>> {
    let mean = means.iter().sum::<f32>() / means.len().max(1) as f32;
    let is_usable = mean > 0.0 && mean.is_finite();
    is_usable.then(|| means.into_iter().map(|value| value.max(LEAST_SHARE * mean)).collect())
}

/// The sums of squares of the inputs of projections, by site.
#[derive(Debug, Default)]
struct Sums(RefCell<BTreeMap<usize, Vec<f64>>>);

impl Observer for Sums {
    fn inputs(&self, x: &Tensor<2>, sites: &[usize]) {
        let squares = x.clone().cast(DType::F32).square().sum_dim(0).into_data();
        let mut sums = self.0.borrow_mut();
        for site in sites {
            let sum = sums.entry(*site).or_insert_with(|| vec![0.0; squares.num_elements()]);
            sum.iter_mut().zip(squares.iter::<f32>()).for_each(|(sum, square)| *sum += f64::from(square));
        }
    }
}
