//! From prompts to answers.

use crate::data::{Encoder, Format, Message};
use crate::error::Result;
use crate::generate::run::{Request, generate};
use crate::generate::sample::SamplerConfig;
use crate::model::Decoder;
use crate::nn::Adapter;

/// The form of a prompt, which decides its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromptForm {
    /// A question of the user, through the chat template; through Alpaca's prompt where the model has no template.
    Conversation,
    /// A text without markup; control tokens that it spells are ordinary text, as in training data.
    Bare,
    /// A text without markup; control tokens that it spells are control tokens.
    Typed,
}

impl PromptForm {
    /// The form of the prompts in training data of this shape.
    pub fn of(format: Format) -> Self {
        if format.uses_template() { Self::Conversation } else { Self::Bare }
    }

    /// The ids of a prompt in this form.
    ///
    /// # Errors
    /// Input: what template and tokenizer say.
    pub fn encode(self, encoder: &Encoder, prompt: &str) -> Result<Vec<u32>> {
        match self {
            Self::Conversation => encoder.encode_prompt(&[Message::user(prompt)]),
            Self::Bare => encoder.encode_raw_prompt(prompt),
            Self::Typed => encoder.encode_typed_prompt(prompt),
        }
    }
}

/// How prompts are answered.
#[derive(Debug, Clone)]
pub struct Answering {
    /// How the next token is chosen.
    pub sampler: SamplerConfig,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
}

/// Answers prompts that are encoded already; `emit(prompt's index, token)` sees every token as it comes.
///
/// # Errors
/// Those of [`generate`](crate::generate).
pub fn answer_ids(
    decoder: &Decoder,
    encoder: &Encoder,
    adapter: Option<&Adapter>,
    prompts: &[Vec<u32>],
    answering: &Answering,
    emit: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<String>> {
    let mut end_tokens = encoder.stop_tokens();
    end_tokens.extend(&decoder.config().eos_tokens);
    let request =
        Request { sampler: answering.sampler.clone(), max_tokens: answering.max_tokens, end_tokens: &end_tokens };
    let answers = generate(decoder, adapter, prompts, &request, emit)?;
    answers.iter().map(|ids| encoder.tokenizer().decode(ids, true)).collect()
}
