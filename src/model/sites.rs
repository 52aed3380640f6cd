//! The sites of a model: the matrices that a low-rank pair can change, by number and by path.

use super::config::ModelConfig;
use crate::nn::block::Part;

/// A matrix that a low-rank pair can change. Its number is its place in [`ModelConfig::sites`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Path of the module in Hugging Face's model: `model.layers.3.self_attn.q_proj`, `lm_head`.
    pub module: String,
    /// Output width of a linear layer; tokens of the embedding.
    pub rows: usize,
    /// Input width of a linear layer; width of the embedding.
    pub columns: usize,
    /// The part of the model that it belongs to.
    pub kind: SiteKind,
    /// The layer; `None` for head and embedding.
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

impl ModelConfig {
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

    /// Every site, layer by layer in the order in which a layer uses them, then the head, then the embedding. A tied head is one
    /// too.
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
}
