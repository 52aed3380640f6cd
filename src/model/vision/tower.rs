//! The tower: patches of a picture through a transformer in which every patch sees every other.
//!
//! Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words"; Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training";
//! Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision".

use burn::tensor::{DType, Device, Tensor, TensorData, activation};

use super::config::{TowerConfig, VisionActivation};
use super::load::Loader;
use crate::error::Result;
use crate::interrupt;
use crate::nn::adapter::select_rows;
use crate::nn::projection::project;
use crate::nn::{Norm, Pass, Projection};
use crate::ops::activation::activate;
use crate::ops::frozen::FrozenWeight;

/// A tower with its weights.
#[derive(Debug)]
pub(super) struct Tower {
    config: TowerConfig,
    device: Device,
    compute: DType,
    /// `[hidden, 3 · patch · patch]`.
    patches: Projection,
    /// `[positions, hidden]`.
    positions: FrozenWeight,
    /// The number of their module.
    positions_number: usize,
    /// The class token of CLIP, and the norm before its layers.
    clip: Option<(Vec<f32>, Norm)>,
    layers: Vec<TowerLayer>,
}

/// A layer of a tower.
#[derive(Debug)]
struct TowerLayer {
    norms: [Norm; 2],
    qkv: [Projection; 3],
    output: Projection,
    up: Projection,
    down: Projection,
}

impl Tower {
    /// Loads the first `layers` layers of the tower at `module`.
    pub(super) fn load(loader: &Loader<'_>, config: &TowerConfig, module: &str, layers: usize) -> Result<Self> {
        let TowerConfig { hidden_size: hidden, intermediate_size: inner, patch_size, norm_eps, .. } = *config;
        let embeddings = format!("{module}.embeddings");
        let clip = match config.is_clip {
            false => None,
            true => Some((
                loader.vector(&format!("{embeddings}.class_embedding"))?,
                loader.norm(&format!("{module}.pre_layrnorm"), norm_eps)?,
            )),
        };
        let layer = |number: usize| {
            let at = format!("{module}.encoder.layers.{number}");
            let linear = |name: &str, rows, columns| loader.linear(&format!("{at}.{name}"), [rows, columns], true);
            Ok(TowerLayer {
                norms: [
                    loader.norm(&format!("{at}.layer_norm1"), norm_eps)?,
                    loader.norm(&format!("{at}.layer_norm2"), norm_eps)?,
                ],
                qkv: [
                    linear("self_attn.q_proj", hidden, hidden)?,
                    linear("self_attn.k_proj", hidden, hidden)?,
                    linear("self_attn.v_proj", hidden, hidden)?,
                ],
                output: linear("self_attn.out_proj", hidden, hidden)?,
                up: linear("mlp.fc1", inner, hidden)?,
                down: linear("mlp.fc2", hidden, inner)?,
            })
        };
        Ok(Self {
            config: config.clone(),
            device: loader.device().clone(),
            compute: loader.compute(),
            patches: loader.linear(
                &format!("{embeddings}.patch_embedding"),
                [hidden, 3 * patch_size * patch_size],
                !config.is_clip,
            )?,
            positions: loader
                .matrix(&format!("{embeddings}.position_embedding.weight"), [config.positions(), hidden])?,
            positions_number: loader.number(&format!("{embeddings}.position_embedding")),
            clip,
            layers: (0..layers).map(layer).collect::<Result<_>>()?,
        })
    }

    /// The input of the first layer and the output of each, of a picture of three planes of `height × width` values.
    ///
    /// # Shapes
    /// - output: `[patches, hidden]` each, one row more with a class token
    pub(super) fn states(&self, planes: &[f32], size: [usize; 2], pass: &Pass<'_>) -> Vec<Tensor<2>> {
        let mut x = self.embedded(planes, size, pass);
        let mut states = Vec::with_capacity(self.layers.len() + 1);
        for layer in &self.layers {
            interrupt::check();
            states.push(x.clone());
            x = layer.forward(x, &self.config, pass);
        }
        states.push(x);
        states
    }

    /// Rows of its hidden states for a picture of `height × width` values.
    pub(super) fn rows(&self, [height, width]: [usize; 2]) -> usize {
        let size = self.config.patch_size;
        (height / size) * (width / size) + usize::from(self.config.is_clip)
    }

    /// Patches with their positions, `[patches, hidden]`.
    fn embedded(&self, planes: &[f32], [height, width]: [usize; 2], pass: &Pass<'_>) -> Tensor<2> {
        let size = self.config.patch_size;
        let [rows, columns] = [height / size, width / size];
        let mut values = Vec::with_capacity(3 * rows * columns * size * size);
        for (row, column) in (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))) {
            for (plane, y) in (0..3).flat_map(|plane| (0..size).map(move |y| (plane, y))) {
                let first = (plane * height + row * size + y) * width + column * size;
                values.extend_from_slice(&planes[first..first + size]);
            }
        }
        let data = TensorData::new(values, [rows * columns, 3 * size * size]);
        let on_tape = |x: Tensor<2>| if is_on_tape(pass) { x.autodiff() } else { x };
        let patches = on_tape(Tensor::<2>::from_data(data, &self.device).cast(self.compute));
        let patches = project(patches, &[&self.patches], None, pass);
        let ids = self.position_ids(rows, columns);
        let positions = match pass.adapter.and_then(|adapter| adapter.weight(self.positions_number)) {
            Some(positions) => select_rows(positions, &ids),
            None => on_tape(self.positions.rows(&ids, &self.device)),
        };
        let positions = positions.cast(self.compute);
        match &self.clip {
            None => patches + positions,
            Some((class, norm)) => {
                let class = TensorData::new(class.clone(), [1, class.len()]);
                let class = on_tape(Tensor::<2>::from_data(class, &self.device).cast(self.compute));
                norm.forward(Tensor::cat(vec![class, patches], 0) + positions, pass)
            }
        }
    }

    /// The row of the table of positions for every row of patches. A grid of another size than the table's takes the positions at
    /// the same share of the side (Idefics3; transformers rounds shares in f32, which gives the neighbour for some sizes that no
    /// released model has).
    fn position_ids(&self, rows: usize, columns: usize) -> Vec<u32> {
        let side = self.config.side();
        let first = usize::from(self.config.is_clip);
        let at = |row: usize, column: usize| (first + row * side / rows * side + column * side / columns) as u32;
        let of_patches = (0..rows).flat_map(|row| (0..columns).map(move |column| at(row, column)));
        (0..first as u32).chain(of_patches).collect()
    }
}

impl TowerLayer {
    /// `x₁ = x + attention(norm(x))`, then `x₁ + mlp(norm(x₁))`.
    fn forward(&self, x: Tensor<2>, config: &TowerConfig, pass: &Pass<'_>) -> Tensor<2> {
        let [q, k, v] = &self.qkv;
        let qkv = project(self.norms[0].forward(x.clone(), pass), &[q, k, v], None, pass);
        let x = project(attention(qkv, config.heads), &[&self.output], Some(x), pass);
        let inner = project(self.norms[1].forward(x.clone(), pass), &[&self.up], None, pass);
        project(activated(inner, config.activation), &[&self.down], Some(x), pass)
    }
}

/// Whether the adapter of a pass is trained.
fn is_on_tape(pass: &Pass<'_>) -> bool {
    let matrix = pass.adapter.and_then(|adapter| adapter.matrices().next());
    matrix.is_some_and(|matrix| matrix.val().is_autodiff())
}

/// Attention without a mask: `softmax(q·kᵀ / √d)·v` for every head, in f32.
///
/// # Shapes
/// - `qkv`: `[rows, 3 · width]`, queries, keys and values side by side
/// - output: `[rows, width]`
fn attention(qkv: Tensor<2>, heads: usize) -> Tensor<2> {
    let ([rows, columns], format) = (qkv.dims(), qkv.dtype());
    let width = columns / 3;
    let head_dim = width / heads;
    let part = |index: usize| {
        let part = qkv.clone().narrow(1, index * width, width).cast(DType::F32);
        part.reshape([rows, heads, head_dim]).swap_dims(0, 1)
    };
    let scale = 1.0 / (head_dim as f32).sqrt();
    let scores = part(0).mul_scalar(scale).matmul(part(1).transpose());
    let mixed = activation::softmax(scores, 2).matmul(part(2));
    mixed.swap_dims(0, 1).reshape([rows, width]).cast(format)
}

/// The activation of a tower or a projector.
pub(super) fn activated(x: Tensor<2>, by: VisionActivation) -> Tensor<2> {
    match by {
        VisionActivation::Usual(usual) => activate(x, usual),
        VisionActivation::QuickGelu => x.clone() * activation::sigmoid(x.mul_scalar(1.702)),
    }
}
