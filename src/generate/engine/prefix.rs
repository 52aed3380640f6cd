//! Beginnings of sequences that are kept for later requests: blocks of 64 tokens, found by a hash of all tokens up to their end, of the
//! pictures among them and of the adapter.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::model::vision::features::Shown;
#[cfg(feature = "cpu")]
use crate::ops::attention::Page;

/// Tokens of a block.
pub(super) const BLOCK_TOKENS: usize = 64;

/// The keys and values of 64 tokens: a page of each layer.
pub(super) struct Block {
    #[cfg(feature = "cpu")]
    pub(super) pages: Vec<Arc<Page>>,
}

/// The hash of a beginning: of its adapter, of the way that positions are rotated, and of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Chain([u8; 32]);

impl Chain {
    /// The beginning without tokens.
    pub(super) fn new(adapter: Option<u64>, is_long: bool) -> Self {
        let mut hash = Sha256::new();
        hash.update(adapter.map_or(0, |number| number + 1).to_le_bytes());
        hash.update([u8::from(is_long)]);
        Self(hash.finalize().into())
    }

    /// The same with a further block, in which `pictures` may stand. The ids of a picture's rows are another picture's later on: its
    /// content takes their place.
    pub(super) fn with(self, tokens: &[u32], pictures: &[Shown]) -> Self {
        let mut hash = Sha256::new();
        hash.update(self.0);
        for token in tokens {
            match pictures.iter().find_map(|picture| picture.row_of(*token)) {
                Some((picture, row)) => {
                    hash.update(u32::MAX.to_le_bytes());
                    hash.update(&picture.sha256);
                    hash.update((row as u64).to_le_bytes());
                }
                None => hash.update(token.to_le_bytes()),
            }
        }
        Self(hash.finalize().into())
    }
}

struct Kept {
    block: Arc<Block>,
    /// Greater for what was used later; within one use, greater for earlier blocks, without which later ones are not found.
    used: u64,
}

/// The blocks that are kept; the least recently used are let go first.
#[derive(Default)]
pub(super) struct Prefixes {
    kept: HashMap<Chain, Kept>,
    clock: u64,
}

impl Prefixes {
    /// The blocks that `tokens` with `pictures` among them begins with, and the hash of that beginning.
    pub(super) fn find(&mut self, start: Chain, tokens: &[u32], pictures: &[Shown]) -> (Vec<Arc<Block>>, Chain) {
        let (mut blocks, mut chain, mut chains) = (Vec::new(), start, Vec::new());
        for tokens in tokens.chunks_exact(BLOCK_TOKENS) {
            let next = chain.with(tokens, pictures);
            let Some(kept) = self.kept.get(&next) else { break };
            blocks.push(kept.block.clone());
            chains.push(next);
            chain = next;
        }
        for chain in chains.iter().rev() {
            self.clock += 1;
            if let Some(kept) = self.kept.get_mut(chain) {
                kept.used = self.clock;
            }
        }
        (blocks, chain)
    }

    /// Whether the end of a beginning is here.
    pub(super) fn has(&self, chain: Chain) -> bool {
        self.kept.contains_key(&chain)
    }

    /// Keeps a block under the hash of the beginning that it ends.
    pub(super) fn keep(&mut self, chain: Chain, block: Block) {
        self.clock += 1;
        self.kept.insert(chain, Kept { block: Arc::new(block), used: self.clock });
    }

    /// Lets go of the least recently used blocks until at most `most` are left.
    pub(super) fn shrink_to(&mut self, most: usize) {
        if self.kept.len() <= most {
            return;
        }
        let mut uses: Vec<u64> = self.kept.values().map(|kept| kept.used).collect();
        let excess = self.kept.len() - most;
        let (_, &mut last, _) = uses.select_nth_unstable(excess - 1);
        self.kept.retain(|_, kept| kept.used > last);
    }

    /// Number of blocks.
    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}
