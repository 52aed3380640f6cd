//! The figures of examples as in training: losses, and scores of generated answers.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{EvalOptions, Measured, System};
use crate::adapter::host::HostAdapter;
use crate::data::{EncodedSet, Format, LongPolicy, Position, Row};
use crate::error::{Error, Result};
use crate::eval::bootstrap::Share;
use crate::eval::loss::{ExampleLoss, mean_loss};
use crate::eval::measure::{Measure, Shares};
use crate::eval::text::{exact_match, rouge_l};
use crate::eval::tool_calls;
use crate::generate::engine::{EngineOptions, Precision};
use crate::generate::run::check_prompt;
use crate::run::answer::{Answer, Answerer, Answering, Expected, Progress, Question};
use crate::run::model::LoadedModel;
use crate::run::watch::Watch;
use crate::train::evaluate::evaluate as losses_of;

/// Measures every system on `rows`.
pub(super) fn measure(
    model: &LoadedModel,
    systems: &[System<'_>],
    path: &Path,
    rows: &[Row],
    options: &EvalOptions,
    watch: &mut dyn Watch,
) -> Result<Measured> {
    let (set, rows, mut measured) = encoded(model, path, rows, options, watch)?;
    let total = systems.len() * set.sequences.len();
    for (index, system) in systems.iter().enumerate() {
        let first = index * set.sequences.len();
        let losses = losses_of(&model.decoder, system.adapter, &set.sequences, &mut |done| {
            watch.evaluating(first + done, total);
            Ok(())
        })?;
        mean_loss(&losses, |index| measured.places[index].clone())?;
        add_losses(&mut measured, system, losses);
    }
    if options.generate {
        let questions = questions(model, &rows, &measured.places, limit(model, options), options)?;
        if questions.iter().all(Option::is_none) {
            return Err(Error::input(path, "no example has an answer to compare with")
                .hint("--generate needs prompts with completions, Alpaca examples or conversations"));
        }
        let mut answered = 0;
        for (index, system) in systems.iter().enumerate() {
            let total = systems.len() * questions.iter().flatten().count();
            let answers = answers(model, system, &questions, options, &mut |count| {
                answered += count;
                watch.answering(answered, total);
            });
            let answers = answers.map_err(|error| error.within(path))?;
            add_answers(&mut measured, index, system, &questions, &answers, options)?;
        }
    }
    Ok(measured)
}

/// The longest sequence, in tokens.
fn limit(model: &LoadedModel, options: &EvalOptions) -> usize {
    let positions = model.decoder.config().max_positions;
    options.max_seq_tokens.unwrap_or(positions).min(positions)
}

/// The examples of `rows` as far as they fit, their rows, and a place for their figures.
pub(super) fn encoded<'r>(
    model: &LoadedModel,
    path: &Path,
    rows: &'r [Row],
    options: &EvalOptions,
    watch: &mut dyn Watch,
) -> Result<(EncodedSet, Vec<&'r Row>, Measured)> {
    let limit = limit(model, options);
    let set = model.base.encoder.encode_all(rows, limit, options.overlong)?;
    model.show_pictures(watch)?;
    set.notices.iter().for_each(|text| watch.notice(text));
    shape_differs(model, &set, watch)?;
    if set.sequences.is_empty() {
        return Err(Error::input(path, format!("no example has a token to evaluate and at most {limit} tokens")));
    }
    let rows = kept(rows, &set.positions);
    let measured = Measured {
        places: set.positions.iter().map(Position::to_string).collect(),
        groups: rows.iter().map(|row| row.group.clone()).collect(),
        records: vec![Map::new(); rows.len()],
        left_out: set.dropped_long + set.dropped_untrained,
        truncated: set.truncated,
        ..Measured::default()
    };
    Ok((set, rows, measured))
}

/// Says so where the adapter was trained on prompts of another form.
fn shape_differs(model: &LoadedModel, set: &EncodedSet, watch: &mut dyn Watch) -> Result<()> {
    let trained_on = model.adapter.as_ref().map(HostAdapter::data_format).transpose()?.flatten();
    if let (Some(trained_on), Some(format)) = (trained_on, set.format)
        && trained_on.uses_template() != format.uses_template()
    {
        let through = |format: Format| if format.uses_template() { "through the chat template" } else { "bare" };
        watch.notice(&format!(
            "the adapter was trained on `{trained_on}` data, {}; this file is read as `{format}`, {}",
            through(trained_on),
            through(format)
        ));
    }
    Ok(())
}

/// The rows at these positions, which come in the order of the rows.
fn kept<'r>(rows: &'r [Row], positions: &[Position]) -> Vec<&'r Row> {
    let mut rest = rows.iter();
    positions.iter().filter_map(|position| rest.find(|row| row.position == *position)).collect()
}

fn add_losses(measured: &mut Measured, system: &System<'_>, losses: Vec<ExampleLoss>) {
    for (record, loss) in measured.records.iter_mut().zip(&losses) {
        let mut add = |key: &str, value: Value| record.insert(format!("{}{key}", system.prefix), value);
        add("loss", json!(loss.loss_sum / loss.tokens as f64));
        add("correct_tokens", json!(loss.correct_tokens));
        record.insert("tokens".to_owned(), json!(loss.tokens));
    }
    let shares = [
        (Measure::Loss, losses.iter().map(|loss| Some(loss.share())).collect()),
        (Measure::TokenAccuracy, losses.iter().map(|loss| Some(loss.share_of_correct())).collect()),
    ];
    measured.shares.push(Shares::from(shares));
    measured.losses.push(losses);
}

/// The question of each row; `None` where it asks none.
fn questions(
    model: &LoadedModel,
    rows: &[&Row],
    places: &[String],
    limit: usize,
    options: &EvalOptions,
) -> Result<Vec<Option<Question>>> {
    let question = |row: &Row| {
        let mut question = Question::of(&model.base.encoder, &row.example)?;
        if let Some(question) = &mut question {
            if options.overlong == LongPolicy::TruncatePrompt && question.ids.len() >= limit {
                // The first token may be the one that begins texts.
                let excess = question.ids.len() + 1 - limit;
                question.ids.drain(1..=excess);
            }
            check_prompt(&question.ids, limit)?;
        }
        Ok(question)
    };
    let pairs = rows.iter().zip(places);
    pairs.map(|(row, place)| question(row).map_err(|error: Error| error.within(place.as_str()))).collect()
}

/// The greedy answer to each question; `done` gets the number of further answers.
fn answers(
    model: &LoadedModel,
    system: &System<'_>,
    questions: &[Option<Question>],
    options: &EvalOptions,
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Option<Answer>>> {
    const NAME: &str = "adapter";
    let answering = Answering { max_tokens: options.max_tokens, ..Answering::default() };
    let options_of_engine = EngineOptions::unbounded(Precision::of(model.compute));
    let mut answerer = Answerer::new(&model.decoder, &model.base.encoder, options_of_engine);
    if let Some(adapter) = system.adapter {
        answerer.add_adapter(NAME, adapter);
    }
    let asked: Vec<usize> = (0..questions.len()).filter(|index| questions[*index].is_some()).collect();
    let prompts: Vec<Vec<u32>> = questions.iter().flatten().map(|question| question.ids.clone()).collect();
    let mut answers = vec![None; questions.len()];
    answerer.answer_each(system.adapter.map(|_| NAME), &prompts, &answering, |index, progress| {
        if let Progress::Done(answer) = progress {
            answers[asked[index]] = Some(answer);
            done(1);
        }
        Ok(())
    })?;
    Ok(answers)
}

/// Scores the answers of a system.
fn add_answers(
    measured: &mut Measured,
    index: usize,
    system: &System<'_>,
    questions: &[Option<Question>],
    answers: &[Option<Answer>],
    options: &EvalOptions,
) -> Result<()> {
    let mut shares = Shares::new();
    for (example, pair) in questions.iter().zip(answers).enumerate() {
        let (Some(question), Some(answer)) = pair else { continue };
        let record = &mut measured.records[example];
        record.insert("prompt".to_owned(), json!(question.prompt));
        record.insert(
            "expected".to_owned(),
            match &question.expected {
                Expected::Text(text) => json!(text),
                Expected::Calls(calls) => json!(calls),
            },
        );
        let mut add = |key: &str, value: Value| record.insert(format!("{}{key}", system.prefix), value);
        add("answer", json!(answer.text));
        add("finish", json!(answer.finish));
        for (measure, score) in scores_of(&question.expected, &answer.text, options)? {
            add(measure.name(), json!(score));
            let column = shares.entry(measure).or_insert_with(|| vec![None; questions.len()]);
            column[example] = Some(Share::of_score(score));
        }
    }
    measured.shares[index].append(&mut shares);
    Ok(())
}

/// The scores of an answer.
fn scores_of(expected: &Expected, answer: &str, options: &EvalOptions) -> Result<Vec<(Measure, f64)>> {
    let of_bool = |is_right: bool| f64::from(u8::from(is_right));
    Ok(match expected {
        Expected::Calls(calls) => {
            vec![(Measure::ToolCalls, of_bool(tool_calls::are_same(calls, &tool_calls::calls_in(answer))))]
        }
        Expected::Text(text) => {
            let is_match = match &options.extract {
                Some(extractor) => extractor.exact_match(text, answer)?,
                None => exact_match(text, answer),
            };
            vec![(Measure::ExactMatch, of_bool(is_match)), (Measure::RougeL, rouge_l(text, answer))]
        }
    })
}
