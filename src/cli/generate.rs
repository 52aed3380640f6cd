//! `burnish generate`: answers a prompt.

use std::io::{self, ErrorKind, IsTerminal, Write};

use clap::Args;
use serde::Serialize;

use super::Global;
use super::model::Model;
use super::terminal::Terminal;
use crate::data::Message;
use crate::error::{Error, Result, printable};
use crate::generate::sample::SamplerConfig;
use crate::run::infer::{Answering, answer_ids};
use crate::text::TextStream;

/// Answer a prompt; the answer alone goes to stdout, as it comes
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    model: Model,
    /// The prompt, which goes through the model's chat template
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Take the prompt as it is, without the chat template; control tokens that it spells are control tokens
    #[arg(long)]
    raw: bool,
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
    /// Same seed, same answer
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
    let answering = Answering { sampler, max_tokens: arguments.max_tokens, raw: arguments.raw };
    let mut stream = TextStream::new(model.base.encoder.tokenizer(), true);
    let mut tokens = 0;
    let encoder = &model.base.encoder;
    let prompt = match arguments.raw {
        true => encoder.encode_typed_prompt(&arguments.prompt)?,
        false => encoder.encode_prompt(&[Message::user(arguments.prompt.as_str())])?,
    };
    let answers = answer_ids(&model.decoder, encoder, attached.as_ref(), &[prompt], &answering, |_, token| {
        tokens += 1;
        let text = stream.push(token)?;
        if global.json { Ok(()) } else { print(&text) }
    })?;
    if global.json {
        let answer = Answer { prompt: &arguments.prompt, answer: answers.first().map_or("", String::as_str), tokens };
        return terminal.json(&answer);
    }
    print(&stream.finish()?)?;
    print("\n")
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
