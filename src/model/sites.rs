//! The modules of a model that an adapter can change, by number and by path: its sites, which are the matrices that a low-rank pair
//! can change, its norms, and the other modules of a tower.

use std::collections::BTreeMap;

use super::config::ModelConfig;
use super::spec::NormSpec;
use super::vision::VisionModule;
use crate::nn::block::Part;

/// A module that an adapter can change. Its number is its place in [`ModelConfig::modules`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Path of the module in Hugging Face's model: `model.layers.3.self_attn.q_proj`, `lm_head`.
    pub module: String,
    /// Output width of a linear layer; tokens of the embedding; 1 for a norm.
    pub rows: usize,
    /// Input width of a linear layer; width of the embedding or the norm.
    pub columns: usize,
    /// The part of the model that it belongs to.
    pub kind: SiteKind,
    /// The layer of the decoder; `None` for head, embedding and the norm before the head, and for tower and connector.
    pub layer: Option<usize>,
}

/// The part of the model that a site belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteKind {
    /// A projection of attention.
    Attention,
    /// A projection of the feed-forward network.
    Mlp,
    /// The output head.
    Head,
    /// The embedding of tokens.
    Embedding,
    /// A norm of hidden states.
    Norm,
    /// A norm of queries or of keys.
    QkNorm,
    /// A linear layer of a tower or its connector.
    VisionLinear,
    /// The patches, the positions or a norm of a tower, which no low-rank pair changes.
    Vision,
}

impl SiteKind {
    /// Whether it is of a tower or its connector.
    pub fn is_of_vision(self) -> bool {
        matches!(self, Self::VisionLinear | Self::Vision)
    }
}

impl Site {
    /// The last part of the path: `q_proj`.
    pub fn name(&self) -> &str {
        self.module.rsplit('.').next().unwrap_or(&self.module)
    }
}

/// Whether PEFT's list of targets selects the module at `path` by `name`: the whole path, or its end after a dot.
pub fn is_named(path: &str, name: &str) -> bool {
    !name.is_empty() && path.strip_suffix(name).is_some_and(|front| front.is_empty() || front.ends_with('.'))
}

/// The name of the head in transformers 5, whatever the base's files call it (`conversion_mapping.py`).
pub const TRANSFORMERS_HEAD: &str = "lm_head";

/// A tensor that can be trained as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeTensor {
    /// The number of its module.
    pub module: usize,
    /// It is the module's bias, not its weight.
    pub is_bias: bool,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

impl ModelConfig {
    /// Every tensor that can be trained as a whole, by its name in the base's files: all but the norms of queries and keys, and the
    /// class token of a tower. A tied head counts as a tensor of its own.
    pub fn whole_tensors(&self) -> BTreeMap<String, WholeTensor> {
        let mut tensors = self.tensors();
        if self.tied_head {
            tensors.extend(self.head().tensors(false));
        }
        let modules = self.modules().into_iter().enumerate().filter(|(_, module)| module.kind != SiteKind::QkNorm);
        let numbers: BTreeMap<String, usize> = modules.map(|(number, module)| (module.module, number)).collect();
        let of_decoder = tensors.into_iter().map(|tensor| (tensor.hf, tensor.shape));
        let of_vision = self.vision.iter().flat_map(|vision| vision.tensors(self.hidden_size));
        let whole = of_decoder.chain(of_vision).filter_map(|(name, shape)| {
            let (module, parameter) = name.rsplit_once('.')?;
            let module = *numbers.get(module)?;
            let is_bias = parameter == "bias";
            Some((name, WholeTensor { module, is_bias, shape }))
        });
        whole.collect()
    }

    /// The path that transformers gives a module of the base's files.
    pub fn transformers_path<'a>(&self, module: &'a str) -> &'a str {
        if module == self.names.head { TRANSFORMERS_HEAD } else { module }
    }

    /// The paths that a site is known by: in the base's files, and in transformers where that is another one.
    pub fn paths_of<'a>(&self, site: &'a Site) -> Vec<&'a str> {
        let transformers = self.transformers_path(&site.module);
        std::iter::once(site.module.as_str()).chain((transformers != site.module).then_some(transformers)).collect()
    }

    /// Whether PEFT's list of targets selects the site by `name`, by any of its paths.
    pub fn is_named(&self, site: &Site, name: &str) -> bool {
        self.paths_of(site).into_iter().any(|path| is_named(path, name))
    }

    /// Every site of the decoder, layer by layer in the order in which a layer uses them, then the head, then the embedding. A tied head
    /// is one too.
    pub fn sites(&self) -> Vec<Site> {
        let mut sites = Vec::new();
        for layer in 0..self.layers {
            for part in self.block(layer).parts() {
                let (linear, kind) = match part {
                    Part::Attention(linear) => (linear, SiteKind::Attention),
                    Part::Mlp(linear) => (linear, SiteKind::Mlp),
                    Part::Norm(_) => continue,
                };
                let (rows, columns) = (linear.rows, linear.columns);
                sites.push(Site { module: linear.module.clone(), rows, columns, kind, layer: Some(layer) });
            }
        }
        let head = self.head();
        let (rows, columns) = (head.rows, head.columns);
        sites.push(Site { module: head.module, rows, columns, kind: SiteKind::Head, layer: None });
        let module = self.names.embedding.to_owned();
        sites.push(Site { module, rows, columns, kind: SiteKind::Embedding, layer: None });
        sites
    }

    /// Every site with its number: those of the decoder, then the linear layers of tower and connector.
    pub fn all_sites(&self) -> Vec<(usize, Site)> {
        let of_decoder = self.sites().len();
        let modules = self.modules().into_iter().enumerate();
        modules.filter(|(number, module)| *number < of_decoder || module.kind == SiteKind::VisionLinear).collect()
    }

    /// Every module: those of the decoder, then those of tower and connector.
    pub fn modules(&self) -> Vec<Site> {
        let mut modules = self.decoder_modules();
        let of_vision = self.vision.iter().flat_map(|vision| vision.modules(self.hidden_size));
        modules.extend(of_vision.map(|VisionModule { path, rows, columns, is_linear }| {
            let kind = if is_linear { SiteKind::VisionLinear } else { SiteKind::Vision };
            Site { module: path, rows, columns, kind, layer: None }
        }));
        modules
    }

    /// The modules of the decoder: the sites, then the norms in the order in which it uses them.
    pub fn decoder_modules(&self) -> Vec<Site> {
        let mut modules = self.sites();
        let norm = |norm: &NormSpec, kind, layer| Site {
            module: norm.module.clone(),
            rows: 1,
            columns: norm.width,
            kind,
            layer,
        };
        for layer in 0..self.layers {
            let block = self.block(layer);
            let of_heads: Vec<&NormSpec> =
                block.attention.qk_norm.iter().flat_map(|norms| [&norms.q, &norms.k]).collect();
            for part in block.parts() {
                let Part::Norm(spec) = part else { continue };
                let kind = if of_heads.contains(&spec) { SiteKind::QkNorm } else { SiteKind::Norm };
                modules.push(norm(spec, kind, Some(layer)));
            }
        }
        modules.push(norm(&self.final_norm(), SiteKind::Norm, None));
        modules
    }
}
