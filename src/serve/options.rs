//! The options of an answer that OpenAI's requests share, and the engine's requests that follow from them.

use std::sync::Arc;
use std::time::Instant;

use super::Server;
use super::failure::{Failure, Outcome};
use super::fields::Fields;
use super::limits::{BIASED_TOKENS, CHOICES, LIKELIEST, STOP_BYTES, STOP_STRINGS, USUAL_ANSWER_TOKENS};
use super::models::ServedModel;
use super::worker::Answers;
use crate::data::Encoder;
use crate::error::Result;
use crate::generate::constraint::Constraint;
use crate::generate::engine::Request;
use crate::generate::sample::SamplerConfig;
use crate::run::named::{NamedModel, Prompt};

/// Below it, a temperature counts as 0.
const LEAST_TEMPERATURE: f64 = 1e-6;
/// The most tokens that a request may ask for; a model has fewer positions.
const MAX_TOKENS: i64 = 1 << 24;

/// The options of an answer.
#[derive(Debug, Clone)]
pub(super) struct AnswerOptions {
    pub(super) sampler: SamplerConfig,
    /// The longest answer, in tokens; none where the request leaves it open.
    pub(super) max_tokens: Option<usize>,
    pub(super) stop: Vec<String>,
    /// The alternatives whose log-probabilities are given; none where none are.
    pub(super) likeliest: Option<usize>,
    /// Answers to each prompt.
    pub(super) choices: usize,
}

impl AnswerOptions {
    /// The options that chat and completions share: OpenAI's, and `top_k`, `min_p` and `repetition_penalty`, which other
    /// servers have too. `most` fields name the longest answer.
    pub(super) fn read(fields: &mut Fields, most: &[&str]) -> Outcome<Self> {
        let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
        let sampler = SamplerConfig {
            temperature: if temperature < LEAST_TEMPERATURE { 0.0 } else { temperature },
            top_p: fields.number("top_p", 0.0..=1.0)?.unwrap_or(1.0),
            top_k: whole(fields.integer("top_k", 0..=i64::from(u32::MAX))?).unwrap_or(0),
            min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(0.0),
            logit_bias: bias(fields)?,
            seed: seed(fields)?,
        };
        let mut max_tokens = None;
        for field in most {
            max_tokens = whole(fields.integer(field, 1..=MAX_TOKENS)?).or(max_tokens);
        }
        let choices = whole(fields.integer("n", 1..=CHOICES as i64)?).unwrap_or(1);
        let stop: Vec<String> = fields.texts("stop", STOP_STRINGS, STOP_BYTES)?;
        let stop = stop.into_iter().filter(|text| !text.is_empty()).collect();
        Ok(Self { sampler, max_tokens, stop, likeliest: None, choices })
    }
}

/// The seed of a request; another one each time where it has none.
pub(super) fn seed(fields: &mut Fields) -> Outcome<u64> {
    let seed = fields.integer("seed", i64::MIN..=i64::MAX)?;
    Ok(seed.map_or_else(rand::random, |seed| seed as u64))
}

/// A number that is not negative.
pub(super) fn whole(number: Option<i64>) -> Option<usize> {
    usize::try_from(number?).ok()
}

/// The number of alternatives that are named.
pub(super) fn likeliest(fields: &mut Fields, field: &str) -> Outcome<Option<usize>> {
    Ok(whole(fields.integer(field, 0..=LIKELIEST as i64)?))
}

fn bias(fields: &mut Fields) -> Outcome<Vec<(u32, f64)>> {
    let Some(bias) = fields.value("logit_bias") else { return Ok(Vec::new()) };
    let entries = bias.as_object().filter(|entries| entries.len() <= BIASED_TOKENS);
    let entry = |(token, bias): (&String, &serde_json::Value)| {
        Some((token.parse().ok()?, bias.as_f64().filter(|bias| bias.abs() <= 100.0)?))
    };
    let read = entries.and_then(|entries| entries.iter().map(entry).collect::<Option<Vec<_>>>());
    let message = format!("must have at most {BIASED_TOKENS} token ids with numbers from -100 to 100");
    read.ok_or_else(|| Failure::field("logit_bias", message))
}

/// Runs work on the text of a request, which may take long, beside the event loop. `field` is to blame for its errors.
pub(super) async fn encoded<T: Send + 'static>(
    model: &Arc<ServedModel>,
    field: &'static str,
    work: impl FnOnce(&NamedModel) -> Result<T> + Send + 'static,
) -> Outcome<T> {
    let model = model.clone();
    let done = tokio::task::spawn_blocking(move || work(&model.named)).await;
    // A panic of the work is a bug; it ends this request alone.
    done.map_err(|_| Failure::internal())?.map_err(|error| Failure::of(&error, field))
}

/// The ids of a text without a chat template: as in training data where the model was trained on it, and otherwise as someone
/// types it for the model itself.
pub(super) fn bare_ids(model: &NamedModel, text: &str) -> Result<Vec<u32>> {
    use crate::run::answer::PromptForm;
    match model.form {
        PromptForm::Bare => model.encoder.encode_raw_prompt(text),
        PromptForm::Conversation | PromptForm::Typed => model.encoder.encode_typed_prompt(text),
    }
}

impl Server {
    /// Begins the answers to prompts, `options.choices` to each, with a place for each of them in the queue. The first answers have the
    /// formats `constraints`.
    pub(super) async fn answer(
        &self,
        model: &Arc<ServedModel>,
        prompts: Vec<Prompt>,
        options: &AnswerOptions,
        constraints: Vec<Constraint>,
    ) -> Outcome<Answers> {
        let mut constraints = constraints.into_iter();
        let positions = self.positions;
        if let Some(prompt) = prompts.iter().map(|prompt| &prompt.ids).find(|ids| ids.len() >= positions) {
            return Err(Failure::too_long(prompt.len(), positions));
        }
        let count = prompts.len() * options.choices;
        if count > self.limits.answers {
            return Err(Failure::field("n", format!("asks for {count} answers; at most {} fit", self.limits.answers)));
        }
        // The count is below the number of answers at once.
        let permit = self.places.clone().try_acquire_many_owned(count as u32).map_err(|_| Failure::overloaded())?;
        let until = Instant::now() + self.limits.answer_time;
        let mut request = |Prompt { ids, pictures }: Prompt, choice: usize| Request {
            max_tokens: options.max_tokens.unwrap_or(USUAL_ANSWER_TOKENS).min(positions - ids.len()),
            pictures,
            adapter: model.key.clone(),
            sampler: SamplerConfig {
                seed: options.sampler.seed.wrapping_add(choice as u64),
                ..options.sampler.clone()
            },
            end_tokens: model.named.end_tokens.clone(),
            stop: options.stop.clone(),
            log_probabilities: options.likeliest,
            constraint: constraints.next(),
            until: Some(until),
            tokenizer: Some(model.named.encoder.tokenizer().clone()),
            ..Request::new(ids)
        };
        let requests = prompts
            .into_iter()
            .flat_map(|prompt| (0..options.choices).map(move |choice| (prompt.clone(), choice)).collect::<Vec<_>>());
        let requests = requests.map(|(prompt, choice)| request(prompt, choice)).collect();
        self.worker.begin(requests, permit, model.clone()).await.map_err(|error| Failure::of(&error, "prompt"))
    }

    /// The text of a token by itself.
    pub(super) fn token_text(encoder: &Encoder, token: u32) -> String {
        encoder.tokenizer().decode(&[token], false).unwrap_or_default()
    }
}
