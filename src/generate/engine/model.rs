//! The model as the engine uses it: pieces of several sequences with different adapters go through it at once.

use std::sync::Arc;

use super::EngineOptions;
#[cfg(feature = "cpu")]
use super::host::{HostFactors, HostModel, HostPiece};
use super::prefix::Block;
use crate::error::{Error, Result};
use crate::model::Decoder;
use crate::model::decoder::Sequence;
use crate::model::vision::features::{FIRST_ID, PictureFeatures, Shown, is_feature};
use crate::nn::Adapter;
#[cfg(feature = "cpu")]
use crate::ops::attention::PagedCache;

/// An adapter as the engine holds it. The kernels of inference take low-rank pairs on projections; sequences with any other adapter
/// go through the decoder.
pub(super) struct Attached {
    /// Differs from that of every other adapter of the engine, those of the past included.
    pub(super) number: u64,
    factors: AdapterFactors,
}

enum AdapterFactors {
    #[cfg(feature = "cpu")]
    Host(HostFactors),
    Tensors(Adapter),
}

/// The past of a sequence.
pub(super) enum Past {
    /// In pages, one cache a layer.
    #[cfg(feature = "cpu")]
    Paged(Vec<PagedCache>),
    /// Tensors on another device.
    Tensors(Sequence),
}

/// New tokens of a sequence.
pub(super) struct Piece<'a> {
    /// The tokens, at least one.
    pub(super) new: &'a [u32],
    /// The tokens before them.
    pub(super) past: &'a mut Past,
    /// The adapter of the sequence.
    pub(super) adapter: Option<&'a Attached>,
    /// Tokens of the sequence as far as it is known.
    pub(super) total: usize,
    /// The number of its last tokens after which logits are wanted: at most one, where [`Model::forgets`] says no.
    pub(super) wanted: usize,
}

/// A model that continues sequences.
pub(super) struct Model {
    decoder: Decoder,
    /// The kernels of inference, where the weights lie on the processor.
    #[cfg(feature = "cpu")]
    host: Option<HostModel>,
}

impl Model {
    pub(super) fn new(decoder: Decoder, options: &EngineOptions) -> Self {
        Self {
            #[cfg(feature = "cpu")]
            host: HostModel::new(&decoder, options),
            decoder,
        }
    }

    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// Shows the decoder the pictures of a prompt, and puts the ids that their rows have then in the places of the prompt's own.
    ///
    /// # Errors
    /// Input: features of another width; a row that the pictures do not have.
    pub(super) fn show(&self, pictures: Vec<Arc<PictureFeatures>>, prompt: &mut [u32]) -> Result<Vec<Shown>> {
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        let width = self.decoder.config().hidden_size;
        if let Some(other) = pictures.iter().find(|picture| picture.rows.shape.get(1) != Some(&width)) {
            let message = format!("shows features of the shape {:?}; expected rows of {width}", other.rows.shape);
            return Err(Error::input("prompt", message));
        }
        let shown: Vec<Shown> = pictures.into_iter().map(|picture| self.decoder.features().show(picture)).collect();
        let ids: Vec<u32> = shown.iter().flat_map(Shown::ids).collect();
        for id in prompt.iter_mut().filter(|id| is_feature(**id)) {
            let row = (*id - FIRST_ID) as usize;
            *id = *ids.get(row).ok_or_else(|| {
                Error::input("prompt", format!("shows row {row} of its pictures; they have {} rows", ids.len()))
            })?;
        }
        Ok(shown)
    }

    pub(super) fn attach(&self, adapter: &Adapter, number: u64) -> Attached {
        #[cfg(feature = "cpu")]
        if self.host.is_some() && adapter.whole.is_empty() && !self.decoder.has_trained_embeddings(adapter) {
            return Attached { number, factors: AdapterFactors::Host(HostFactors::new(adapter, &self.decoder)) };
        }
        Attached { number, factors: AdapterFactors::Tensors(adapter.clone()) }
    }

    /// The past of a sequence with this adapter that has not begun.
    pub(super) fn begin(&self, adapter: Option<&Attached>) -> Past {
        #[cfg(feature = "cpu")]
        if let (Some(host), None) = (&self.host, adapter.and_then(|attached| attached.factors.tensors())) {
            return Past::Paged(host.begin());
        }
        let _ = adapter;
        Past::Tensors(self.decoder.begin())
    }

    /// The past of a sequence with this adapter that begins with these blocks.
    pub(super) fn begin_with(&self, blocks: &[Arc<Block>], adapter: Option<&Attached>) -> Past {
        #[cfg(feature = "cpu")]
        if let (Some(host), None) = (&self.host, adapter.and_then(|attached| attached.factors.tensors())) {
            let pages: Vec<_> = blocks.iter().map(|block| block.pages.clone()).collect();
            return Past::Paged(host.begin_with(&pages));
        }
        let _ = blocks;
        self.begin(adapter)
    }

    /// Block `number` of 64 tokens of a sequence, if all of it is still there.
    pub(super) fn block(&self, past: &Past, number: usize) -> Option<Block> {
        match past {
            #[cfg(feature = "cpu")]
            Past::Paged(caches) => {
                let pages = caches.iter().map(|cache| cache.page(number).cloned()).collect::<Option<_>>()?;
                Some(Block { pages })
            }
            Past::Tensors(_) => None,
        }
    }

    /// Bytes of a block in all layers.
    pub(super) fn block_bytes(&self) -> usize {
        #[cfg(feature = "cpu")]
        if let Some(host) = &self.host {
            return host.block_bytes();
        }
        0
    }

    /// Lets go of what a sequence needs no more.
    pub(super) fn forget(&self, past: &mut Past) {
        #[cfg(feature = "cpu")]
        if let (Some(host), Past::Paged(caches)) = (&self.host, past) {
            host.forget(caches);
        }
        #[cfg(not(feature = "cpu"))]
        let _ = past;
    }

    /// Whether the rotation of positions changes while a sequence grows from `before` to `after` tokens, so that it has to be read
    /// anew.
    pub(super) fn switches(&self, before: usize, after: usize) -> bool {
        let mut ropes = self.decoder.layers.iter().filter_map(|layer| layer.geometry.rope.as_ref());
        ropes.any(|rope| rope.switches(before, after))
    }

    /// Bytes of the keys and values of a sequence that is read in pieces.
    pub(super) fn cache_bytes(&self, tokens: usize, piece: usize) -> usize {
        #[cfg(feature = "cpu")]
        if let Some(host) = &self.host {
            return host.cache_bytes(tokens, piece);
        }
        let _ = piece;
        let config = self.decoder.config();
        tokens * config.layers * 2 * config.kv_heads * config.head_dim * size_of::<f32>()
    }

    /// The mean of the last hidden states of a prompt.
    pub(super) fn embed(&self, prompt: &[u32], adapter: Option<&Attached>) -> Vec<f32> {
        let factors = adapter.map(|attached| &attached.factors);
        #[cfg(feature = "cpu")]
        if let (Some(host), None) = (&self.host, factors.and_then(AdapterFactors::tensors)) {
            let adapter = factors.and_then(AdapterFactors::host);
            let (total, mut past) = (prompt.len(), host.begin());
            return host.mean_hidden(HostPiece { new: prompt, past: &mut past, adapter, total, wanted: 0 });
        }
        self.decoder.mean_hidden(prompt, factors.and_then(AdapterFactors::tensors))
    }

    /// Whether tokens of a sequence can be forgotten again.
    pub(super) fn forgets(past: &Past) -> bool {
        match past {
            #[cfg(feature = "cpu")]
            Past::Paged(_) => true,
            Past::Tensors(_) => false,
        }
    }

    /// Forgets the tokens of a sequence from `length` on, where it [`forgets`](Self::forgets).
    pub(super) fn truncate(past: &mut Past, length: usize) {
        match past {
            #[cfg(feature = "cpu")]
            Past::Paged(caches) => HostModel::truncate(caches, length),
            Past::Tensors(_) => {
                let _ = length;
            }
        }
    }

    /// Feeds the pieces; the logits that they want, in order.
    pub(super) fn advance(&self, pieces: &mut [Piece<'_>]) -> Vec<Vec<f32>> {
        #[cfg(feature = "cpu")]
        if let Some(host) = &self.host {
            let on_host = pieces.iter_mut().filter_map(|piece| {
                let Past::Paged(past) = &mut *piece.past else { return None };
                let adapter = piece.adapter.and_then(|attached| attached.factors.host());
                let Piece { new, total, wanted, .. } = *piece;
                Some(HostPiece { new, past, adapter, total, wanted })
            });
            let mut on_host: Vec<HostPiece<'_>> = on_host.collect();
            let of_host = if on_host.is_empty() { Vec::new() } else { host.advance(&mut on_host) };
            let (mut of_host, mut of_tensors) = (of_host.into_iter(), self.advance_tensors(pieces).into_iter());
            let in_order = pieces.iter().flat_map(|piece| match &*piece.past {
                Past::Paged(_) => of_host.by_ref().take(piece.wanted).collect::<Vec<_>>(),
                Past::Tensors(_) => of_tensors.by_ref().take(piece.wanted).collect(),
            });
            return in_order.collect();
        }
        self.advance_tensors(pieces)
    }

    /// Feeds the pieces whose past is in tensors, those of each adapter at once.
    fn advance_tensors(&self, pieces: &mut [Piece<'_>]) -> Vec<Vec<f32>> {
        let mut logits = vec![None; pieces.len()];
        let number = |piece: &Piece<'_>| piece.adapter.map(|adapter| adapter.number);
        let mut numbers: Vec<Option<u64>> = pieces.iter().map(number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        for wanted in numbers {
            let (mut new, mut pasts, mut places, mut adapter) = (Vec::new(), Vec::new(), Vec::new(), None);
            for (place, piece) in pieces.iter_mut().enumerate().filter(|(_, piece)| number(piece) == wanted) {
                pasts.push(match &mut *piece.past {
                    Past::Tensors(past) => past,
                    #[cfg(feature = "cpu")]
                    Past::Paged(_) => continue,
                });
                new.push(piece.new);
                places.push((place, piece.wanted > 0));
                adapter = piece.adapter.and_then(|attached| attached.factors.tensors());
            }
            if new.is_empty() {
                continue;
            }
            let after = self.decoder.next_logits(&new, &mut pasts, adapter);
            for ((place, is_wanted), after) in places.into_iter().zip(after) {
                logits[place] = is_wanted.then_some(after);
            }
        }
        logits.into_iter().flatten().collect()
    }
}

impl AdapterFactors {
    #[cfg(feature = "cpu")]
    fn host(&self) -> Option<&HostFactors> {
        match self {
            Self::Host(factors) => Some(factors),
            Self::Tensors(_) => None,
        }
    }

    fn tensors(&self) -> Option<&Adapter> {
        match self {
            #[cfg(feature = "cpu")]
            Self::Host(_) => None,
            Self::Tensors(adapter) => Some(adapter),
        }
    }
}
