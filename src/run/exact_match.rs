//! Exact match of greedy answers to validation prompts, by which a run can choose its best adapter.

use super::answer::{Answering, Expected, Question, answer_ids};
use crate::data::Encoder;
use crate::error::Result;
use crate::eval::text::exact_match;
use crate::model::Decoder;
use crate::nn::Adapter;
use crate::train::{ExactMatch, Ranks};

/// Tokens that an answer may have beyond the longest that is expected: the same text can have more of them.
const SPARE_TOKENS: usize = 8;

/// The longest answer to `questions`, in tokens.
pub(super) fn max_tokens(encoder: &Encoder, questions: &[Question]) -> usize {
    let tokens = |question: &Question| {
        let text = question.expected.to_string();
        encoder.tokenizer().encode(&text).map_or(text.len(), |ids| ids.len())
    };
    questions.iter().map(tokens).max().map_or(0, |most| most + SPARE_TOKENS)
}

/// Validation prompts with the texts that are expected.
#[derive(Debug)]
pub(super) struct Answered<'a> {
    pub(super) decoder: &'a Decoder,
    pub(super) encoder: &'a Encoder,
    /// At least one; every answer a text.
    pub(super) questions: &'a [Question],
}

impl ExactMatch for Answered<'_> {
    fn prompts(&self) -> usize {
        self.questions.len()
    }

    fn exact(&self, ranks: &dyn Ranks, adapter: &Adapter) -> Result<usize> {
        let own = self.questions.iter().enumerate().filter(|(index, _)| ranks.is_mine(*index));
        let own: Vec<&Question> = own.map(|(_, question)| question).collect();
        let prompts: Vec<Vec<u32>> = own.iter().map(|question| question.ids.clone()).collect();
        let answering = Answering { max_tokens: max_tokens(self.encoder, self.questions), ..Answering::default() };
        let answers = answer_ids(self.decoder, self.encoder, Some(adapter), &prompts, &answering)?;
        let is_exact = |question: &Question, answer: &str| match &question.expected {
            Expected::Text(text) => exact_match(text, answer),
            Expected::Calls(_) => false,
        };
        let pairs = own.iter().zip(&answers);
        Ok(pairs.filter(|(question, answer)| is_exact(question, &answer.text)).count())
    }
}
