//! From prompts to answers.

use crate::data::{Encoder, Message};
use crate::error::Result;
use crate::generate::run::{Request, generate};
use crate::generate::sample::SamplerConfig;
use crate::model::Decoder;
use crate::nn::Adapter;

/// How prompts are answered.
#[derive(Debug, Clone)]
pub struct Answering {
    pub sampler: SamplerConfig,
    /// The longest answer, in tokens.
    pub max_tokens: usize,
    /// The prompt as it is, not through the chat template.
    pub raw: bool,
}

/// Answers prompts; `emit(prompt's index, token)` sees every token as it comes.
///
/// # Errors
/// What encoding and generation say.
pub fn answer(
    decoder: &Decoder,
    encoder: &Encoder,
    adapter: Option<&Adapter>,
    prompts: &[String],
    answering: &Answering,
    emit: impl FnMut(usize, u32) -> Result<()>,
) -> Result<Vec<String>> {
    let encode = |prompt: &String| match answering.raw {
        true => encoder.encode_raw_prompt(prompt),
        false => encoder.encode_prompt(&[Message::user(prompt.as_str())]),
    };
    let prompts = prompts.iter().map(encode).collect::<Result<Vec<_>>>()?;
    answer_ids(decoder, encoder, adapter, &prompts, answering, emit)
}

/// [`answer`] for prompts that are encoded already.
///
/// # Errors
/// What generation says.
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
