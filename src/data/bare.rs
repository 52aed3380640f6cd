//! Rows without a chat template: a prompt and its completion, plain text, and a text with its label.

use super::encode::Encoder;
use super::encoded::Encoded;
use crate::error::{Error, Result};
use crate::settings::choice;

choice! {
    /// The reading of control tokens that rows without a chat template spell. In conversations they are
    /// always text.
    ControlTokens {
        /// They are ordinary text, and a notice names the rows.
        Text = "text",
        /// They are control tokens, for data that was rendered beforehand.
        Tokens = "tokens",
    }
}

impl Encoder {
    /// Sets the reading of control tokens in rows without a chat template.
    pub fn read_control_tokens(&mut self, control_tokens: ControlTokens) {
        self.control_tokens = control_tokens;
    }

    /// Sets the labels of texts, in the order of their numbers.
    pub fn set_labels(&mut self, labels: Vec<String>) {
        self.labels = labels;
    }

    /// The labels of texts, in the order of their numbers.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Ids of a prompt taken as it is: the beginning-of-text token if the model expects one, and the text.
    ///
    /// # Errors
    /// Input: what the tokenizer says; a token without an embedding.
    pub fn encode_raw_prompt(&self, text: &str) -> Result<Vec<u32>> {
        if self.control_tokens == ControlTokens::Tokens {
            return self.encode_typed_prompt(text);
        }
        let mut ids: Vec<u32> = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos()).into_iter().collect();
        ids.extend(self.tokenizer.encode(text)?);
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// Ids of a prompt that someone typed for the model itself: special-token text in it stands for control tokens, the
    /// beginning-of-text token included.
    ///
    /// # Errors
    /// Those of [`Self::encode_raw_prompt`].
    pub fn encode_typed_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_with_special(text)?;
        let bos = self.tokenizer.bos().filter(|bos| self.tokenizer.adds_bos() && ids.first() != Some(bos));
        ids.splice(..0, bos);
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// A plain text and its end, all of it trained.
    pub(super) fn plain_text(&self, text: &str) -> Result<Encoded> {
        let mut encoded = Encoded::new();
        encoded.push(&self.encode_raw_prompt(text)?, true);
        self.push_end(&mut encoded, text);
        Ok(encoded)
    }

    /// A text with the number of its label in the place of a token after it: the only one that is trained. A head of labels
    /// predicts it from the last token of the text, and nothing looks at it.
    pub(super) fn classified(&self, text: &str, label: &str) -> Result<Encoded> {
        let Some(number) = self.labels.iter().position(|known| known == label) else {
            let known: Vec<String> = self.labels.iter().map(|known| format!("{known:?}")).collect();
            return Err(Error::input("", format!("the label {label:?} is unknown; expected {}", known.join(", "))));
        };
        let mut encoded = Encoded::new();
        encoded.push(&self.encode_raw_prompt(text)?, false);
        encoded.push(&[number as u32], true);
        Ok(encoded)
    }

    /// Prompt and completion encoded separately, since that is what generation will see. The completion goes on where
    /// the prompt ends: no space comes in between.
    pub(super) fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        let mut encoded = Encoded::new();
        encoded.push(&self.encode_raw_prompt(prompt)?, false);
        let completion_ids = match (prompt.is_empty(), self.control_tokens) {
            (true, ControlTokens::Text) => self.tokenizer.encode(completion)?,
            (false, ControlTokens::Text) => self.tokenizer.encode_ordinary_continuation(completion)?,
            (true, ControlTokens::Tokens) => self.tokenizer.encode_with_special(completion)?,
            (false, ControlTokens::Tokens) => self.tokenizer.encode_continuation(completion)?,
        };
        encoded.push(&completion_ids, true);
        self.push_end(&mut encoded, completion);
        Ok(encoded)
    }

    /// Appends the end token behind `text`, unless a control token ends the text already.
    fn push_end(&self, encoded: &mut Encoded, text: &str) {
        let is_ended = self.control_tokens == ControlTokens::Tokens && self.specials.ends(text.trim_end());
        if !is_ended {
            encoded.push(&self.end(), true);
        }
    }

    /// The end token that follows a completion.
    pub(super) fn end(&self) -> Vec<u32> {
        self.tokenizer.eos_tokens().into_iter().take(1).collect()
    }
}
