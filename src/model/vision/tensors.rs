//! The tensors and the modules of tower and connector.

use super::config::{ConnectorConfig, TowerConfig, VisionConfig};

/// A module of a tower or its connector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VisionModule {
    /// Its path.
    pub path: String,
    /// Output width; 1 for a norm.
    pub rows: usize,
    /// Input width, or the width of a norm.
    pub columns: usize,
    /// Whether it is a linear layer, which can have a low-rank pair.
    pub is_linear: bool,
}

impl VisionConfig {
    /// Names and shapes of the tensors that are used, for a decoder of this width.
    pub fn tensors(&self, width: usize) -> Vec<(String, Vec<usize>)> {
        self.tensors_of(self.used_layers(), width)
    }

    /// The same where the first `layers` layers of the tower are used.
    fn tensors_of(&self, layers: usize, width: usize) -> Vec<(String, Vec<usize>)> {
        let TowerConfig { hidden_size, intermediate_size, patch_size, is_clip, .. } = self.tower;
        let (tower, connector) = (self.tower_module(), self.connector_module());
        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| tensors.push((name, shape.to_vec()));
        let embeddings = format!("{tower}.embeddings");
        add(format!("{embeddings}.patch_embedding.weight"), &[hidden_size, 3, patch_size, patch_size]);
        add(format!("{embeddings}.position_embedding.weight"), &[self.tower.positions(), hidden_size]);
        match is_clip {
            true => add(format!("{embeddings}.class_embedding"), &[hidden_size]),
            false => add(format!("{embeddings}.patch_embedding.bias"), &[hidden_size]),
        }
        let mut both = |module: String, shape: &[usize], bias: bool| {
            add(format!("{module}.weight"), shape);
            if bias {
                add(format!("{module}.bias"), &shape[..1]);
            }
        };
        if is_clip {
            both(format!("{tower}.pre_layrnorm"), &[hidden_size], true);
        }
        for layer in 0..layers {
            let at = format!("{tower}.encoder.layers.{layer}");
            for norm in ["layer_norm1", "layer_norm2"] {
                both(format!("{at}.{norm}"), &[hidden_size], true);
            }
            for projection in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                both(format!("{at}.self_attn.{projection}"), &[hidden_size, hidden_size], true);
            }
            both(format!("{at}.mlp.fc1"), &[intermediate_size, hidden_size], true);
            both(format!("{at}.mlp.fc2"), &[hidden_size, intermediate_size], true);
        }
        match &self.connector {
            ConnectorConfig::PixelShuffle { factor } => {
                both(format!("{tower}.post_layernorm"), &[hidden_size], true);
                both(format!("{connector}.modality_projection.proj"), &[width, hidden_size * factor * factor], false);
            }
            ConnectorConfig::Projector { states, bias, .. } => {
                both(format!("{connector}.linear_1"), &[width, hidden_size * states.len()], *bias);
                both(format!("{connector}.linear_2"), &[width, width], *bias);
            }
        }
        tensors
    }

    /// The modules of tower and connector, those of layers behind the last state that is used included, since PEFT gives these low-rank
    /// pairs too. CLIP's class token is a parameter without a module.
    pub fn modules(&self, width: usize) -> Vec<VisionModule> {
        let module = |(name, shape): (String, Vec<usize>)| {
            let path = name.strip_suffix(".weight")?.to_owned();
            let is_linear = shape.len() == 2 && !path.ends_with(".position_embedding");
            let columns = shape.iter().skip(1).product::<usize>();
            let [rows, columns] = if shape.len() > 1 { [shape[0], columns] } else { [1, shape[0]] };
            Some(VisionModule { path, rows, columns, is_linear })
        };
        let TowerConfig { hidden_size, intermediate_size, layers, has_pooling, .. } = self.tower;
        let pooling = [
            ("attention.out_proj", hidden_size, hidden_size),
            ("mlp.fc1", intermediate_size, hidden_size),
            ("mlp.fc2", hidden_size, intermediate_size),
        ];
        let pooling = pooling.into_iter().filter(|_| has_pooling).map(|(name, rows, columns)| VisionModule {
            path: format!("{}.head.{name}", self.tower_module()),
            rows,
            columns,
            is_linear: true,
        });
        self.tensors_of(layers, width).into_iter().filter_map(module).chain(pooling).collect()
    }
}

/// The name of a module among others of its kind, by its path in a base or in an adapter's file: the last part, and of a module of a
/// tower or a connector the part of the model that it lies in, as in `q_proj in vision_model`.
pub fn short_name(path: &str) -> String {
    const PARTS: [&str; 4] = ["vision_model", "vision_tower", "connector", "multi_modal_projector"];
    let last = path.rsplit('.').next().unwrap_or(path);
    match path.split('.').find(|part| PARTS.contains(part)) {
        Some(part) => format!("{last} in {part}"),
        None => last.to_owned(),
    }
}
