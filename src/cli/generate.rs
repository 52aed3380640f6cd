//! `burnish generate`: answers prompts.

use std::io::{self, ErrorKind, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::Global;
use super::model::Model;
use super::terminal::Terminal;
use super::train::TrainProgress;
use crate::data::{self, Message};
use crate::error::{Error, Place, Result, counted, printable};
use crate::files::open;
use crate::generate::run::{Finish, SEQUENCES_AT_ONCE, check_prompt};
use crate::generate::sample::SamplerConfig;
use crate::run::answer::{Answer, Answering, PromptForm, Question, answer_ids};
use crate::run::model::LoadedModel;
use crate::run::watch::Watch;
use crate::text::TextStream;

/// The largest prompt that is read from a file or from stdin.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// Answer prompts; the answers alone go to stdout, a single one as it comes
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The prompt: a text, @FILE for the text of a file, - for stdin; may be repeated. It goes through the chat template, or
    /// stays as it is where the adapter was trained on bare prompts
    #[arg(long, value_name = "TEXT", required_unless_present = "data")]
    prompt: Vec<String>,
    /// Answer every row of a data file, in any of the shapes that train reads; the answers are JSONL
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "raw", "chat", "system"])]
    data: Option<PathBuf>,
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
    tokens: usize,
    finish: Finish,
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
        seed: arguments.seed,
    };
    sampler.check()?;
    let answering = Answering { sampler, max_tokens: arguments.max_tokens, until: None };
    let rows = arguments.data.as_ref().map(|path| data::read(path, None)).transpose()?;
    let prompts = texts(&arguments.prompt)?;
    let model = arguments.model.load(global, terminal)?;
    let asked = match (&rows, &arguments.data) {
        (Some(rows), Some(path)) => asked_by_rows(rows, path, &model, terminal)?,
        _ => asked_by_arguments(arguments, prompts, &model, terminal)?,
    };
    let as_json = global.json || rows.is_some();
    if let ([one], false) = (asked.as_slice(), as_json) {
        return stream(&model, one, &answering);
    }
    let mut progress = TrainProgress::new(terminal);
    for (index, group) in asked.chunks(SEQUENCES_AT_ONCE).enumerate() {
        let first = index * SEQUENCES_AT_ONCE;
        let ids: Vec<Vec<u32>> = group.iter().map(|asked| asked.ids.clone()).collect();
        // Each prompt has the seed that it has where all of them are answered at once.
        let seed = answering.sampler.seed.wrapping_add(first as u64);
        let answering = Answering { sampler: SamplerConfig { seed, ..answering.sampler.clone() }, ..answering.clone() };
        let (decoder, encoder) = (&model.decoder, &model.base.encoder);
        let answers = answer_ids(decoder, encoder, model.attached.as_ref(), &ids, &answering, |_, _| Ok(()))?;
        for (asked, answer) in group.iter().zip(&answers) {
            print_answer(asked, answer, as_json, terminal)?;
        }
        if rows.is_some() {
            progress.answering(first + group.len(), asked.len());
        }
    }
    Ok(())
}

/// The texts of arguments: as they stand, of a file, or of stdin.
fn texts(arguments: &[String]) -> Result<Vec<String>> {
    if arguments.iter().filter(|text| *text == "-").count() > 1 {
        return Err(Error::input(Place::argument("--prompt"), "is `-` twice; stdin holds one prompt"));
    }
    arguments.iter().map(|text| text_of(text)).collect()
}

/// The text of an argument. The line end that editors and `echo` put after a text is no part of it.
fn text_of(argument: &str) -> Result<String> {
    let (bytes, name) = match argument.strip_prefix('@') {
        _ if argument == "-" => {
            let mut bytes = Vec::new();
            let read = io::stdin().lock().take(MAX_PROMPT_BYTES).read_to_end(&mut bytes);
            read.map_err(|error| Error::input("stdin", format!("cannot be read: {error}")))?;
            (bytes, "stdin")
        }
        Some(path) => {
            let bytes = open::read(Path::new(path), MAX_PROMPT_BYTES)
                .map_err(|error| error.hint("a text that begins with @ is given through a file or stdin (`-`)"))?;
            (bytes, path)
        }
        None => return Ok(argument.to_owned()),
    };
    let text = String::from_utf8(bytes).map_err(|_| Error::input(name, "is not UTF-8 text"))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(text.to_owned())
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
    let system = arguments.system.as_deref().map(text_of).transpose()?;
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
        let ids = match &system {
            Some(system) => {
                encoder.encode_prompt(&[Message::system(system.as_str()), Message::user(prompt.as_str())])?
            }
            None => form.encode(encoder, &prompt)?,
        };
        Ok(Asked { prompt, ids, place: None, expected: None })
    });
    asked.collect()
}

/// Answers one prompt, its text printed as it comes.
fn stream(model: &LoadedModel, asked: &Asked, answering: &Answering) -> Result<()> {
    let (decoder, encoder) = (&model.decoder, &model.base.encoder);
    let mut stream = TextStream::new(encoder.tokenizer(), true);
    let ids = std::slice::from_ref(&asked.ids);
    answer_ids(decoder, encoder, model.attached.as_ref(), ids, answering, |_, token| print(&stream.push(token)?))?;
    print(&stream.finish()?)?;
    print("\n")
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
        tokens: answer.tokens,
        finish: answer.finish,
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
