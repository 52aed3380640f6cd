//! `burnish chat`: a conversation in the terminal.

mod columns;
mod command;
mod lines;
mod question;
mod session;

use std::io::{self, IsTerminal};

use clap::Args;
use serde::Serialize;

use self::command::{Command, HELP, Input};
use self::lines::{Lines, Next};
use self::question::Question;
use self::session::{Reply, Session};
use super::Global;
use super::model::{EngineForm, NamedForm};
use super::terminal::Terminal;
use crate::error::{Result, counted};
use crate::generate::sample::SamplerConfig;
use crate::interrupt;
use crate::run::named::AdapterFolder;

/// Talk with a model in the terminal
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true, after_help = HELP)]
pub(super) struct Arguments {
    /// The base: smollm2-135m-instruct, hf:ORG/REPO, a Hugging Face folder or a .gguf file
    #[arg(long, value_name = "BASE")]
    base: String,
    /// An adapter folder in PEFT's format, with a name for `/adapter`; may be repeated, and the first answers
    #[arg(long, value_name = "[NAME=]DIR")]
    adapter: Vec<AdapterFolder>,
    /// Instructions that come before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// The longest answer, in tokens
    #[arg(long, default_value_t = 512, value_name = "N")]
    max_tokens: usize,
    /// 0 takes the likeliest token; higher is more varied
    #[arg(long, default_value_t = 0.7, value_name = "T")]
    temperature: f64,
    /// Sample among this many of the likeliest; 0 for all
    #[arg(long, default_value_t = 0, value_name = "N")]
    top_k: usize,
    /// Sample among the likeliest that together have this probability
    #[arg(long, default_value_t = 0.95, value_name = "P")]
    top_p: f64,
    /// Sample among those with at least this share of the likeliest's probability
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f64,
    /// Above 1, tokens seen before become less likely
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repetition_penalty: f64,
    /// Seed of the first answer; each further one has the next
    #[arg(long, default_value_t = 0, env = "BURNISH_SEED", value_name = "N")]
    seed: u64,
    #[command(flatten)]
    form: NamedForm,
    #[command(flatten)]
    engine: EngineForm,
}

/// An answer as a JSON object.
#[derive(Debug, Serialize)]
struct Answered<'a> {
    model: &'a str,
    answer: &'a str,
    answer_tokens: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens_per_second: Option<f64>,
    seconds_to_first_token: f64,
    /// Ctrl-C ended it.
    stopped: bool,
}

pub(super) fn run(arguments: &Arguments, global: &Global, terminal: &Terminal) -> Result<()> {
    let sampler = SamplerConfig {
        temperature: arguments.temperature,
        top_k: arguments.top_k,
        top_p: arguments.top_p,
        min_p: arguments.min_p,
        repetition_penalty: arguments.repetition_penalty,
        seed: arguments.seed,
        ..SamplerConfig::default()
    };
    sampler.check()?;
    let models = arguments.form.load(&arguments.base, &arguments.adapter, global, terminal)?;
    let options = arguments.engine.options(&models.loaded.decoder, models.loaded.compute)?;
    let mut session = Session::new(models, options, sampler, arguments.max_tokens, arguments.system.clone());
    let is_interactive = io::stdin().is_terminal() && io::stdout().is_terminal() && !global.json;
    let mut talk = Talk { terminal, is_interactive, is_json: global.json, next: Question::default() };
    if is_interactive {
        terminal.message(format!("{}; /help lists the commands, Ctrl-D ends", session.about_model()));
    } else if session.asks_alone() {
        terminal.message(session.about_model());
    }
    let mut lines = Lines::open(is_interactive)?;
    loop {
        let text = match lines.next()? {
            Next::Text(text) => text,
            Next::Nothing => continue,
            Next::End => return Ok(()),
        };
        // Ctrl-C ends the answer, and the user sees that it does.
        let finishing = interrupt::finish_first("");
        let outcome = match Input::of(&text) {
            Ok(Input::Command(Command::Quit)) => return Ok(()),
            Ok(input) => talk.take(&mut session, &mut lines, input),
            Err(error) => Err(error),
        };
        // One that came too late for an answer has nothing to stop.
        interrupt::take_ctrl_c();
        drop(finishing);
        match outcome {
            // A line that cannot be answered does not end the conversation of someone who sits before it.
            Err(error) if is_interactive => terminal.error(&error),
            outcome => outcome?,
        }
        if interrupt::requested() {
            return Ok(());
        }
    }
}

/// The output of a conversation.
struct Talk<'a> {
    terminal: &'a Terminal,
    is_interactive: bool,
    is_json: bool,
    /// The pictures of the next question.
    next: Question,
}

impl Talk<'_> {
    /// The next question, with the pictures that wait for it.
    fn asked(&mut self, text: String) -> Question {
        std::mem::take(&mut self.next).asking(text)
    }

    fn take(&mut self, session: &mut Session, lines: &mut Lines, input: Input) -> Result<()> {
        match input {
            Input::Question(question) => {
                let (streams, question) = (!self.is_json, self.asked(question));
                let reply = session.ask(question, |text| if streams { self.terminal.print(text) } else { Ok(()) })?;
                self.end(&reply)?;
            }
            Input::Command(command) => self.command(session, lines, command)?,
        }
        if let Some(notice) = session.take_notice() {
            self.terminal.message(notice);
        }
        Ok(())
    }

    fn command(&mut self, session: &mut Session, lines: &mut Lines, command: Command) -> Result<()> {
        let say = |text: String| self.terminal.message(text);
        match command {
            Command::Help => say(HELP.to_owned()),
            Command::System(text) => {
                say(if text.is_some() { "the instructions have changed" } else { "there are no instructions" }
                    .to_owned());
                session.set_system(text);
            }
            Command::Adapter(None) => say(session.list()),
            Command::Adapter(Some(name)) => {
                session.choose(&name)?;
                say(session.about_model());
            }
            Command::Undo => match session.undo() {
                Some(question) => say(format!("forgotten: {question}")),
                None => say("there is nothing to undo".to_owned()),
            },
            Command::Image(None) => {
                self.next = Question::default();
                say("no picture waits for the next question".to_owned());
            }
            Command::Image(Some(path)) => {
                let next = self.next.clone().with_picture(&path)?;
                session.check_pictures(&next)?;
                say(format!("the next question shows {}", counted(next.pictures(), "picture")));
                self.next = next;
            }
            Command::New => {
                session.forget();
                self.next = Question::default();
                say("a new conversation".to_owned());
            }
            Command::Save(path) => {
                session.save(&path)?;
                say(format!("{} added to {} as a line", counted(session.turns(), "turn"), path.display()));
            }
            Command::Compare(question) => {
                let question = question.map(|text| self.asked(text));
                let replies = session.compare(question)?;
                self.show_both(&replies, lines)?;
            }
            Command::Quit => {}
        }
        Ok(())
    }

    /// The end of a streamed answer.
    fn end(&self, reply: &Reply) -> Result<()> {
        if self.is_json {
            return self.object(reply);
        }
        self.terminal.print(if self.is_interactive { "\n" } else { "\n\n" })?;
        if self.is_interactive {
            self.terminal.message(reply.figures());
        }
        Ok(())
    }

    fn object(&self, reply: &Reply) -> Result<()> {
        let Reply { model, answer, usage, is_stopped } = reply;
        self.terminal.json(&Answered {
            model,
            answer,
            answer_tokens: usage.answer_tokens,
            tokens_per_second: usage.tokens_per_second(),
            seconds_to_first_token: usage.seconds_to_first_token,
            stopped: *is_stopped,
        })
    }

    /// Two answers side by side where there is room, or else one below the other.
    fn show_both(&self, replies: &[Reply], lines: &mut Lines) -> Result<()> {
        if self.is_json {
            return replies.iter().try_for_each(|reply| self.object(reply));
        }
        let width = if self.is_interactive { lines.width() } else { None };
        let texts: Vec<(&str, &str)> =
            replies.iter().map(|reply| (reply.model.as_str(), reply.answer.as_str())).collect();
        let shown = match (texts.as_slice(), width.filter(|width| *width >= columns::LEAST_WIDTH)) {
            ([left, right], Some(width)) => columns::side_by_side(*left, *right, width),
            _ => texts.iter().map(|(model, answer)| format!("{model}:\n{answer}\n\n")).collect(),
        };
        self.terminal.print(&shown)?;
        if self.is_interactive {
            replies.iter().for_each(|reply| self.terminal.message(format!("{}: {}", reply.model, reply.figures())));
        }
        Ok(())
    }
}
