//! Ollama: a folder with the model as GGUF and a Modelfile.
//!
//! Ollama does not run a model's Jinja template. It has a template of its own kind (Go's `text/template`), which it takes from
//! the Modelfile. The one here is made from what the model's own template writes around the turns of a few conversations,
//! and is used only if it then gives the same text for ten others.

use std::path::Path;

use super::model::{ExportReport, ModelPlan};
use crate::data::{ChatTemplate, Encoder, Message, Role};
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::staging::Staging;

/// The name of the model's file in the folder.
const MODEL: &str = "model.gguf";
const MODELFILE: &str = "Modelfile";

/// The texts around the turns of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    /// Before a system message, and after it.
    system: [String; 2],
    /// At the beginning of a conversation without one: a default one, perhaps.
    no_system: String,
    /// Before a user's message, and after it: the assistant's header is part of that.
    user: [String; 2],
    /// After an answer.
    after_answer: String,
}

/// Writes the planned model and its Modelfile into a new folder at `out`.
///
/// # Errors
/// Those of [`ModelPlan::write`]. Input: a chat template that Ollama's kind of template cannot express.
pub fn write_folder(
    plan: ModelPlan<'_>,
    encoder: &Encoder,
    out: &Path,
    examine: impl FnOnce(&Path) -> Result<()>,
) -> Result<ExportReport> {
    Staging::check_free(out)?;
    let modelfile = modelfile(encoder)?;
    let staging = Staging::beside(out)?;
    let mut report = plan.write_into(staging.path(), Path::new(MODEL), examine)?;
    atomic::write_bytes(&staging.path().join(MODELFILE), modelfile.as_bytes())?;
    staging.publish(out)?;
    report.files.push(MODELFILE.to_owned());
    Ok(report)
}

/// The text of the Modelfile.
///
/// # Errors
/// Those of [`write_folder`].
pub fn modelfile(encoder: &Encoder) -> Result<String> {
    let template = match encoder.template() {
        None => "{{ .Prompt }}".to_owned(),
        Some(template) => go_template(encoder, template)?,
    };
    let mut text = format!("FROM ./{MODEL}\nTEMPLATE \"\"\"{template}\"\"\"\n");
    let tokenizer = encoder.tokenizer();
    for stop in encoder.stop_tokens() {
        let stop = tokenizer.id_to_token(stop).unwrap_or_default();
        // A line of a Modelfile ends its parameter.
        if !stop.is_empty() && !stop.contains(['"', '\n']) {
            text += &format!("PARAMETER stop \"{stop}\"\n");
        }
    }
    Ok(text)
}

fn go_template(encoder: &Encoder, template: &ChatTemplate) -> Result<String> {
    let refused = |message: &str| {
        Error::input(template.place(), format!("{message}: Ollama's kind of template cannot express it"))
            .hint("`--format gguf` writes the model with the template as it is; llama.cpp's server runs it")
    };
    let tokenizer = encoder.tokenizer();
    let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos()).and_then(|bos| tokenizer.id_to_token(bos));
    let bos = bos.unwrap_or_default();
    // Ollama adds the beginning-of-text token itself.
    let render = |messages: &[Message]| {
        let text = template.render(messages, true)?;
        Ok::<_, Error>(text.strip_prefix(&bos).map_or(text.clone(), str::to_owned))
    };
    let frame = Frame::of(render)?.ok_or_else(|| refused("writes something else around turns of the same kind"))?;
    for conversation in conversations() {
        // A template may refuse a system message; then there is nothing to compare.
        let Ok(expected) = render(&conversation) else { continue };
        if frame.render(&conversation) != expected {
            return Err(refused("depends on more than the turns one by one"));
        }
    }
    frame.go_template().ok_or_else(|| refused("writes braces or quotation marks around turns"))
}

/// The texts before, between and after these parts, which follow each other in `text`.
fn between<'t>(text: &'t str, parts: &[&str]) -> Option<Vec<&'t str>> {
    let mut rest = text;
    let mut gaps = Vec::new();
    for part in parts {
        let (gap, after) = rest.split_once(part)?;
        gaps.push(gap);
        rest = after;
    }
    gaps.push(rest);
    Some(gaps)
}

/// The longest common ending, in whole characters.
fn common_ending<'t>(first: &'t str, others: &[&str]) -> &'t str {
    let starts = first.char_indices().map(|(at, _)| at).chain([first.len()]);
    let mut endings = starts.map(|at| &first[at..]);
    endings.find(|ending| others.iter().all(|other| other.ends_with(ending))).unwrap_or_default()
}

impl Frame {
    /// The texts that a template writes; `None` where they are not the same everywhere.
    fn of(render: impl Fn(&[Message]) -> Result<String>) -> Result<Option<Self>> {
        const SYSTEM: &str = "Sysinstructions";
        const FIRST: &str = "Firstquestion";
        const ANSWER: &str = "Firstanswer";
        const SECOND: &str = "Secondquestion";
        let turns = [Message::user(FIRST), Message::assistant(ANSWER), Message::user(SECOND)];
        let plain = render(&turns)?;
        let with_system = [&[Message::system(SYSTEM)][..], &turns].concat();
        let with_system = render(&with_system).ok();
        let Some(plain) = between(&plain, &[FIRST, ANSWER, SECOND]).map(owned) else { return Ok(None) };
        let [start, after_first, after_answer, after_second] = &plain[..] else { return Ok(None) };
        let system = with_system.as_deref().and_then(|text| between(text, &[SYSTEM, FIRST, ANSWER, SECOND])).map(owned);
        let header = match &system {
            Some(system) => common_ending(start, &[after_answer, &system[1]]),
            None => common_ending(start, &[after_answer]),
        };
        if after_first != after_second {
            return Ok(None);
        }
        let without = |text: &str| text.strip_suffix(header).unwrap_or(text).to_owned();
        Ok(Some(Self {
            system: match &system {
                Some(system) => [system[0].clone(), without(&system[1])],
                None => [without(start), String::new()],
            },
            no_system: without(start),
            user: [header.to_owned(), after_first.clone()],
            after_answer: without(after_answer),
        }))
    }

    /// The text of a conversation, as Ollama renders [`Self::go_template`].
    fn render(&self, messages: &[Message]) -> String {
        let mut text = match messages.first().filter(|message| message.role == Role::System) {
            Some(system) => format!("{}{}{}", self.system[0], system.content, self.system[1]),
            None => self.no_system.clone(),
        };
        for message in messages {
            match message.role {
                Role::User => {
                    text += &format!("{}{}{}", self.user[0], message.content, self.user[1]);
                }
                Role::Assistant => text += &format!("{}{}", message.content, self.after_answer),
                _ => {}
            }
        }
        text
    }

    /// The template in Go's form; `None` where a text would be read as a part of it.
    fn go_template(&self) -> Option<String> {
        let texts = self.system.iter().chain([&self.no_system, &self.after_answer]).chain(&self.user);
        let is_plain = |text: &String| !text.contains("{{") && !text.contains("}}") && !text.contains('"');
        if !texts.clone().all(is_plain) {
            return None;
        }
        let [before_system, after_system] = &self.system;
        let [before_user, after_user] = &self.user;
        let (no_system, after_answer) = (&self.no_system, &self.after_answer);
        Some(format!(
            "{{{{ if .System }}}}{before_system}{{{{ .System }}}}{after_system}{{{{ else }}}}{no_system}{{{{ end }}}}\
             {{{{ range .Messages }}}}{{{{ if eq .Role \"user\" }}}}{before_user}{{{{ .Content }}}}{after_user}\
             {{{{ else if eq .Role \"assistant\" }}}}{{{{ .Content }}}}{after_answer}{{{{ end }}}}{{{{ end }}}}"
        ))
    }
}

fn owned(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

/// Ten conversations of different lengths, with and without a system message.
pub fn conversations() -> Vec<Vec<Message>> {
    let user = |text: &str| Message::user(text);
    let answer = |text: &str| Message::assistant(text);
    let system = |text: &str| Message::system(text);
    vec![
        vec![user("Hello")],
        vec![system("Answer briefly."), user("What is the capital of France?")],
        vec![user("1 + 1?"), answer("2"), user("And 2 + 2?")],
        vec![system("You are a pirate."), user("Who are you?"), answer("Arr!"), user("Say it again.")],
        vec![user("Zwei\nZeilen\n\nund eine dritte")],
        vec![user("def f(x):\n    return {\"a\": [x]}"), answer("It returns a dictionary."), user("Why?")],
        vec![user("河水流过古老的磨坊 😀"), answer("是的。"), user("谢谢")],
        vec![system("Line one.\nLine two."), user("a"), answer("b"), user("c"), answer("d"), user("e")],
        vec![user("a"), answer("b"), user("c"), answer("d"), user("e"), answer("f"), user("g")],
        vec![user("<b>tags</b> & \"quotes\" 'and' `ticks` | pipes \\ slashes")],
    ]
}
