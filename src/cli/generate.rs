//! `burnish generate`: answers prompts.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::Global;
use super::model::{EngineForm, Model};
use super::prompts;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::data::{self, Message};
use crate::error::{Error, Place, Result, counted, printable};
use crate::files::json;
use crate::generate::constraint::Constraint;
use crate::generate::run::{Finish, check_prompt};
use crate::generate::sample::SamplerConfig;
use crate::run::answer::{Answer, Answerer, Answering, Progress, PromptForm, Question};
use crate::run::model::LoadedModel;
use crate::run::watch::Watch;

/// The name of the adapter for the engine.
const ADAPTER: &str = "adapter";

/// Answer prompts; the answers alone go to stdout, a single one as it comes
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    #[command(flatten)]
    engine: EngineForm,
    /// The prompt: a text, @FILE for the text of a file, - for stdin; may be repeated. It goes through the chat template, or
    /// stays as it is where the adapter was trained on bare prompts
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["data", "prompts"])]
    prompt: Vec<String>,
    /// A file of prompts, or - for stdin: one on each line, in a .jsonl file as a string or as an object with `prompt`; the answers
    /// are JSONL
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompts: Option<PathBuf>,
    /// Answer every row of a data file, in any of the shapes that train reads; the answers are JSONL
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "prompts", "raw", "chat", "system"])]
    data: Option<PathBuf>,
    /// A picture that each prompt shows before its text, a PNG or JPEG file; may be repeated
    #[arg(long, value_name = "FILE", conflicts_with_all = ["data", "raw"])]
    image: Vec<PathBuf>,
    /// Instructions that come before each prompt, as @FILE too
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    system: Option<String>,
    /// Use the prompt as typed, without the chat template; control tokens that it spells are control tokens
    #[arg(long)]
    raw: bool,
    /// Put the prompt through the chat template, whatever the adapter was trained on
    #[arg(long, conflicts_with = "raw")]
    chat: bool,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f64,
    /// Sample among this many of the likeliest; 0 for all
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: usize,
    /// Sample among the likeliest that together have this probability
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f64,
    /// Sample among those with at least this share of the likeliest's probability
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f64,
    /// Above 1, tokens seen before become less likely
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repetition_penalty: f64,
    /// Above 0, tokens become less likely with each time that the answer has them
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    frequency_penalty: f64,
    /// Above 0, tokens that the answer has become less likely
    #[arg(long, default_value_t = 0.0, value_name = "X")]
    presence_penalty: f64,
    /// Added to the logit of a token, by its id: -100 excludes it; may be repeated
    #[arg(long, value_name = "ID=BIAS", value_parser = token_bias)]
    logit_bias: Vec<(u32, f64)>,
    /// A text that ends the answer and is no part of it; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// A JSON schema that every answer is held to; it ends where it is complete
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,
    /// Seed of the sampling: the same seed gives the same answer
    #[arg(long, default_value_t = 0, env = "BURNISH_SEED", value_name = "N")]
    seed: u64,
}

/// An answer as a JSON object.
#[derive(Debug, Serialize)]
struct Answered<'a> {
    /// The row that asks; none where the prompt was typed.
    #[serde(skip_serializing_if = "Option::is_none")]
    place: Option<&'a str>,
    prompt: &'a str,
    answer: &'a str,
    finish: Finish,
    prompt_tokens: usize,
    answer_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_per_second: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    /// From the moment that the prompt waits for no other.
    seconds_to_first_token: f64,
    /// The answer of the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<&'a str>,
}

/// A prompt with what is said of it beside its answer.
struct Asked {
    prompt: String,
    ids: Vec<u32>,
    place: Option<String>,
    expected: Option<String>,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let sampler = SamplerConfig {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
        frequency_penalty: arguments.frequency_penalty,
        presence_penalty: arguments.presence_penalty,
        logit_bias: arguments.logit_bias.clone(),
        seed: arguments.seed,
    };
    sampler.check()?;
    let (max_tokens, stop) = (arguments.max_tokens, arguments.stop.clone());
    let schema = arguments.json_schema.as_deref().map(json::read).transpose()?;
    let mut answering = Answering { sampler, max_tokens, stop, ..Answering::default() };
    let rows = arguments.data.as_ref().map(|path| data::read(path, None)).transpose()?;
    let prompts = match &arguments.prompts {
        Some(path) => prompts::of_file(path)?,
        None => prompts::of_arguments(&arguments.prompt)?,
    };
    let model = arguments.model.load_for_answers(global, terminal)?;
    let asked = match (&rows, &arguments.data) {
        (Some(rows), Some(path)) => asked_by_rows(rows, path, &model, terminal)?,
        _ => asked_by_arguments(arguments, prompts, &model, terminal)?,
    };
    model.show_pictures(&mut TrainProgress::new(terminal))?;
    let as_json = global.json || rows.is_some() || arguments.prompts.is_some();
    let streams = asked.len() == 1 && !as_json;
    let options = arguments.engine.options(&model.decoder, model.compute)?;
    let mut answerer = Answerer::new(&model.decoder, &model.base.encoder, options);
    if let Some(adapter) = &model.attached {
        answerer.add_adapter(ADAPTER, adapter);
    }
    if let (Some(schema), Some(path)) = (schema, &arguments.json_schema) {
        let constraint = Constraint::json_schema(&answerer.vocabulary()?, &schema);
        answering.constraint = Some(constraint.map_err(|error| error.within(path))?);
    }
    let adapter = model.attached.as_ref().map(|_| ADAPTER);
    let ids: Vec<Vec<u32>> = asked.iter().map(|asked| asked.ids.clone()).collect();
    let mut counter = TrainProgress::new(terminal);
    let (mut ready, mut printed, mut done) = (BTreeMap::new(), 0, 0);
    answerer.answer_each(adapter, &ids, &answering, |index, progress| {
        match progress {
            Progress::Text(text) if streams => return print(&text),
            Progress::Text(_) => return Ok(()),
            Progress::Done(answer) => drop(ready.insert(index, answer)),
        }
        done += 1;
        if asked.len() > 1 {
            counter.answering(done, asked.len());
        }
        // In the order of the prompts, whichever answer is complete first.
        while let Some(answer) = ready.remove(&printed).filter(|_| !streams) {
            print_answer(&asked[printed], &answer, as_json, terminal)?;
            printed += 1;
        }
        Ok(())
    })?;
    if streams { print("\n") } else { Ok(()) }
}

/// A token's id and bias.
fn token_bias(text: &str) -> Result<(u32, f64), String> {
    let pair = text.split_once('=').and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
    pair.ok_or_else(|| "expected the id of a token and a number, as in 50256=-100".to_owned())
}

/// The questions of the rows of a data file.
fn asked_by_rows(rows: &[data::Row], path: &Path, model: &LoadedModel, terminal: &Terminal) -> Result<Vec<Asked>> {
    let positions = model.decoder.config().max_positions;
    let (mut asked, mut errors, mut left_out) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let place = row.position.to_string();
        let question = Question::of(&model.base.encoder, &row.example).and_then(|question| {
            question.iter().try_for_each(|question| check_prompt(&question.ids, positions))?;
            Ok(question)
        });
        match question {
            Ok(Some(Question { prompt, ids, expected })) => {
                asked.push(Asked { prompt, ids, place: Some(place), expected: Some(expected.to_string()) });
            }
            Ok(None) => left_out += 1,
            Err(error) => errors.push(error.within(place)),
        }
    }
    Error::none_of(errors, ())?;
    if asked.is_empty() {
        return Err(Error::input(path, "no row asks a question")
            .hint("rows are prompts with completions, Alpaca examples, or conversations that end with the assistant"));
    }
    if left_out > 0 {
        terminal.message(format!("{} left out: they ask no question", counted(left_out, "row")));
    }
    Ok(asked)
}

/// The prompts of the command line.
fn asked_by_arguments(
    arguments: &Arguments,
    prompts: Vec<String>,
    model: &LoadedModel,
    terminal: &Terminal,
) -> Result<Vec<Asked>> {
    let encoder = &model.base.encoder;
    let (form, why) = prompt_form(arguments, model)?;
    let subject = if prompts.len() == 1 { "the prompt goes" } else { "the prompts go" };
    terminal.message(match form {
        PromptForm::Conversation if encoder.has_template() => format!("{subject} through the chat template{why}"),
        PromptForm::Conversation => {
            format!("{subject} through Alpaca's prompt{why}: the model has no chat template; --raw takes it as it is")
        }
        PromptForm::Bare | PromptForm::Typed if prompts.len() == 1 => format!("the prompt is taken as it is{why}"),
        PromptForm::Bare | PromptForm::Typed => format!("the prompts are taken as they are{why}"),
    });
    let system = arguments.system.as_deref().map(prompts::of_argument).transpose()?;
    if !arguments.image.is_empty() && form != PromptForm::Conversation {
        let message = format!("is given, and the prompt is taken as it is{why}");
        return Err(Error::input(Place::argument("--image"), message).hint("use `--chat`"));
    }
    if system.is_some() && form != PromptForm::Conversation {
        return Err(Error::input(
            Place::argument("--system"),
            format!("is given, and the prompt is taken as it is{why}"),
        )
        .hint("put the instructions into the prompt, or use `--chat`"));
    }
    let asked = prompts.into_iter().map(|prompt| {
        if form != PromptForm::Typed && encoder.spells_control_tokens(&prompt) {
            let text = "the prompt spells control tokens; they are read as ordinary text, and as tokens with --raw";
            terminal.message(text);
        }
        let ids = match (&system, arguments.image.as_slice()) {
            (None, []) => form.encode(encoder, &prompt)?,
            (system, images) => {
                let system = system.iter().map(|system| Message::system(system.as_str()));
                let question = shown(Message::user(prompt.as_str()), images)?;
                encoder.encode_prompt(&system.chain([question]).collect::<Vec<_>>())?
            }
        };
        Ok(Asked { prompt, ids, place: None, expected: None })
    });
    asked.collect()
}

/// The turn with pictures before its text.
fn shown(message: Message, images: &[PathBuf]) -> Result<Message> {
    let paths: Option<Vec<&str>> = images.iter().map(|path| path.to_str()).collect();
    let paths = paths.ok_or_else(|| Error::input(Place::argument("--image"), "is not UTF-8 text"))?;
    Ok(message.showing(paths))
}

/// Prints an answer: as an object on a line, or as text with an empty line after it.
fn print_answer(asked: &Asked, answer: &Answer, as_json: bool, terminal: &Terminal) -> Result<()> {
    if !as_json {
        return print(&format!("{}\n\n", answer.text));
    }
    terminal.json(&Answered {
        place: asked.place.as_deref(),
        prompt: &asked.prompt,
        answer: &answer.text,
        finish: answer.finish,
        prompt_tokens: answer.usage.prompt_tokens,
        answer_tokens: answer.usage.answer_tokens,
        prompt_tokens_per_second: answer.usage.prompt_tokens_per_second(),
        tokens_per_second: answer.usage.tokens_per_second(),
        seconds_to_first_token: (answer.usage.seconds_to_first_token - answer.usage.seconds_waiting).max(0.0),
        expected: asked.expected.as_deref(),
    })
}

/// The form of the prompt, and why, for the user: as asked for, or else as the adapter was trained.
fn prompt_form(arguments: &Arguments, model: &LoadedModel) -> Result<(PromptForm, String)> {
    if arguments.raw {
        return Ok((PromptForm::Typed, String::new()));
    }
    if arguments.chat && !model.base.encoder.has_template() {
        return Err(Error::input("--chat", "the model has no chat template").hint("`--raw` takes the prompt as it is"));
    }
    let (Some(adapter), false) = (&model.adapter, arguments.chat) else {
        return Ok((PromptForm::Conversation, String::new()));
    };
    let format = adapter.data_format().map_err(|error| {
        let folder = arguments.model.adapter.as_ref().map(|folder| folder.display().to_string());
        error.within(folder.unwrap_or_default())
    })?;
    Ok(match format {
        None => (PromptForm::Conversation, "; the adapter does not record the shape of its training data".to_owned()),
        Some(format) => {
            let form = PromptForm::of(format);
            let other =
                if form == PromptForm::Bare { "--chat uses the chat template" } else { "--raw takes it as it is" };
            (form, format!(", as in the adapter's training data (`{format}`); {other}"))
        }
    })
}

/// Text to stdout at once. A terminal gets no character that would control it; a file or pipe gets the text as it is. A
/// reader that has gone away ends the program quietly.
fn print(text: &str) -> Result<()> {
    let text = if io::stdout().is_terminal() { printable(text) } else { text.into() };
    match io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        Err(error) => Err(Error::failed("stdout", format!("cannot be written: {error}"))),
        Ok(()) => Ok(()),
    }
}
