//! The model on the processor, for inference: plain rows of f32 between kernels, and no tape.
//!
//! It computes what [`Decoder`] computes; the order of the parts of a layer is that of `nn/layer.rs`.

mod adapter;
mod layer;

use std::sync::Arc;

pub(super) use self::adapter::HostFactors;
use self::layer::{HostLayer, Rows, norm_rows};
use super::{EngineOptions, Precision};
use crate::interrupt;
use crate::model::Decoder;
use crate::model::vision::Features;
use crate::model::vision::features::tokens_of;
use crate::nn::{Norm, Projection};
use crate::ops::attention::{CacheFormat, PAGE_POSITIONS, Page, PagedCache, PagedPiece};
use crate::ops::cpu::decode::{Panels, Weight};
use crate::ops::frozen::FrozenWeight;

/// A projection with its weight in the form of inference.
pub(super) struct HostProjection {
    weight: Weight,
    bias: Option<Vec<f32>>,
    site: usize,
}

impl HostProjection {
    fn new(projection: &Projection, precision: Precision) -> Option<Self> {
        let matrix = projection.weight.matrix()?;
        let weight = match precision {
            Precision::Exact => Weight::AsStored(matrix.clone()),
            Precision::Fast => {
                let panels = Panels::new(matrix);
                // The pages of a mapped file are not needed any more, or only as rows of an embedding.
                matrix.release();
                Weight::Repacked(Arc::new(panels))
            }
        };
        Some(Self { weight, bias: projection.bias.clone(), site: projection.site })
    }
}

/// The model.
pub(super) struct HostModel {
    embedding: FrozenWeight,
    embedding_multiplier: Option<f32>,
    features: Features,
    layers: Vec<HostLayer>,
    norm: Norm,
    head: HostProjection,
    logit_multiplier: Option<f32>,
    logit_softcap: Option<f32>,
    hidden: usize,
    /// The number format of the cache.
    format: CacheFormat,
}

/// New tokens of a sequence.
pub(super) struct HostPiece<'a> {
    pub(super) new: &'a [u32],
    /// One cache a layer.
    pub(super) past: &'a mut [PagedCache],
    pub(super) adapter: Option<&'a HostFactors>,
    /// Tokens of the sequence as far as it is known.
    pub(super) total: usize,
    /// The number of its last tokens after which logits are wanted.
    pub(super) wanted: usize,
}

impl HostModel {
    /// The model of a decoder whose weights stay in memory on the processor; `None` where they do not.
    pub(super) fn new(decoder: &Decoder, options: &EngineOptions) -> Option<Self> {
        if decoder.is_streamed() {
            return None;
        }
        let (config, precision) = (decoder.config(), options.precision);
        let usual = if precision == Precision::Exact { CacheFormat::F32 } else { CacheFormat::Bf16 };
        let layers = decoder.layers.iter().map(|layer| HostLayer::new(layer, precision));
        Some(Self {
            layers: layers.collect::<Option<_>>()?,
            head: HostProjection::new(&decoder.head, precision)?,
            embedding: decoder.embedding.clone(),
            embedding_multiplier: decoder.embedding_multiplier(),
            features: decoder.features.clone(),
            norm: decoder.norm.clone(),
            logit_multiplier: config.logit_multiplier.map(|multiplier| multiplier as f32),
            logit_softcap: config.logit_softcap.map(|cap| cap as f32),
            hidden: config.hidden_size,
            format: options.cache.unwrap_or(usual),
        })
    }

    /// The past of a sequence that has not begun.
    pub(super) fn begin(&self) -> Vec<PagedCache> {
        vec![PagedCache::default(); self.layers.len()]
    }

    /// The past of a sequence that begins with these blocks of 64 tokens: of each the page of every layer.
    pub(super) fn begin_with(&self, blocks: &[Vec<Arc<Page>>]) -> Vec<PagedCache> {
        let of_layer = |(index, layer): (usize, &HostLayer)| {
            let first = layer.geometry.first_key(blocks.len() * PAGE_POSITIONS) / PAGE_POSITIONS;
            let first = first.min(blocks.len());
            PagedCache::from_pages(first, blocks[first..].iter().map(|pages| pages[index].clone()))
        };
        self.layers.iter().enumerate().map(of_layer).collect()
    }

    /// Forgets the tokens of a sequence from `length` on.
    pub(super) fn truncate(past: &mut [PagedCache], length: usize) {
        past.iter_mut().for_each(|cache| cache.truncate(length));
    }

    /// Lets go of the pages that a sequence needs no more.
    pub(super) fn forget(&self, past: &mut [PagedCache]) {
        for (cache, layer) in past.iter_mut().zip(&self.layers) {
            cache.forget_before(cache.length(), &layer.geometry);
        }
    }

    /// Bytes of the pages of a sequence that is read in pieces.
    pub(super) fn cache_bytes(&self, tokens: usize, piece: usize) -> usize {
        let of_layer = |layer: &HostLayer| {
            let pages = PagedCache::most_pages(&layer.geometry, tokens, piece);
            pages * PagedCache::page_bytes(&layer.geometry, self.format)
        };
        self.layers.iter().map(of_layer).sum()
    }

    /// Bytes of the pages of 64 tokens in all layers.
    pub(super) fn block_bytes(&self) -> usize {
        self.layers.iter().map(|layer| PagedCache::page_bytes(&layer.geometry, self.format)).sum()
    }

    /// Feeds the pieces; the logits that they want, in order.
    pub(super) fn advance(&self, pieces: &mut [HostPiece<'_>]) -> Vec<Vec<f32>> {
        let x = self.hidden_states(pieces);
        let (mut last, mut adapters, mut end) = (Vec::new(), Vec::new(), 0);
        for piece in pieces.iter() {
            end += piece.new.len();
            last.extend_from_slice(&x[(end - piece.wanted) * self.hidden..end * self.hidden]);
            adapters.extend(std::iter::repeat_n(piece.adapter, piece.wanted));
        }
        if last.is_empty() {
            return Vec::new();
        }
        let mut h = norm_rows(Some(&self.norm), last, self.hidden);
        if let Some(multiplier) = self.logit_multiplier {
            h.iter_mut().for_each(|value| *value *= multiplier);
        }
        let vocabulary = self.head.weight.rows();
        let rows = Rows { adapters: &adapters, width: self.hidden };
        let mut logits = rows.project(&h, std::slice::from_ref(&self.head));
        if let Some(cap) = self.logit_softcap {
            logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        logits.chunks_exact(vocabulary).map(<[f32]>::to_vec).collect()
    }

    /// The mean of the hidden states of a piece, after the final norm.
    pub(super) fn mean_hidden(&self, mut piece: HostPiece<'_>) -> Vec<f32> {
        let x = self.hidden_states(std::slice::from_mut(&mut piece));
        let h = norm_rows(Some(&self.norm), x, self.hidden);
        let rows = (h.len() / self.hidden) as f32;
        let mut mean = vec![0f32; self.hidden];
        for row in h.chunks_exact(self.hidden) {
            mean.iter_mut().zip(row).for_each(|(mean, value)| *mean += value / rows);
        }
        mean
    }

    /// Hidden states before the final norm, `[tokens, hidden]`.
    fn hidden_states(&self, pieces: &mut [HostPiece<'_>]) -> Vec<f32> {
        let ids: Vec<u32> = pieces.iter().flat_map(|piece| piece.new).copied().collect();
        let mut x = self.embedding.select(&tokens_of(&ids));
        if let Some(multiplier) = self.embedding_multiplier {
            x.iter_mut().for_each(|value| *value *= multiplier);
        }
        self.features.fill(&ids, &mut x);
        let adapters: Vec<Option<&HostFactors>> =
            pieces.iter().flat_map(|piece| std::iter::repeat_n(piece.adapter, piece.new.len())).collect();
        for (index, layer) in self.layers.iter().enumerate() {
            interrupt::check();
            let mut paged: Vec<PagedPiece<'_>> = pieces
                .iter_mut()
                .map(|piece| PagedPiece { count: piece.new.len(), cache: &mut piece.past[index], total: piece.total })
                .collect();
            layer.forward(&mut x, &adapters, &mut paged, self.format);
        }
        x
    }
}
