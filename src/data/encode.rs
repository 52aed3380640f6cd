//! Examples to token ids with a mask of what is trained: the one path for training, evaluation and generation.

use std::ops::Range;

use serde_json::Value;

use super::alpaca;
use super::bare::ControlTokens;
use super::chat::builtin::BuiltinTemplate;
use super::chat::stand_ins::{Hidden, SpecialTexts, StandIns};
use super::chat::template::ChatTemplate;
use super::chat::{control, conversation, coverage, turns};
use super::encoded::{Encoded, Judged};
use super::example::{Example, Message, Role};
use super::images::pictures::{Expanded, Pictures};
use super::remark::Remark;
use crate::error::{Error, Result};
use crate::model::vision::features;
use crate::text::Tokenizer;

/// Renders and encodes: the one path for training, evaluation and generation.
#[derive(Debug, Clone)]
pub struct Encoder {
    pub(super) tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    pub(super) specials: SpecialTexts,
    pub(super) control_tokens: ControlTokens,
    /// The labels of texts, in the order of their numbers.
    pub(super) labels: Vec<String>,
    /// Tokens that the model has an embedding for; `usize::MAX` where that is not known.
    vocabulary: usize,
    /// The pictures that it has met, where the model sees any.
    pictures: Option<Pictures>,
}

impl Encoder {
    /// An encoder for a model. Without a template, chat data is an error and Alpaca data gets Alpaca's prompt. The tokens
    /// that the template puts around turns become control tokens, whatever the tokenizer's file says of them.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let tokenizer = match &template {
            Some(template) => control::with_turn_tokens(tokenizer, template),
            None => tokenizer,
        };
        let specials = SpecialTexts::of(&tokenizer);
        let (control_tokens, labels) = (ControlTokens::Text, Vec::new());
        Self { tokenizer, template, specials, control_tokens, labels, vocabulary: usize::MAX, pictures: None }
    }

    /// The same for a model with an embedding of so many rows: a token beyond them is an error. A tokenizer may have more
    /// (padding that was added to it, say), as long as no text needs them.
    pub fn for_vocabulary(self, rows: usize) -> Self {
        Self { vocabulary: rows, ..self }
    }

    /// The same for a model that sees pictures.
    pub fn with_pictures(self, pictures: Option<Pictures>) -> Self {
        Self { pictures, ..self }
    }

    /// The pictures that it has met; `None` where the model sees none.
    pub fn pictures(&self) -> Option<&Pictures> {
        self.pictures.as_ref()
    }

    /// Checks that the model has an embedding for every id.
    ///
    /// # Errors
    /// Input: a token without one.
    pub fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) else { return Ok(()) };
        let token = self.tokenizer.id_to_token(*id).unwrap_or_default();
        let message = format!("token {id} {token:?} lies beyond the {} rows of the model's embedding", self.vocabulary);
        Err(Error::input(self.tokenizer.place(), message).hint("is this the tokenizer that the model was saved with?"))
    }

    /// [`check_ids`](Self::check_ids) of ids among which rows of pictures may stand.
    fn check_tokens(&self, ids: &[u32]) -> Result<()> {
        ids.split(|id| features::is_feature(*id)).try_for_each(|tokens| self.check_ids(tokens))
    }

    /// An encoder with the chat template that the tokenizer brings. `place` names the model in messages.
    ///
    /// # Errors
    /// Those of [`ChatTemplate::of`].
    pub fn of(tokenizer: Tokenizer, place: &str) -> Result<Self> {
        let template = ChatTemplate::of(&tokenizer, place)?;
        Ok(Self::new(tokenizer, template))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// A text that differs between two encoders that encode some example differently; a template that shows the date
    /// brings that of today.
    ///
    /// # Errors
    /// Those of [`Tokenizer::identity`].
    pub(super) fn identity(&self) -> Result<String> {
        let template = self.template.as_ref().map(ChatTemplate::identity);
        let Self { control_tokens, labels, vocabulary, .. } = self;
        Ok(format!("{}{template:?}{control_tokens}{labels:?}{vocabulary}", self.tokenizer.identity()?))
    }

    /// The chat template, where there is one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Whether there is a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Ids and mask of one example.
    ///
    /// # Errors
    /// Input: what template and tokenizer say; chat data without a template; a token without an embedding.
    pub fn encode(&self, example: &Example) -> Result<Encoded> {
        Ok(self.encode_with_remarks(example)?.0)
    }

    /// [`Self::encode`], and what is to be said about the example.
    ///
    /// # Errors
    /// Those of [`Self::encode`].
    pub(super) fn encode_with_remarks(&self, example: &Example) -> Result<(Encoded, Vec<Remark>)> {
        let mut remarks = Vec::new();
        let encoded = match example {
            Example::PromptCompletion { prompt, completion } => {
                remarks.extend(self.spelled([prompt.as_str(), completion], false));
                remarks.extend(completion.is_empty().then_some(Remark::EmptyAnswer));
                self.completion(prompt, completion)?
            }
            Example::Text { text } => {
                remarks.extend(self.spelled([text.as_str()], false));
                self.plain_text(text)?
            }
            Example::Class { text, label } => {
                remarks.extend(self.spelled([text.as_str()], false));
                self.classified(text, label)?
            }
            Example::Chat { messages, tools } => match &self.template {
                Some(template) => self.chat(messages, tools.as_ref(), template, &mut remarks)?,
                None => return Err(no_template()),
            },
            Example::Alpaca { instruction, input, output, system } => match &self.template {
                Some(template) => {
                    let messages = alpaca::messages(instruction, input, output, system.as_deref());
                    self.chat(&messages, None, template, &mut remarks)?
                }
                None => {
                    remarks.extend(self.spelled([instruction.as_str(), input, output], false));
                    remarks.extend(output.is_empty().then_some(Remark::EmptyAnswer));
                    self.completion(&alpaca::prompt(instruction, input, system.as_deref()), output)?
                }
            },
            Example::Preference { chosen, rejected } => {
                let (chosen, of_chosen) = self.encode_with_remarks(chosen)?;
                let (rejected, of_rejected) = self.encode_with_remarks(rejected)?;
                remarks.extend(of_chosen);
                let new: Vec<Remark> = of_rejected.into_iter().filter(|remark| !remarks.contains(remark)).collect();
                remarks.extend(new);
                chosen.above(rejected)
            }
            Example::Labelled { answered, is_desirable } => {
                let (encoded, of_answer) = self.encode_with_remarks(answered)?;
                remarks.extend(of_answer);
                Encoded { judged: Judged::Labelled(*is_desirable), ..encoded }
            }
        };
        self.check_tokens(&encoded.ids)?;
        Ok((encoded, remarks))
    }

    /// A remark where one of `texts` spells control tokens.
    fn spelled<'a>(&self, texts: impl IntoIterator<Item = &'a str>, in_chat: bool) -> Option<Remark> {
        if self.control_tokens == ControlTokens::Tokens && !in_chat {
            return None;
        }
        let token = texts.into_iter().find_map(|text| self.specials.find(text))?.1;
        Some(Remark::SpellsControl { token: token.to_owned(), in_chat })
    }

    /// Whether a text spells a control token, which is encoded as ordinary text.
    pub fn spells_control_tokens(&self, text: &str) -> bool {
        self.specials.find(text).is_some()
    }

    /// Ids of a conversation up to where the assistant's next answer begins.
    ///
    /// # Errors
    /// Those of [`Self::encode`]; a template that shows nothing of the last message.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode_prompt_with(messages, None)
    }

    /// [`Self::encode_prompt`] with tools that the assistant may call.
    ///
    /// # Errors
    /// Those of [`Self::encode_prompt`].
    pub fn encode_prompt_with(&self, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>> {
        let Some(template) = &self.template else {
            if messages.iter().any(Message::shows_pictures) {
                return Err(no_template());
            }
            return match messages {
                [Message { role: Role::User, content, .. }] => {
                    self.encode_raw_prompt(&alpaca::prompt(content, "", None))
                }
                [Message { role: Role::System, content: system, .. }, Message { role: Role::User, content, .. }] => {
                    self.encode_raw_prompt(&alpaca::prompt(content, "", Some(system)))
                }
                _ => Err(no_template()),
            };
        };
        let hidden = self.hidden(messages, tools, template)?;
        let template = template.with_tools(hidden.tools.as_ref());
        let text = turns::prompt(&hidden.messages, &template)?;
        let last = hidden.messages.len().checked_sub(1);
        if last.is_some_and(|last| coverage::left_out(&hidden.messages, &template).contains(&last)) {
            let role = messages.last().map_or("", |message| message.role.name());
            let message = format!("shows nothing of the last message, a turn of the role `{role}`");
            return Err(Error::input(template.place(), message).hint("the model would answer what it never saw"));
        }
        let expanded = Expanded::of(self.pictures.as_ref(), text, messages, &mut [])?;
        let mut ids = self.ids_of_rendered(&expanded.text, &hidden.stand_ins, false)?;
        expanded.place(&mut ids)?;
        self.check_tokens(&ids)?;
        Ok(ids)
    }

    /// The prompt ids of an example and the answer it expects; `None` for plain text and for conversations
    /// that do not end with words of the assistant.
    ///
    /// # Errors
    /// Those of [`Self::encode_prompt`].
    pub fn prompt_and_answer(&self, example: &Example) -> Result<Option<(Vec<u32>, String)>> {
        let from_messages = |messages: &[Message], tools: Option<&Value>| match messages.split_last() {
            Some((Message { role: Role::Assistant, content, .. }, before)) => {
                Ok(Some((self.encode_prompt_with(before, tools)?, content.clone())))
            }
            _ => Ok(None),
        };
        match example {
            Example::PromptCompletion { prompt, completion } => {
                Ok(Some((self.encode_raw_prompt(prompt)?, completion.clone())))
            }
            Example::Alpaca { instruction, input, output, system } => match &self.template {
                Some(_) => from_messages(&alpaca::messages(instruction, input, output, system.as_deref()), None),
                None => {
                    let prompt = alpaca::prompt(instruction, input, system.as_deref());
                    Ok(Some((self.encode_raw_prompt(&prompt)?, output.clone())))
                }
            },
            Example::Chat { messages, tools } => from_messages(messages, tools.as_ref()),
            Example::Preference { chosen, .. } => self.prompt_and_answer(chosen),
            Example::Labelled { answered, is_desirable: true } => self.prompt_and_answer(answered),
            Example::Text { .. } | Example::Class { .. } | Example::Labelled { .. } => Ok(None),
        }
    }

    /// The tokens at which generation stops: the tokenizer's, and the one the template ends a turn with.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let mut tokens = self.tokenizer.eos_tokens();
        if let Some(template) = &self.template {
            let probe = self.chat(&[Message::user("a"), Message::assistant("b")], None, template, &mut Vec::new()).ok();
            let last = probe.and_then(|probe| {
                probe.ids.iter().zip(&probe.trained).rev().find(|(_, trained)| **trained).map(|(id, _)| *id)
            });
            tokens.extend(last.filter(|id| self.tokenizer.is_special(*id) && !tokens.contains(id)));
        }
        tokens
    }

    /// A conversation in the form that `template` takes, with stand-ins for the control tokens that it spells.
    fn hidden(&self, messages: &[Message], tools: Option<&Value>, template: &ChatTemplate) -> Result<Hidden> {
        let mut hidden = self.specials.hide(messages, tools)?;
        let template = template.with_tools(hidden.tools.as_ref());
        hidden.messages = conversation::prepared(&hidden.messages, &template)?;
        Ok(hidden)
    }

    /// A conversation by the template, with loss on the assistant's turns.
    fn chat(
        &self,
        messages: &[Message],
        tools: Option<&Value>,
        template: &ChatTemplate,
        remarks: &mut Vec<Remark>,
    ) -> Result<Encoded> {
        let hidden = self.hidden(messages, tools, template)?;
        let as_given = messages;
        let (messages, stand_ins) = (&hidden.messages, &hidden.stand_ins);
        let template = &template.with_tools(hidden.tools.as_ref());
        let marked = coverage::marked(messages, hidden.tools.as_ref(), template);
        let for_turns = marked.as_ref().map(|(conversation, shown)| (conversation, shown.clone()));
        let rendered = turns::rendered(messages, template, &self.specials, for_turns)?;
        let mut of_turns = coverage::untrained_roles(messages);
        if let Some((marked, shown)) = &marked {
            of_turns.extend(coverage::remarks(messages, hidden.tools.as_ref(), template, (marked, shown), &rendered));
        }
        let turns::Rendered { text, mut answers, missing, other_prompt, .. } = rendered;
        of_turns.extend(
            other_prompt.map(|turns::OtherPrompt { prompt, finished }| Remark::OtherPrompt { prompt, finished }),
        );
        remarks.extend(of_turns.into_iter().map(|remark| remark.with_role(|role| stand_ins.as_written(role))));
        remarks.extend(
            stand_ins.texts.values().min().map(|token| Remark::SpellsControl { token: token.clone(), in_chat: true }),
        );
        let is_empty = |message: &Message| {
            message.is_answer() && message.content.trim().is_empty() && !message.more.contains_key("tool_calls")
        };
        remarks.extend(messages.iter().any(is_empty).then_some(Remark::EmptyAnswer));
        let is_left_out = |role: &str| {
            remarks.iter().any(|remark| match remark {
                Remark::TurnLeftOut { role: other } | Remark::KeyLeftOut { role: Some(other), .. } => other == role,
                _ => false,
            })
        };
        let changed =
            messages.iter().filter(|message| !message.texts().into_iter().all(|content| is_shown(content, &text)));
        let changed = changed.map(|message| message.role.name()).filter(|role| !is_left_out(role));
        let changed: Vec<Remark> =
            changed.map(|role| Remark::TextChanged { role: stand_ins.as_written(role) }).collect();
        remarks.extend(changed);

        let expanded = Expanded::of(self.pictures.as_ref(), text, as_given, &mut answers)?;
        let text = expanded.text.as_str();
        let mut encoded = Encoded::new();
        encoded.untrained_turns = missing;
        let mut done = 0;
        for answer in &answers {
            self.extend(&mut encoded, text, done..answer.start, stand_ins, false)?;
            self.extend(&mut encoded, text, answer.clone(), stand_ins, true)?;
            done = answer.end;
        }
        let last_is_open = answers.last().is_some_and(|answer| {
            text[answer.end..].trim().is_empty() && !self.specials.ends(text[answer.clone()].trim_end())
        });
        if last_is_open {
            // The template writes no end of turn: without one, generation would never learn to stop.
            encoded.push(&self.end(), true);
        } else {
            self.extend(&mut encoded, text, done..text.len(), stand_ins, false)?;
        }
        expanded.place(&mut encoded.ids)?;
        Ok(encoded)
    }

    /// Appends the ids of `text[part]`, where `text[..part.start]` is encoded already. If encoding the text up to
    /// `part.end` at once gives the same beginning, that is what counts; otherwise a token lies across the start
    /// of the part, and the part is encoded on its own, as generation will see it. The text is encoded from its last
    /// control token on where the tokenizer cuts it there anyway.
    fn extend(
        &self,
        encoded: &mut Encoded,
        text: &str,
        part: Range<usize>,
        stand_ins: &StandIns,
        trained: bool,
    ) -> Result<()> {
        if part.is_empty() {
            return Ok(());
        }
        let (known, begin) = match stand_ins.texts.is_empty() {
            true => self.last_cut(&encoded.ids, &text[..part.start]).unwrap_or_default(),
            false => (0, 0),
        };
        let whole = self.ids_of_rendered(&text[begin..part.end], stand_ins, false)?;
        match whole.strip_prefix(&encoded.ids[known..]) {
            Some(added) => encoded.push(added, trained),
            None => encoded.push(&self.ids_of_rendered(&text[part], stand_ins, true)?, trained),
        }
        Ok(())
    }

    /// The end of the last control token in `ids` and in `text`, which they encode; `None` where the tokenizer does not cut
    /// texts there.
    fn last_cut(&self, ids: &[u32], text: &str) -> Option<(usize, usize)> {
        let known = ids.iter().rposition(|id| self.tokenizer.is_special(*id))?;
        let token = self.tokenizer.id_to_token(ids[known]).filter(|_| self.tokenizer.splits_at_control_tokens())?;
        Some((known + 1, text.rfind(&token)? + token.len()))
    }

    /// Ids of rendered text: control tokens where the template spelled them, ordinary text where a message did.
    /// `continues`: text came before.
    fn ids_of_rendered(&self, text: &str, stand_ins: &StandIns, continues: bool) -> Result<Vec<u32>> {
        if stand_ins.texts.is_empty() {
            return match continues {
                true => self.tokenizer.encode_continuation(text),
                false => self.tokenizer.encode_with_special(text),
            };
        }
        let mut ids = Vec::new();
        let mut continues = continues;
        for piece in text.split_inclusive(|symbol| stand_ins.texts.contains_key(&symbol)) {
            let hidden = piece.chars().next_back().and_then(|last| Some((last, stand_ins.texts.get(&last)?)));
            let plain = hidden.map_or(piece, |(last, _)| &piece[..piece.len() - last.len_utf8()]);
            if !plain.is_empty() {
                ids.extend(match continues {
                    true => self.tokenizer.encode_continuation(plain)?,
                    false => self.tokenizer.encode_with_special(plain)?,
                });
            }
            if let Some((_, spelled)) = hidden {
                ids.extend(self.tokenizer.encode_ordinary_continuation(spelled)?);
            }
            continues = true;
        }
        Ok(ids)
    }
}

/// Whether `text` shows `content`, white space aside, which templates trim and break otherwise.
fn is_shown(content: &str, text: &str) -> bool {
    let visible = |text: &str| text.chars().filter(|symbol| !symbol.is_whitespace()).collect::<String>();
    text.contains(content.trim()) || visible(text).contains(&visible(content))
}

fn no_template() -> Error {
    Error::input("", "the model has no chat template, and chat data needs one").hint(format!(
        "name one in the recipe (`data.template = \"chatml\"`; built in are {}; or a file), use an instruct model, or data in \
         the shape {{\"prompt\", \"completion\"}} or {{\"instruction\", \"output\"}}",
        BuiltinTemplate::words()
    ))
}
