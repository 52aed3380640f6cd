//! The shape of the part that sees pictures, from `vision_config` and the fields around it in a larger model's `config.json`.

use serde_json::{Map, Value};

use crate::error::Error;
use crate::model::config::Fields;
use crate::ops::activation::Activation;

/// The ways in which larger models see pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionKind {
    /// Idefics3 and SmolVLM: a SigLIP tower, whose patches are shuffled into fewer and wider rows.
    Idefics3,
    /// LLaVA: a CLIP or SigLIP tower, of which a hidden state goes through two linear layers.
    Llava,
}

/// An activation of a tower or a projector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionActivation {
    /// One that decoders have too.
    Usual(Activation),
    /// `x · σ(1.702·x)` (Hendrycks and Gimpel 2016; `quick_gelu`).
    QuickGelu,
}

/// The part of a model that sees pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// The encoder of patches.
    pub tower: TowerConfig,
    /// The way from its rows to the decoder's width.
    pub connector: ConnectorConfig,
    /// The token in whose places the features of a picture stand.
    pub image_token: u32,
}

/// A pre-norm transformer over the patches of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct TowerConfig {
    /// Width of its rows.
    pub hidden_size: usize,
    /// Inner width of its feed-forward networks.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Heads of its attention.
    pub heads: usize,
    /// Pixels of a side of the picture that its table of positions is for.
    pub image_size: usize,
    /// Pixels of a side of a patch.
    pub patch_size: usize,
    /// The activation of its feed-forward networks.
    pub activation: VisionActivation,
    /// Added to the variance in every norm.
    pub norm_eps: f64,
    /// CLIP's form: a class token before the patches, a norm before the layers, no bias on the patches.
    pub is_clip: bool,
    /// SigLIP's pooling behind the layers, which no model here uses.
    pub has_pooling: bool,
}

/// The way from a tower's rows to the embeddings of the decoder.
#[derive(Debug, Clone, PartialEq)]
pub enum ConnectorConfig {
    /// Squares of `factor · factor` patches become one row each, after the norm behind the layers; then a linear layer without bias.
    PixelShuffle {
        /// Patches of a side of a square.
        factor: usize,
    },
    /// Hidden states side by side, and a linear layer, an activation and a linear layer over them.
    Projector {
        /// The hidden states: 0 is the input of the first layer, `n` the output of the `n`-th.
        states: Vec<usize>,
        /// The first row of each, which is CLIP's class token, is left out.
        drops_first: bool,
        /// The activation between the layers.
        activation: VisionActivation,
        /// Whether the layers have biases.
        bias: bool,
    },
}

/// Sizes far above any tower, low enough that no product of two overflows.
const MAX_SIZE: usize = 1 << 20;
const MAX_LAYERS: usize = 1000;

/// The defaults of a kind of tower in transformers.
struct Defaults {
    sizes: [usize; 6],
    activation: VisionActivation,
    norm_eps: f64,
}

const TANH: VisionActivation = VisionActivation::Usual(Activation::GeluTanh);
/// Width, inner width, layers, heads, `image_size`, `patch_size` of `Idefics3VisionConfig`.
const IDEFICS3: Defaults = Defaults { sizes: [1152, 3072, 12, 16, 224, 32], activation: TANH, norm_eps: 1e-6 };
const SIGLIP: Defaults = Defaults { sizes: [768, 3072, 12, 12, 224, 16], activation: TANH, norm_eps: 1e-6 };
const CLIP: Defaults =
    Defaults { sizes: [768, 3072, 12, 12, 224, 32], activation: VisionActivation::QuickGelu, norm_eps: 1e-5 };

impl VisionConfig {
    /// Reads the configuration of a larger model of this kind, whose decoder has `vocabulary` tokens; `place` names the file. The
    /// problems stand beside it.
    pub fn read(place: &str, object: &Map<String, Value>, kind: VisionKind, vocabulary: usize) -> (Self, Vec<Error>) {
        let inner_place = format!("{place}: vision_config");
        let empty = Map::new();
        let mut fields = Fields::new(place, object);
        let own = fields.object("vision_config").unwrap_or_else(|| {
            fields.problem("vision_config", "is missing or not an object");
            &empty
        });
        let mut inner = Fields::new(&inner_place, own);
        let tower = TowerConfig::read(&mut inner, kind);
        let (connector, token) = match kind {
            VisionKind::Idefics3 => {
                let factor = fields.size("scale_factor").unwrap_or(2);
                if !tower.side().is_multiple_of(factor) {
                    let message = format!("is {factor}, which does not divide the {} patches of a side", tower.side());
                    fields.problem("scale_factor", message);
                }
                (ConnectorConfig::PixelShuffle { factor }, fields.count("image_token_id"))
            }
            VisionKind::Llava => {
                let states = hidden_states(&mut fields, tower.layers);
                let drops_first = match fields.text("vision_feature_select_strategy").as_deref() {
                    None | Some("default") => true,
                    Some("full") => false,
                    Some(other) => {
                        let message = format!("is {other:?}; expected \"default\" or \"full\"");
                        fields.problem("vision_feature_select_strategy", message);
                        false
                    }
                };
                let default = VisionActivation::Usual(Activation::Gelu);
                let activation = activation(&mut fields, "projector_hidden_act", default);
                let bias = fields.flag("multimodal_projector_bias").unwrap_or(true);
                let key = if fields.has("image_token_id") { "image_token_id" } else { "image_token_index" };
                (ConnectorConfig::Projector { states, drops_first, activation, bias }, fields.count(key))
            }
        };
        let image_token = token.unwrap_or_else(|| {
            fields.problem("image_token_id", "is missing");
            0
        });
        if vocabulary > 0 && image_token >= vocabulary {
            let message = format!("token {image_token} lies outside the vocabulary of {vocabulary}");
            fields.problem("image_token_id", message);
        }
        let mut errors = fields.into_errors();
        errors.extend(inner.into_errors());
        (Self { tower, connector, image_token: image_token as u32 }, errors)
    }

    /// The path of the tower's module.
    pub fn tower_module(&self) -> &'static str {
        match self.connector {
            ConnectorConfig::PixelShuffle { .. } => "model.vision_model",
            ConnectorConfig::Projector { .. } => "model.vision_tower",
        }
    }

    /// The path of the connector's module.
    pub fn connector_module(&self) -> &'static str {
        match self.connector {
            ConnectorConfig::PixelShuffle { .. } => "model.connector",
            ConnectorConfig::Projector { .. } => "model.multi_modal_projector",
        }
    }

    /// Whether a tensor or a module of this name belongs to tower or connector, whether it is used or not.
    pub fn owns(&self, name: &str) -> bool {
        [self.tower_module(), self.connector_module()]
            .iter()
            .any(|module| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.')))
    }

    /// Rows of features of a tile of `height × width` pixels, which are as many tokens.
    pub fn tokens(&self, height: usize, width: usize) -> usize {
        let patches = (height / self.tower.patch_size) * (width / self.tower.patch_size);
        match &self.connector {
            ConnectorConfig::PixelShuffle { factor } => patches / (factor * factor),
            ConnectorConfig::Projector { drops_first, .. } => {
                (patches + usize::from(self.tower.is_clip)).saturating_sub(usize::from(*drops_first))
            }
        }
    }

    /// The reason why a tile of these sizes cannot be seen; `None` where it can.
    pub fn refusal(&self, height: usize, width: usize) -> Option<String> {
        let TowerConfig { image_size, patch_size, .. } = self.tower;
        match &self.connector {
            ConnectorConfig::PixelShuffle { factor } => {
                let side = height / patch_size;
                let fits = height == width && side > 0 && side.is_multiple_of(*factor);
                (!fits).then(|| {
                    format!("a tile of {height} × {width} pixels; patches of {patch_size} pixels have to make a square of multiples of {factor}")
                })
            }
            ConnectorConfig::Projector { .. } => (height != image_size || width != image_size)
                .then(|| format!("a picture of {height} × {width} pixels; the tower sees {image_size} × {image_size}")),
        }
    }

    /// Layers of the tower up to the last hidden state that is used.
    pub fn used_layers(&self) -> usize {
        match &self.connector {
            ConnectorConfig::PixelShuffle { .. } => self.tower.layers,
            ConnectorConfig::Projector { states, .. } => states.iter().copied().max().unwrap_or(0),
        }
    }
}

impl TowerConfig {
    fn read(fields: &mut Fields<'_>, kind: VisionKind) -> Self {
        let model_type = fields.text("model_type");
        let (defaults, is_clip) = match (kind, model_type.as_deref()) {
            (VisionKind::Idefics3, _) => (IDEFICS3, false),
            (VisionKind::Llava, None | Some("clip_vision_model")) => (CLIP, true),
            (VisionKind::Llava, Some("siglip_vision_model")) => (SIGLIP, false),
            (VisionKind::Llava, Some(other)) => {
                let expected = "expected \"clip_vision_model\" or \"siglip_vision_model\"";
                fields.problem("model_type", format!("is {other:?}; {expected}"));
                (SIGLIP, false)
            }
        };
        const NAMES: [&str; 6] = [
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        ];
        let mut sizes = defaults.sizes;
        for (name, size) in NAMES.iter().zip(&mut sizes) {
            *size = fields.size(name).unwrap_or(*size);
            let limit = if *name == "num_hidden_layers" { MAX_LAYERS } else { MAX_SIZE };
            if *size > limit {
                fields.problem(name, format!("is {size}; expected at most {limit}"));
                *size = 1;
            }
        }
        let [hidden_size, intermediate_size, layers, heads, image_size, patch_size] = sizes;
        if fields.count("num_channels").is_some_and(|channels| channels != 3) {
            fields.problem("num_channels", "is another number than 3");
        }
        if !hidden_size.is_multiple_of(heads) {
            fields.problem("num_attention_heads", format!("is {heads}, which does not divide {hidden_size}"));
        }
        if patch_size > image_size {
            fields.problem("patch_size", format!("is {patch_size}, above the {image_size} of image_size"));
        }
        let activation = activation(fields, "hidden_act", defaults.activation);
        let has_pooling =
            model_type.as_deref() == Some("siglip_vision_model") && fields.flag("vision_use_head").unwrap_or(true);
        let norm_eps = fields.number("layer_norm_eps").unwrap_or(defaults.norm_eps);
        if !(norm_eps >= f64::from(f32::MIN_POSITIVE) && norm_eps < 1.0) {
            fields.problem("layer_norm_eps", format!("is {norm_eps}; expected above 0 and below 1"));
        }
        Self {
            hidden_size,
            intermediate_size,
            layers,
            heads,
            image_size,
            patch_size,
            activation,
            norm_eps,
            is_clip,
            has_pooling,
        }
    }

    /// Patches of a side of the picture that the table of positions is for.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Rows of the table of positions.
    pub fn positions(&self) -> usize {
        self.side() * self.side() + usize::from(self.is_clip)
    }
}

/// The hidden states that `vision_feature_layer` names, counted from the input of the first layer.
fn hidden_states(fields: &mut Fields<'_>, layers: usize) -> Vec<usize> {
    const FIELD: &str = "vision_feature_layer";
    let named: Vec<i64> = match fields.value(FIELD) {
        None => vec![-2],
        Some(Value::Array(values)) => values.iter().map(|value| value.as_i64().unwrap_or(i64::MAX)).collect(),
        Some(value) => vec![value.as_i64().unwrap_or(i64::MAX)],
    };
    let count = layers as i64 + 1;
    let state = |index: i64| if index < 0 { index + count } else { index };
    let states: Vec<i64> = named.into_iter().map(state).collect();
    if states.is_empty() || states.iter().any(|state| !(0..count).contains(state)) {
        let found = fields.value(FIELD).map(Value::to_string).unwrap_or_default();
        fields.problem(FIELD, format!("is {found}; expected numbers of hidden states of {layers} layers"));
        return vec![0];
    }
    states.into_iter().map(|state| state as usize).collect()
}

/// The activation that a field names, or `default`.
fn activation(fields: &mut Fields<'_>, field: &str, default: VisionActivation) -> VisionActivation {
    if fields.value(field).and_then(Value::as_str) == Some("quick_gelu") {
        return VisionActivation::QuickGelu;
    }
    match default {
        VisionActivation::QuickGelu if fields.value(field).is_none() => default,
        VisionActivation::QuickGelu => VisionActivation::Usual(fields.activation(field, Activation::Gelu)),
        VisionActivation::Usual(default) => VisionActivation::Usual(fields.activation(field, default)),
    }
}
