//! A conversation with one of several models: its turns, and the answers that follow them.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

use super::question::Question;
use crate::data::Message;
use crate::error::{Error, Result, counted};
use crate::files::output::log::Log;
use crate::generate::engine::{Engine, EngineOptions, Event, Request, RequestId, Usage};
use crate::generate::run::{Finish, check_prompt};
use crate::generate::sample::SamplerConfig;
use crate::interrupt;
use crate::run::answer::PromptForm;
use crate::run::named::{NamedModel, NamedModels, Prompt};

/// An answer.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    pub(super) model: String,
    pub(super) answer: String,
    pub(super) usage: Usage,
    /// Ctrl-C ended it.
    pub(super) is_stopped: bool,
}

impl Reply {
    /// The figures in words.
    pub(super) fn figures(&self) -> String {
        let stopped = if self.is_stopped { "stopped; " } else { "" };
        let (tokens, first) = (counted(self.usage.answer_tokens as u64, "token"), self.usage.seconds_to_first_token);
        let speed = self.usage.tokens_per_second().map_or_else(String::new, |speed| format!(", {speed:.1} tokens/s"));
        format!("[{stopped}{tokens}{speed}, first after {first:.2} s]")
    }
}

/// A conversation.
pub(super) struct Session {
    engine: Engine,
    /// The base first.
    models: Vec<NamedModel>,
    /// The model that answers.
    current: usize,
    system: Option<String>,
    /// Questions with their answers.
    turns: Vec<(Question, String)>,
    /// Turns at the beginning that do not fit any more.
    left_out: usize,
    sampler: SamplerConfig,
    max_tokens: usize,
    notice: Option<String>,
}

impl Session {
    /// A conversation without turns, with the first adapter, or with the base where there is none.
    pub(super) fn new(
        models: NamedModels,
        options: EngineOptions,
        sampler: SamplerConfig,
        max_tokens: usize,
        system: Option<String>,
    ) -> Self {
        let NamedModels { loaded, base, adapters } = models;
        let mut engine = Engine::new(loaded.decoder, base.encoder.tokenizer(), options);
        let mut models = vec![base];
        for adapter in adapters {
            engine.add_adapter(&adapter.model.name, &adapter.attached);
            models.push(adapter.model);
        }
        let current = usize::from(models.len() > 1);
        let (turns, left_out, notice) = (Vec::new(), 0, None);
        Self { engine, models, current, system, turns, left_out, sampler, max_tokens, notice }
    }

    fn model(&self) -> &NamedModel {
        &self.models[self.current]
    }

    /// Whether the model takes each question alone.
    pub(super) fn asks_alone(&self) -> bool {
        self.model().form != PromptForm::Conversation
    }

    /// A line about the model that answers.
    pub(super) fn about_model(&self) -> String {
        let name = &self.model().name;
        match self.asks_alone() {
            true => {
                format!("{name} answers; it was trained on bare prompts, so each question is asked alone, as it is")
            }
            false => format!("{name} answers"),
        }
    }

    /// The models, with a mark at the one that answers.
    pub(super) fn list(&self) -> String {
        let line = |(index, model): (usize, &NamedModel)| {
            let mark = if index == self.current { "*" } else { " " };
            format!("{mark} {}{}", model.name, if index == 0 { " (base)" } else { "" })
        };
        self.models.iter().enumerate().map(line).collect::<Vec<_>>().join("\n")
    }

    /// Takes the model of a name; `base` names the base, too.
    ///
    /// # Errors
    /// Input: there is none.
    pub(super) fn choose(&mut self, name: &str) -> Result<()> {
        let found = self.models.iter().position(|model| model.name == name);
        let found = found.or_else(|| (name == "base").then_some(0));
        self.current = found.ok_or_else(|| {
            let known: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
            Error::input("/adapter", format!("there is no `{name}`; known are {}", known.join(", ")))
        })?;
        Ok(())
    }

    pub(super) fn set_system(&mut self, system: Option<String>) {
        self.system = system;
    }

    /// Forgets the last question, which is returned.
    pub(super) fn undo(&mut self) -> Option<String> {
        self.turns.pop().map(|(question, _)| question.text)
    }

    /// Checks that the model that answers can be shown a question's pictures.
    ///
    /// # Errors
    /// Input: it sees no pictures; a picture that cannot be read.
    pub(super) fn check_pictures(&self, question: &Question) -> Result<()> {
        question.add_to(&mut self.model().pictures().map_err(|error| error.within("/image"))?)
    }

    /// Forgets every turn.
    pub(super) fn forget(&mut self) {
        self.turns.clear();
        self.left_out = 0;
    }

    pub(super) fn turns(&self) -> usize {
        self.turns.len()
    }

    /// A remark for the user that has come up.
    pub(super) fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }

    /// Adds the conversation to a file as one line, in the form that training reads. Pictures stay where they are, and are named from
    /// the file's folder on.
    ///
    /// # Errors
    /// Input: there is no turn. Failed: the file cannot be written.
    pub(super) fn save(&mut self, path: &Path) -> Result<()> {
        if self.turns.is_empty() {
            return Err(Error::input("/save", "there is nothing to save yet"));
        }
        let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
        let system = self.system.iter().map(|system| turn("system", system));
        let (turns, mut outside) = (self.turns.iter(), Vec::new());
        let turns: Vec<_> = turns
            .flat_map(|(question, answer)| {
                [json!({ "role": "user", "content": question.saved(path, &mut outside) }), turn("assistant", answer)]
            })
            .collect();
        if !outside.is_empty() {
            let (file, pictures) = (path.display(), outside.join(", "));
            self.notice = Some(format!("outside the folder of {file}, where training looks for pictures: {pictures}"));
        }
        let line = json!({ "messages": system.chain(turns).collect::<Vec<_>>() }).to_string();
        let written = Log::at_end(path).and_then(|mut log| {
            log.add(&line)?;
            log.sync()
        });
        written.map_err(|error| Error::write(path, &error))
    }

    /// Asks the model; `emit` gets the answer as it comes.
    ///
    /// # Errors
    /// Those of the prompt, of the engine and of `emit`.
    pub(super) fn ask(&mut self, question: Question, mut emit: impl FnMut(&str) -> Result<()>) -> Result<Reply> {
        let prompt = self.prompt(self.current, &question)?;
        let request = self.request(self.current, prompt);
        let mut replies = self.run(vec![(self.current, request)], |text| emit(text))?;
        let reply = replies.pop().ok_or_else(|| Error::failed("", "the engine gave no answer"))?;
        self.turns.push((question, reply.answer.clone()));
        Ok(reply)
    }

    /// Asks base and adapter the same question from the same seed; the last question where there is none. The conversation
    /// stays as it is.
    ///
    /// # Errors
    /// Input: there is no adapter or no question. Those of the prompt and of the engine.
    pub(super) fn compare(&mut self, question: Option<Question>) -> Result<Vec<Reply>> {
        let tuned = if self.current > 0 { self.current } else { 1 };
        if tuned >= self.models.len() {
            return Err(Error::input("/compare", "there is no adapter to compare the base with")
                .hint("`--adapter DIR` gives one"));
        }
        // The last question is asked once more, as it was asked then.
        let last = if question.is_none() { self.turns.pop() } else { None };
        let asked = question.or_else(|| last.as_ref().map(|(question, _)| question.clone()));
        let outcome = match asked {
            Some(question) => self.ask_both(tuned, &question),
            None => Err(Error::input("/compare", "there is no question yet; expected `/compare QUESTION`")),
        };
        self.turns.extend(last);
        outcome
    }

    fn ask_both(&mut self, tuned: usize, question: &Question) -> Result<Vec<Reply>> {
        let mut requests = Vec::new();
        for index in [0, tuned] {
            let prompt = self.prompt(index, question)?;
            requests.push((index, self.request(index, prompt)));
        }
        self.run(requests, |_| Ok(()))
    }

    /// The tokens of the conversation with a question at its end, and the features of the pictures among them. The oldest turns are
    /// left out where they do not fit.
    fn prompt(&mut self, index: usize, question: &Question) -> Result<Prompt> {
        let positions = self.engine.decoder_config().max_positions;
        let room = positions.saturating_sub(self.max_tokens.min(positions / 4));
        let model = &self.models[index];
        if model.form != PromptForm::Conversation {
            if self.system.is_some() {
                self.notice = Some(format!("{} was trained on bare prompts: it gets no instructions", model.name));
            }
            if question.shows_pictures() {
                model.pictures()?;
            }
            return Ok(model.prompt(&[Message::user(&question.text)], None)?.into());
        }
        let system = self.system.iter().map(Message::system);
        let was_whole = self.left_out == 0;
        loop {
            let turns = self.turns.get(self.left_out..).unwrap_or_default();
            let said = turns.iter().flat_map(|(question, answer)| [question.message(), Message::assistant(answer)]);
            let messages: Vec<Message> = system.clone().chain(said).chain([question.message()]).collect();
            let mut questions = turns.iter().map(|(question, _)| question).chain([question]);
            let pictures = match questions.clone().any(Question::shows_pictures) {
                true => {
                    let mut pictures = model.pictures()?;
                    questions.try_for_each(|question| question.add_to(&mut pictures))?;
                    Some(pictures)
                }
                false => None,
            };
            let ids = match &pictures {
                Some(pictures) => model.prompt_showing(&messages, None, pictures)?,
                None => model.prompt(&messages, None)?,
            };
            if turns.is_empty() || ids.len() <= room {
                if was_whole && self.left_out > 0 {
                    self.notice = Some(format!(
                        "the conversation is longer than the model's {positions} positions: its oldest turns are left out"
                    ));
                }
                check_prompt(&ids, positions).map_err(|error| error.within("prompt"))?;
                let pictures = pictures.map(|pictures| pictures.features()).transpose()?.unwrap_or_default();
                return Ok(Prompt { ids, pictures });
            }
            self.left_out += 1;
        }
    }

    fn request(&self, index: usize, Prompt { ids, pictures }: Prompt) -> Request {
        let model = &self.models[index];
        Request {
            pictures,
            adapter: (index > 0).then(|| model.name.clone()),
            sampler: SamplerConfig {
                seed: self.sampler.seed.wrapping_add(self.turns.len() as u64),
                ..self.sampler.clone()
            },
            max_tokens: self.max_tokens,
            end_tokens: model.end_tokens.clone(),
            tokenizer: Some(model.encoder.tokenizer().clone()),
            ..Request::new(ids)
        }
    }

    /// Runs requests to their ends, or until Ctrl-C; `emit` gets all text as it comes.
    fn run(&mut self, requests: Vec<(usize, Request)>, mut emit: impl FnMut(&str) -> Result<()>) -> Result<Vec<Reply>> {
        let mut places: HashMap<RequestId, usize> = HashMap::new();
        let mut replies = Vec::new();
        for (index, request) in requests {
            places.insert(self.engine.submit(request)?, replies.len());
            let model = self.models[index].name.clone();
            replies.push(Reply { model, answer: String::new(), usage: Usage::default(), is_stopped: false });
        }
        let mut failure = None;
        while !self.engine.is_idle() {
            if interrupt::take_ctrl_c() || interrupt::requested() || failure.is_some() {
                places.keys().for_each(|id| self.engine.cancel(*id));
            }
            for event in self.engine.step() {
                let outcome = match event {
                    Event::Token { request, text, .. } => {
                        replies[places[&request]].answer += &text;
                        emit(&text)
                    }
                    Event::Finished { request, text, finish, usage } => {
                        let reply = &mut replies[places[&request]];
                        reply.answer += &text;
                        (reply.usage, reply.is_stopped) = (usage, finish == Finish::Cancelled);
                        emit(&text)
                    }
                    Event::Failed { error, .. } => Err(error),
                };
                failure = failure.or(outcome.err());
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(replies),
        }
    }
}
