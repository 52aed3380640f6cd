//! The part of a model that sees pictures: a tower over patches, and the connector to the decoder's embeddings. It is frozen but for
//! what an adapter trains of it.

mod config;
pub mod features;
mod load;
mod tensors;
mod tower;

use burn::tensor::{DType, Tensor};

pub use config::{ConnectorConfig, TowerConfig, VisionActivation, VisionConfig, VisionKind};
pub use features::Features;
pub use tensors::{VisionModule, short_name};

use self::load::Loader;
use self::tower::{Tower, activated};
use super::base::BaseFiles;
use super::load::{LoadOptions, float_type};
use crate::error::{Error, Result};
use crate::files::{FloatType, RawTensor};
use crate::nn::projection::project;
use crate::nn::{Adapter, Norm, Pass, Projection};
use crate::ops::wide_gradient::with_wide_gradient;

/// A tower and its connector.
#[derive(Debug)]
pub struct Vision {
    tower: Tower,
    connector: Connector,
    /// The number format of the features.
    float_type: FloatType,
    /// The number of its first module; those of the decoder come before.
    first_module: usize,
}

/// A connector with its weights.
#[derive(Debug)]
enum Connector {
    /// [`ConnectorConfig::PixelShuffle`].
    PixelShuffle { norm: Norm, factor: usize, projection: Projection },
    /// [`ConnectorConfig::Projector`].
    Projector { states: Vec<usize>, drops_first: bool, layers: [Projection; 2], activation: VisionActivation },
}

impl Vision {
    /// Loads tower and connector of a base.
    ///
    /// # Errors
    /// Input: the base sees no pictures; a tensor that cannot be read, or that holds a value that is not finite.
    pub fn load(base: &BaseFiles, options: &LoadOptions) -> Result<Self> {
        let Some(config) = &base.config().vision else {
            return Err(Error::input(base.path().display(), "sees no pictures"));
        };
        let (loader, width) = (Loader::new(base, options), base.config().hidden_size);
        let tower = Tower::load(&loader, &config.tower, config.tower_module(), config.used_layers())?;
        let (hidden, module) = (config.tower.hidden_size, config.connector_module());
        let connector = match &config.connector {
            ConnectorConfig::PixelShuffle { factor } => Connector::PixelShuffle {
                norm: loader.norm(&format!("{}.post_layernorm", config.tower_module()), config.tower.norm_eps)?,
                factor: *factor,
                projection: loader.linear(
                    &format!("{module}.modality_projection.proj"),
                    [width, hidden * factor * factor],
                    false,
                )?,
            },
            ConnectorConfig::Projector { states, drops_first, activation, bias } => Connector::Projector {
                states: states.clone(),
                drops_first: *drops_first,
                layers: [
                    loader.linear(&format!("{module}.linear_1"), [width, hidden * states.len()], *bias)?,
                    loader.linear(&format!("{module}.linear_2"), [width, width], *bias)?,
                ],
                activation: *activation,
            },
        };
        let float_type = float_type(options.compute);
        Ok(Self { tower, connector, float_type, first_module: base.config().decoder_modules().len() })
    }

    /// Whether an adapter changes tower or connector.
    pub fn is_changed_by(&self, adapter: &Adapter) -> bool {
        adapter.changes_from(self.first_module)
    }

    /// Rows of the tower for a tile of `height × width` pixels.
    fn rows(&self, size: [usize; 2]) -> usize {
        self.tower.rows(size)
    }

    /// The features of a tile, three planes of `height × width` values, red, green and blue, under the adapter of a pass.
    ///
    /// # Shapes
    /// - output: `[tokens, width]` ([`VisionConfig::tokens`])
    fn tile(&self, planes: &[f32], size: [usize; 2], pass: &Pass<'_>) -> Tensor<2> {
        let states = self.tower.states(planes, size, pass);
        match &self.connector {
            Connector::PixelShuffle { norm, factor, projection } => {
                let last = norm.forward(states[states.len() - 1].clone(), pass);
                project(pixel_shuffled(last, *factor), &[projection], None, pass)
            }
            Connector::Projector { states: chosen, drops_first, layers: [first, second], activation } => {
                let skipped = usize::from(*drops_first);
                let chosen = chosen.iter().map(|state| {
                    let state = states[*state].clone();
                    let (rows, format) = (state.dims()[0], state.dtype());
                    with_wide_gradient(state, format).narrow(0, skipped, rows - skipped)
                });
                let inner = project(Tensor::cat(chosen.collect(), 1), &[first], None, pass);
                project(activated(inner, *activation), &[second], None, pass)
            }
        }
    }

    /// The features of the tiles of a picture, which lie end to end in `planes`, under the adapter of a pass, in f32.
    ///
    /// # Shapes
    /// - output: `[tokens, width]`
    pub fn tiles(&self, planes: &[f32], size: [usize; 2], pass: &Pass<'_>) -> Tensor<2> {
        let tiles = planes.chunks_exact((3 * size[0] * size[1]).max(1));
        Tensor::cat(tiles.map(|tile| self.tile(tile, size, pass).cast(DType::F32)).collect(), 0)
    }

    /// The features of the tiles of a picture, which lie end to end in `planes`, as bytes in the number format of the activations.
    ///
    /// # Shapes
    /// - output: `[tokens, width]`
    pub fn picture(&self, planes: &[f32], size: [usize; 2]) -> RawTensor {
        raw(self.tiles(planes, size, &Pass::default()), self.float_type)
    }

    /// [`Self::picture`] under an adapter that changes tower or connector, in f32, as training computes them.
    ///
    /// # Shapes
    /// - output: `[tokens, width]`
    pub fn picture_under(&self, adapter: &Adapter, planes: &[f32], size: [usize; 2]) -> RawTensor {
        raw(self.tiles(planes, size, &Pass { adapter: Some(adapter), ..Pass::default() }), FloatType::F32)
    }
}

/// Features as bytes.
///
/// # Shapes
/// - `features`, output: `[tokens, width]`
fn raw(features: Tensor<2>, float_type: FloatType) -> RawTensor {
    let shape = features.dims().to_vec();
    let values: Vec<f32> = features.into_data().iter::<f32>().collect();
    RawTensor { dtype: float_type.dtype(), shape, bytes: float_type.encode(&values).into() }
}

/// Squares of `factor · factor` rows of a square grid side by side: [`ConnectorConfig::PixelShuffle`] (Laurençon et al. 2024,
/// "Building and better understanding vision-language models", section 3.2).
///
/// # Shapes
/// - `x`: `[rows, width]`
/// - output: `[rows / factor², width · factor²]`
fn pixel_shuffled(x: Tensor<2>, factor: usize) -> Tensor<2> {
    let [rows, width] = x.dims();
    let side = rows.isqrt();
    let small = side / factor;
    let x = x.reshape([side, small, width * factor]).swap_dims(0, 1);
    let x = x.reshape([small, small, width * factor * factor]).swap_dims(0, 1);
    x.reshape([small * small, width * factor * factor])
}
