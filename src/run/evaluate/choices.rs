//! The figures of questions with choices, by likelihood.

use std::path::Path;

use serde_json::{Map, json};

use super::{EvalOptions, Measured, System};
use crate::data::{self, Encoded, Encoder, Example, Format, Judged, LongPolicy, Row};
use crate::error::{Error, Place, Result};
use crate::eval::bootstrap::Share;
use crate::eval::choices::{ChoicePrompt, ChoiceQuestion, chosen};
use crate::eval::measure::{Measure, Shares};
use crate::run::classes;
use crate::run::model::LoadedModel;
use crate::run::watch::Watch;
use crate::train::evaluate::evaluate as losses_of;

/// The place of a row's text in a wording.
const TEXT: &str = "{text}";

/// The texts with labels of a data file as questions: `wording` with the text in it, and every label of the file to choose from.
///
/// # Errors
/// Input: every bad row; a wording without a place for the text; fewer than two labels.
pub(super) fn of_labels(path: &Path, wording: &str, options: &EvalOptions) -> Result<Vec<ChoiceQuestion>> {
    let refuse = |message: &str| Err(Error::input(Place::argument("--label-prompt"), message));
    if !wording.contains(TEXT) {
        return refuse("has no `{text}`, which stands for the text of a row");
    }
    let rows = data::read(path, options.shape(Some(Format::Class)))?;
    let labels = classes::sorted(rows.iter());
    if labels.len() < 2 {
        return refuse("needs two labels or more to choose from, and the file has one");
    }
    let question = |row: &Row| match &row.example {
        Example::Class { text, label } => Some(ChoiceQuestion {
            line: row.position.number(),
            prompt: ChoicePrompt::Text(wording.replace(TEXT, text)),
            choices: labels.clone(),
            answer: labels.iter().position(|known| known == label)?,
            group: row.group.clone(),
        }),
        _ => None,
    };
    Ok(rows.iter().filter_map(question).collect())
}

/// Measures every system on `questions`.
pub(super) fn measure(
    model: &LoadedModel,
    systems: &[System<'_>],
    path: &Path,
    questions: &[ChoiceQuestion],
    options: &EvalOptions,
    watch: &mut dyn Watch,
) -> Result<Measured> {
    if options.generate {
        return Err(Error::input(
            Place::argument("--generate"),
            format!("{} holds questions with choices", path.display()),
        )
        .hint("they are answered by likelihood, without --generate"));
    }
    let positions = model.decoder.config().max_positions;
    let limit = options.max_seq_tokens.unwrap_or(positions).min(positions);
    let mut measured = Measured::default();
    let (mut sequences, mut kept, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for question in questions {
        let place = Place::file(path).line(question.line);
        match fitting(&model.base.encoder, question, limit, options.overlong) {
            Ok(Fitting::Whole(encoded)) => sequences.extend(encoded),
            Ok(Fitting::Cut(encoded)) => {
                measured.truncated += 1;
                sequences.extend(encoded);
            }
            Ok(Fitting::LeftOut) => {
                measured.left_out += 1;
                continue;
            }
            Err(error) => {
                errors.push(error.within(place));
                continue;
            }
        }
        measured.places.push(place.to_string());
        measured.groups.push(question.group.clone());
        measured.records.push(Map::new());
        kept.push(question);
    }
    Error::none_of(errors, ())?;
    if kept.is_empty() {
        return Err(Error::input(path, format!("no question has at most {limit} tokens with each of its choices")));
    }
    let total = systems.len() * sequences.len();
    for (index, system) in systems.iter().enumerate() {
        let losses = losses_of(&model.decoder, system.adapter, &sequences, &mut |done| {
            watch.evaluating(index * sequences.len() + done, total);
            Ok(())
        })?;
        let mut log_likelihoods = losses.iter().map(|loss| -loss.loss_sum);
        let mut shares = Shares::from([(Measure::Accuracy, Vec::new()), (Measure::AccuracyNormalised, Vec::new())]);
        for ((question, record), place) in kept.iter().zip(&mut measured.records).zip(&measured.places) {
            let of_question: Vec<f64> = log_likelihoods.by_ref().take(question.choices.len()).collect();
            if of_question.iter().any(|value| !value.is_finite()) {
                return Err(Error::failed(place.as_str(), "the likelihood of a choice is not a finite number")
                    .hint("base or adapter may be damaged, or trained to divergence"));
            }
            let (plain, normalised) = chosen(&of_question, &question.choices);
            for (measure, choice) in [(Measure::Accuracy, plain), (Measure::AccuracyNormalised, normalised)] {
                let is_right = f64::from(u8::from(choice == question.answer));
                shares.entry(measure).or_default().push(Some(Share::of_score(is_right)));
            }
            record.insert("choices".to_owned(), json!(question.choices));
            record.insert("answer".to_owned(), json!(question.answer));
            let prefix = system.prefix;
            record.insert(format!("{prefix}chosen"), json!(plain));
            record.insert(format!("{prefix}chosen_normalised"), json!(normalised));
            record.insert(format!("{prefix}log_likelihoods"), json!(of_question));
        }
        measured.shares.push(shares);
    }
    Ok(measured)
}

/// A question with each of its choices as tokens, as far as they fit.
enum Fitting {
    /// Nothing is missing.
    Whole(Vec<Encoded>),
    /// The beginning of the prompt is missing.
    Cut(Vec<Encoded>),
    /// They do not fit.
    LeftOut,
}

/// Encodes a question with each of its choices, at most `limit` tokens each.
fn fitting(encoder: &Encoder, question: &ChoiceQuestion, limit: usize, policy: LongPolicy) -> Result<Fitting> {
    let mut encoded: Vec<Encoded> =
        question.choices.iter().map(|choice| with_choice(encoder, &question.prompt, choice)).collect::<Result<_>>()?;
    let longest = encoded.iter().map(|encoded| encoded.ids.len()).max().unwrap_or(0);
    if longest <= limit {
        return Ok(Fitting::Whole(encoded));
    }
    match policy {
        LongPolicy::Error => {
            let message = format!("has {longest} tokens with its longest choice; at most {limit} fit");
            Err(Error::input("", message)
                .hint("`--overlong drop` leaves it out, `--overlong truncate-prompt` cuts its prompt"))
        }
        LongPolicy::Drop => Ok(Fitting::LeftOut),
        LongPolicy::TruncatePrompt => {
            for encoded in &mut encoded {
                let excess = encoded.ids.len().saturating_sub(limit);
                encoded.ids.drain(..excess);
                encoded.trained.drain(..excess);
                // The first token has nothing before it to be predicted from.
                if encoded.trained.first() != Some(&false) {
                    return Ok(Fitting::LeftOut);
                }
            }
            Ok(Fitting::Cut(encoded))
        }
    }
}

/// A prompt with a choice after it, of which the choice counts.
fn with_choice(encoder: &Encoder, prompt: &ChoicePrompt, choice: &str) -> Result<Encoded> {
    let (ids, context_tokens) = match prompt {
        // lm-evaluation-harness: white space at the end of the context belongs to the choice, and both are encoded together.
        ChoicePrompt::Text(text) => {
            let context = encoder.encode_raw_prompt(text.trim_end())?;
            (encoder.encode_raw_prompt(&format!("{text} {choice}"))?, context.len())
        }
        ChoicePrompt::Messages(messages) => {
            let mut ids = encoder.encode_prompt(messages)?;
            let context_tokens = ids.len();
            ids.extend(encoder.tokenizer().encode_ordinary_continuation(choice)?);
            (ids, context_tokens)
        }
    };
    if context_tokens == 0 || context_tokens >= ids.len() {
        return Err(Error::input("", "prompt and choice have no tokens apart; expected a prompt and then a choice"));
    }
    let trained = (0..ids.len()).map(|index| index >= context_tokens).collect();
    Ok(Encoded { ids, trained, untrained_turns: 0, weight: 1.0, judged: Judged::Not })
}
