//! `burnish generate`: answers a prompt.

use std::io::{self, ErrorKind, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use super::Global;
use super::model::{Model, Ready};
use super::terminal::Terminal;
use crate::error::{Error, Result, printable};
use crate::generate::sample::SamplerConfig;
use crate::run::answer::{Answering, PromptForm, answer_ids};
use crate::text::TextStream;

/// Answer a prompt; the answer alone goes to stdout, as it comes
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The prompt. It goes through the chat template, or stays as it is where the adapter was trained on bare prompts
    #[arg(long, value_name = "TEXT")]
    prompt: String,
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

#[derive(Debug, Serialize)]
struct Answer<'a> {
    prompt: &'a str,
    answer: &'a str,
    tokens: usize,
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
    let model = arguments.model.load(global, terminal)?;
    let attached = model.adapter.as_ref().map(|adapter| adapter.attach(model.decoder.config(), model.decoder.device()));
    let attached = attached.transpose()?;
    let answering = Answering { sampler, max_tokens: arguments.max_tokens, until: None };
    let mut stream = TextStream::new(model.base.encoder.tokenizer(), true);
    let mut tokens = 0;
    let encoder = &model.base.encoder;
    let (form, why) = prompt_form(arguments, &model)?;
    terminal.message(match form {
        PromptForm::Conversation if encoder.has_template() => format!("the prompt goes through the chat template{why}"),
        PromptForm::Conversation => {
            format!(
                "the prompt goes through Alpaca's prompt{why}: the model has no chat template; --raw takes it as it is"
            )
        }
        PromptForm::Bare | PromptForm::Typed => format!("the prompt is taken as it is{why}"),
    });
    if form != PromptForm::Typed && encoder.spells_control_tokens(&arguments.prompt) {
        terminal.message("the prompt spells control tokens; they are read as ordinary text, and as tokens with --raw");
    }
    let prompt = form.encode(encoder, &arguments.prompt)?;
    let answers = answer_ids(&model.decoder, encoder, attached.as_ref(), &[prompt], &answering, |_, token| {
        tokens += 1;
        let text = stream.push(token)?;
        if global.json { Ok(()) } else { print(&text) }
    })?;
    if global.json {
        let answer = Answer {
            prompt: &arguments.prompt,
            answer: answers.first().map_or("", |answer| answer.text.as_str()),
            tokens,
        };
        return terminal.json(&answer);
    }
    print(&stream.finish()?)?;
    print("\n")
}

/// The form of the prompt, and why, for the user: as asked for, or else as the adapter was trained.
fn prompt_form(arguments: &Arguments, model: &Ready) -> Result<(PromptForm, String)> {
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
