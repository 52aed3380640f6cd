//! Token ids to text while they are generated.

use super::Tokenizer;
use crate::error::Result;

/// Most tokens held back because the last one ends inside a character. Real text ends a character within a
/// few tokens; without a bound, endless rubbish would cost quadratic time.
const MAX_HELD: usize = 64;

/// The text of each token; of a token that is a part of a character, its name in the vocabulary.
pub fn token_texts(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<String> {
    let decode = |ids: &[u32]| tokenizer.decode(ids, false).unwrap_or_default();
    let text = |index: usize| {
        // After the token before it: alone, some tokenizers take its leading space away.
        let before = &ids[index.saturating_sub(1)..index];
        let both = decode(&ids[index.saturating_sub(1)..=index]);
        let own = both.strip_prefix(&decode(before)).unwrap_or_default();
        match own.is_empty() || own.contains('\u{fffd}') {
            true => tokenizer.id_to_token(ids[index]).unwrap_or_default(),
            false => own.to_owned(),
        }
    };
    (0..ids.len()).map(text).collect()
}

/// Turns ids into text as they come. Never gives out half a character.
pub struct TextStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Ids whose text is out already, kept because some tokenizers write a token differently at the start.
    context: Vec<u32>,
    /// Ids the last of which ends inside a character.
    held: Vec<u32>,
    /// Number of bytes of the text of `held` that are out already.
    given: usize,
}

impl TextStream {
    /// An empty stream. With `skip_special`, control tokens give no text.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer: tokenizer.clone(), skip_special, context: Vec::new(), held: Vec::new(), given: 0 }
    }

    /// Takes the next id; returns the text that is certain now, which may be empty.
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.held.push(id);
        let text = self.new_text()?;
        // Bytes that do not make a character yet decode to replacement characters.
        let whole = text.trim_end_matches(char::REPLACEMENT_CHARACTER);
        if whole.len() < text.len() && self.held.len() < MAX_HELD {
            let certain = whole.get(self.given..).unwrap_or_default().to_owned();
            self.given += certain.len();
            return Ok(certain);
        }
        Ok(self.give(&text))
    }

    /// Ends the stream: the text of what is still held back, broken characters replaced.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.new_text()?;
        Ok(self.give(&text))
    }

    /// The part of `text` that is not out yet; what was held becomes the context.
    fn give(&mut self, text: &str) -> String {
        if !text.is_empty() {
            self.context.clear();
        }
        self.context.append(&mut self.held);
        text.get(std::mem::take(&mut self.given)..).unwrap_or_default().to_owned()
    }

    /// The text that the held ids add to that of the context.
    fn new_text(&self) -> Result<String> {
        let before = self.tokenizer.decode(&self.context, self.skip_special)?;
        let ids: Vec<u32> = self.context.iter().chain(&self.held).copied().collect();
        let all = self.tokenizer.decode(&ids, self.skip_special)?;
        Ok(all.strip_prefix(&before).unwrap_or(&all).to_owned())
    }
}
