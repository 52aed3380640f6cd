//! The vocabulary of a model as a trie of bytes.

use std::collections::HashMap;
use std::sync::Arc;

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use toktrie::{ApproximateTokEnv, INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie};

use crate::error::{Error, Result};
use crate::text::Tokenizer;

/// Tokens with more bytes are never part of a text with a format. (Real vocabularies have runs of up to 128 spaces.)
const MAX_TOKEN_BYTES: usize = 256;

/// The limits of the library's work. Its documents name the speed: 50 units of fuel a microsecond at the preparation, 14 at a
/// step, 20 items a microsecond, 1 to 2 kB a state.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 9000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 32_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// The tokens of a model with their bytes, as constraints look them up. A clone shares them.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    factory: ParserFactory,
    /// The spelling of each control token, which is part of no text with a format.
    controls: HashMap<u32, Vec<u8>>,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary({} tokens)", self.rows())
    }
}

impl Vocabulary {
    /// The vocabulary of a model with `rows` logits, whose answers end with any of `end_tokens`. Takes some tenths of a second for
    /// 100,000 tokens.
    ///
    /// # Errors
    /// Those of [`Tokenizer::token_bytes`].
    pub fn new(tokenizer: &Tokenizer, end_tokens: &[u32], rows: usize) -> Result<Self> {
        let bytes = tokenizer.token_bytes()?;
        let controls = (0..).zip(&bytes).filter(|(_, bytes)| bytes.is_none());
        let controls = controls.filter_map(|(id, _)| Some((id, tokenizer.id_to_token(id)?.into_bytes()))).collect();
        let mut words: Vec<Vec<u8>> = bytes.into_iter().map(Option::unwrap_or_default).collect();
        words.resize(rows, Vec::new());
        words.iter_mut().filter(|word| word.len() > MAX_TOKEN_BYTES).for_each(Vec::clear);
        let ends: Vec<u32> = end_tokens.iter().copied().filter(|id| (*id as usize) < rows).collect();
        // An end token ends the answer, whatever text it stands for.
        ends.iter().for_each(|id| words[*id as usize].clear());
        let info = TokRxInfo::new(rows as u32, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if ends.len() > 1 {
            trie = trie.with_eos_tokens(&ends);
        }
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let factory = ParserFactory::new_simple(&environment);
        let mut factory = factory.map_err(|error| Error::failed(tokenizer.place(), error.to_string()))?;
        *factory.limits_mut() = limits();
        factory.quiet();
        Ok(Self(Arc::new(Inner { factory, controls })))
    }

    pub(super) fn factory(&self) -> &ParserFactory {
        &self.0.factory
    }

    fn trie(&self) -> &TokTrie {
        self.0.factory.tok_env().tok_trie()
    }

    /// The number of tokens.
    pub(super) fn rows(&self) -> u32 {
        self.trie().vocab_size() as u32
    }

    /// Whether a token is a control token.
    pub(super) fn is_control(&self, token: u32) -> bool {
        self.0.controls.contains_key(&token)
    }

    /// The bytes of a token, or the spelling of a control token.
    pub(super) fn text_of(&self, token: u32) -> &[u8] {
        self.0.controls.get(&token).map_or_else(|| self.trie().token(token), Vec::as_slice)
    }

    /// Tokens that stand for these bytes together; none where some byte has no token.
    pub(super) fn tokens_of(&self, bytes: &[u8]) -> Option<Vec<u32>> {
        let tokens = self.trie().greedy_tokenize(bytes);
        let length: usize = tokens.iter().map(|token| self.trie().token_len(*token)).sum();
        (length == bytes.len()).then_some(tokens)
    }
}
