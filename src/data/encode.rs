//! Examples to token ids with a mask of what is trained: the one path for training, evaluation and generation.
//!
//! What a template renders is text in which control tokens are spelled out. What people wrote may spell them
//! too; there they must stay text. So before rendering, every such spelling in a message is replaced by one
//! private-use character, which survives whatever the template does with the message, and after rendering
//! each of those is encoded as the ordinary text it stands for.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use rayon::prelude::*;
use serde_json::Value;

use super::example::{Example, Message, Role, Row};
use super::template::ChatTemplate;
use crate::error::{Error, Result};
use crate::settings::choice;
use crate::text::Tokenizer;

/// An encoded example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// Same length as `ids`: whether loss is taken on this token. Derived from positions, never from ids.
    pub trained: Vec<bool>,
    /// Turns of the assistant that are not trained: the template shows them differently in the whole conversation.
    pub untrained_turns: usize,
}

impl Encoded {
    /// The token ids, and which of them are trained on, as `Batch::join` takes them.
    pub fn parts(&self) -> (&[u32], &[bool]) {
        (&self.ids, &self.trained)
    }

    fn new() -> Self {
        Self { ids: Vec::new(), trained: Vec::new(), untrained_turns: 0 }
    }

    fn push(&mut self, ids: &[u32], trained: bool) {
        self.ids.extend_from_slice(ids);
        self.trained.resize(self.ids.len(), trained);
    }

    /// Tokens that loss is taken on. The first token of a sequence has nothing before it to be predicted from.
    pub fn trained_tokens(&self) -> usize {
        self.trained.iter().skip(1).filter(|trained| **trained).count()
    }
}

choice! {
    /// What happens to an example that is longer than `max_seq_tokens`.
    LongPolicy {
        /// It is left out, and counted.
        Drop = "drop",
        /// The start of its prompt is cut off, the beginning-of-text token excepted; left out if that is not enough.
        TruncatePrompt = "truncate-prompt",
        /// It is a problem, reported before training.
        Error = "error",
    }
}

/// Encoded examples, and what was left out on the way.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodedSet {
    /// In the order of the examples; those left out are missing.
    pub sequences: Vec<Encoded>,
    /// Left out because they have too many tokens.
    pub dropped_long: usize,
    /// Prompt cut because they had too many tokens.
    pub truncated: usize,
    /// Left out because nothing in them is trained.
    pub dropped_untrained: usize,
    /// Turns of the assistant in the kept sequences that are not trained.
    pub untrained_turns: usize,
    /// Tokens of the kept sequences.
    pub tokens: usize,
    /// Of these, the ones loss is taken on.
    pub trained_tokens: usize,
}

/// Alpaca's own prompt (stanford_alpaca `train.py`), for models without a chat template.
const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides \
                                 further context. Write a response that appropriately completes the request.";
const ALPACA_WITHOUT_INPUT: &str = "Below is an instruction that describes a task. Write a response that \
                                    appropriately completes the request.";

/// How many over-long examples are reported one by one.
const MAX_REPORTED: usize = 20;

/// Private-use characters (plane 15) stand for the texts of special tokens.
const PRIVATE_USE: Range<u32> = 0xF_0000..0xF_FFFE;

/// Renders and encodes: the one path for training, evaluation and generation.
#[derive(Debug)]
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    specials: SpecialTexts,
    /// Tokens that the model has an embedding for.
    vocabulary: usize,
}

impl Encoder {
    /// An encoder for a model. Without a template, chat data is an error and Alpaca data gets Alpaca's prompt.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>) -> Self {
        let specials = SpecialTexts::of(&tokenizer);
        Self { tokenizer, template, specials, vocabulary: usize::MAX }
    }

    /// The same for a model with an embedding of so many rows: a token beyond them is an error. A tokenizer may have more
    /// (padding that was added to it, say), as long as no text needs them.
    pub fn for_vocabulary(self, rows: usize) -> Self {
        Self { vocabulary: rows, ..self }
    }

    fn check_ids(&self, ids: &[u32]) -> Result<()> {
        let Some(id) = ids.iter().find(|id| **id as usize >= self.vocabulary) else { return Ok(()) };
        let token = self.tokenizer.id_to_token(*id).unwrap_or_default();
        let message = format!("token {id} {token:?} lies beyond the {} rows of the model's embedding", self.vocabulary);
        Err(Error::input(self.tokenizer.place(), message).hint("is this the tokenizer that the model was saved with?"))
    }

    /// An encoder with the chat template that the tokenizer brings. `place` names the model in messages.
    pub fn of(tokenizer: Tokenizer, place: &str) -> Result<Self> {
        let template = ChatTemplate::of(&tokenizer, place)?;
        Ok(Self::new(tokenizer, template))
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether there is a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Ids and mask of one example.
    pub fn encode(&self, example: &Example) -> Result<Encoded> {
        let encoded = self.encode_unchecked(example)?;
        self.check_ids(&encoded.ids)?;
        Ok(encoded)
    }

    fn encode_unchecked(&self, example: &Example) -> Result<Encoded> {
        match example {
            Example::PromptCompletion { prompt, completion } => self.completion(prompt, completion),
            Example::Text { text } => {
                let mut encoded = Encoded::new();
                encoded.push(&self.encode_raw_prompt(text)?, true);
                encoded.push(&self.end(), true);
                Ok(encoded)
            }
            Example::Chat { messages, tools } => match &self.template {
                Some(template) => self.chat(messages, tools.as_ref(), template),
                None => Err(no_template()),
            },
            Example::Alpaca { instruction, input, output, system } => match &self.template {
                Some(template) => {
                    self.chat(&alpaca_messages(instruction, input, output, system.as_deref()), None, template)
                }
                None => self.completion(&alpaca_prompt(instruction, input, system.as_deref()), output),
            },
        }
    }

    /// Ids and masks of all rows of the data file `file`, in parallel. `policy` decides about examples of more than
    /// `max_seq_tokens` tokens; what has no trained token is left out and counted.
    pub fn encode_all(
        &self,
        file: impl fmt::Display,
        rows: &[Row],
        max_seq_tokens: usize,
        policy: LongPolicy,
    ) -> Result<EncodedSet> {
        let encoded: Vec<Result<Encoded>> = rows.par_iter().map(|row| self.encode(&row.example)).collect();
        let mut set = EncodedSet::default();
        let mut problems = Vec::new();
        for (row, encoded) in rows.iter().zip(encoded) {
            let place = || row.position.within(&file);
            let mut encoded = match encoded {
                Ok(encoded) => encoded,
                Err(error) => {
                    problems.push(within(&place(), &error));
                    continue;
                }
            };
            let length = encoded.ids.len();
            if length > max_seq_tokens {
                let fits = match policy {
                    LongPolicy::Drop => false,
                    LongPolicy::TruncatePrompt => self.truncate(&mut encoded, max_seq_tokens),
                    LongPolicy::Error => {
                        let message = format!("has {length} tokens; at most {max_seq_tokens} fit");
                        problems.push(Error::input(place(), message));
                        continue;
                    }
                };
                set.truncated += usize::from(fits);
                set.dropped_long += usize::from(!fits);
                if !fits {
                    continue;
                }
            }
            let trained = encoded.trained_tokens();
            if trained == 0 {
                set.dropped_untrained += 1;
                continue;
            }
            set.tokens += encoded.ids.len();
            set.trained_tokens += trained;
            set.untrained_turns += encoded.untrained_turns;
            set.sequences.push(encoded);
        }
        let count = problems.len();
        problems.truncate(MAX_REPORTED);
        if count > MAX_REPORTED {
            problems.push(Error::input(format_args!("{file}"), format!("and {} more examples", count - MAX_REPORTED)));
        }
        Error::none_of(problems, set)
    }

    /// Takes tokens from the left of the prompt until `max` are left; false if the prompt is too short for that.
    fn truncate(&self, encoded: &mut Encoded, max: usize) -> bool {
        let keep_first = usize::from(encoded.ids.first().copied() == self.tokenizer.bos() && !encoded.ids.is_empty());
        let excess = encoded.ids.len() - max;
        let prompt = encoded.trained.iter().position(|trained| *trained).unwrap_or(encoded.ids.len());
        // One token must stay before the first trained one, to predict it from.
        if keep_first + excess + usize::from(keep_first == 0) > prompt {
            return false;
        }
        encoded.ids.drain(keep_first..keep_first + excess);
        encoded.trained.drain(keep_first..keep_first + excess);
        true
    }

    /// Ids of a conversation up to where the assistant's next answer begins.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        self.encode_prompt_with(messages, None)
    }

    /// [`Self::encode_prompt`] with tools that the assistant may call.
    fn encode_prompt_with(&self, messages: &[Message], tools: Option<&Value>) -> Result<Vec<u32>> {
        match &self.template {
            Some(template) => {
                let hidden = self.specials.hide(messages, tools)?;
                let template = template.with_tools(hidden.tools.as_ref());
                let ids = self.rendered(&template.render(&hidden.messages, true)?, &hidden.stand_ins, false)?;
                self.check_ids(&ids)?;
                Ok(ids)
            }
            None => match messages {
                [Message { role: Role::User, content, .. }] => {
                    self.encode_raw_prompt(&alpaca_prompt(content, "", None))
                }
                [Message { role: Role::System, content: system, .. }, Message { role: Role::User, content, .. }] => {
                    self.encode_raw_prompt(&alpaca_prompt(content, "", Some(system)))
                }
                _ => Err(no_template()),
            },
        }
    }

    /// Ids of a prompt taken as it is: the beginning-of-text token if the model expects one, and the text.
    pub fn encode_raw_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos()).into_iter().collect();
        ids.extend(self.tokenizer.encode(text)?);
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// Ids of a prompt that someone typed for the model itself: special-token text in it stands for control tokens, the
    /// beginning-of-text token included.
    pub fn encode_typed_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode_with_special(text)?;
        let bos = self.tokenizer.bos().filter(|bos| self.tokenizer.adds_bos() && ids.first() != Some(bos));
        ids.splice(..0, bos);
        self.check_ids(&ids)?;
        Ok(ids)
    }

    /// The prompt ids of an example and the answer it expects; `None` for plain text and for conversations
    /// that do not end with words of the assistant.
    pub fn prompt_and_answer(&self, example: &Example) -> Result<Option<(Vec<u32>, String)>> {
        let from_messages = |messages: &[Message], tools: Option<&Value>| match messages.split_last() {
            Some((Message { role: Role::Assistant, content, more, .. }, before))
                if !more.contains_key("tool_calls") =>
            {
                Ok(Some((self.encode_prompt_with(before, tools)?, content.clone())))
            }
            _ => Ok(None),
        };
        match example {
            Example::PromptCompletion { prompt, completion } => {
                Ok(Some((self.encode_raw_prompt(prompt)?, completion.clone())))
            }
            Example::Alpaca { instruction, input, output, system } => match &self.template {
                Some(_) => from_messages(&alpaca_messages(instruction, input, output, system.as_deref()), None),
                None => {
                    let prompt = alpaca_prompt(instruction, input, system.as_deref());
                    Ok(Some((self.encode_raw_prompt(&prompt)?, output.clone())))
                }
            },
            Example::Chat { messages, tools } => from_messages(messages, tools.as_ref()),
            Example::Text { .. } => Ok(None),
        }
    }

    /// The tokens at which generation stops: the tokenizer's, and the one the template ends a turn with.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let mut tokens = self.tokenizer.eos_tokens();
        if let Some(template) = &self.template {
            let probe = self.chat(&[Message::user("a"), Message::assistant("b")], None, template).ok();
            let last = probe.and_then(|probe| {
                probe.ids.iter().zip(&probe.trained).rev().find(|(_, trained)| **trained).map(|(id, _)| *id)
            });
            tokens.extend(last.filter(|id| self.tokenizer.is_special(*id) && !tokens.contains(id)));
        }
        tokens
    }

    /// The end token that follows a completion.
    fn end(&self) -> Vec<u32> {
        self.tokenizer.eos_tokens().into_iter().take(1).collect()
    }

    /// Prompt and completion encoded separately, since that is what generation will see.
    fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded> {
        let mut encoded = Encoded::new();
        encoded.push(&self.encode_raw_prompt(prompt)?, false);
        encoded.push(&self.tokenizer.encode(completion)?, true);
        encoded.push(&self.end(), true);
        Ok(encoded)
    }

    /// A conversation by the template, with loss on the assistant's turns.
    fn chat(&self, messages: &[Message], tools: Option<&Value>, template: &ChatTemplate) -> Result<Encoded> {
        let Hidden { messages, tools, stand_ins } = self.specials.hide(messages, tools)?;
        let template = &template.with_tools(tools.as_ref());
        let text = template.render(&messages, false)?;
        let (text, answers) = match self.answers(&messages, &text, template)? {
            Some(answers) => (text, answers),
            None => self.last_answer(&messages, template)?,
        };
        let mut encoded = Encoded::new();
        let turns = messages.iter().filter(|message| message.is_answer()).count();
        encoded.untrained_turns = turns.saturating_sub(answers.len());
        let mut done = 0;
        for answer in &answers {
            self.extend(&mut encoded, &text, done..answer.start, &stand_ins, false)?;
            self.extend(&mut encoded, &text, answer.clone(), &stand_ins, true)?;
            done = answer.end;
        }
        let last_is_open = answers.last().is_some_and(|answer| {
            text[answer.end..].trim().is_empty() && !self.specials.ends(text[answer.clone()].trim_end())
        });
        if last_is_open {
            // The template writes no end of turn: without one, generation would never learn to stop.
            encoded.push(&self.end(), true);
        } else {
            self.extend(&mut encoded, &text, done..text.len(), &stand_ins, false)?;
        }
        Ok(encoded)
    }

    /// Appends the ids of `text[part]`, where `text[..part.start]` is encoded already. If encoding the text up to
    /// `part.end` at once gives the same beginning, that is what counts; otherwise a token lies across the start
    /// of the part, and the part is encoded on its own, as generation will see it.
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
        let whole = self.rendered(&text[..part.end], stand_ins, false)?;
        match whole.strip_prefix(encoded.ids.as_slice()) {
            Some(added) => encoded.push(added, trained),
            None => encoded.push(&self.rendered(&text[part], stand_ins, true)?, trained),
        }
        Ok(())
    }

    /// Where the assistant's turns stand in the rendered `text`, end of turn included, by rendering the
    /// conversation up to each turn and again with it. `None` if the rendering with a turn does not begin like
    /// the one that generation of this turn sees.
    fn answers(&self, messages: &[Message], text: &str, template: &ChatTemplate) -> Result<Option<Vec<Range<usize>>>> {
        let mut answers = Vec::new();
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.is_answer()) {
            let with = match index + 1 == messages.len() {
                true => text.to_owned(),
                false => template.render(&messages[..=index], false)?,
            };
            let Some(shown) = self.shown(&with, text) else {
                // The template shows this turn differently once the conversation goes on (some drop a turn's
                // reasoning): there is no text in the whole that the model would have had to write.
                continue;
            };
            let Some(start) = answer_start(&messages[..=index], &with, template)? else { return Ok(None) };
            // Of an answer without a word nothing may be left.
            if start < shown.len() {
                answers.push(start..self.end_of_turn(shown, start));
            }
        }
        Ok(Some(answers))
    }

    /// What `text` begins with of `with`: all of it, but for end tokens that some templates (Phi-3's) write only where
    /// the conversation ends. `None` where words would be missing.
    fn shown<'a>(&self, with: &'a str, text: &str) -> Option<&'a str> {
        let mut shown = with;
        while !text.starts_with(shown) {
            shown = self.specials.without_last(shown.trim_end())?;
        }
        Some(shown)
    }

    /// Where the turn that begins at `start` ends: whitespace after the end of turn belongs to the markup
    /// between turns.
    fn end_of_turn(&self, text: &str, start: usize) -> usize {
        let written = text[start..].trim_end();
        if self.specials.ends(written) { start + written.len() } else { text.len() }
    }

    /// For templates that write what comes before an answer differently once the answer is there (Mistral's puts
    /// the system text into the last message, if that is the user's): the text that generation of the last answer
    /// sees, and after it the answer as the template ends it.
    fn last_answer(&self, messages: &[Message], template: &ChatTemplate) -> Result<(String, Vec<Range<usize>>)> {
        let last = messages.iter().rposition(|message| message.role == Role::Assistant).unwrap_or_default();
        let messages = &messages[..=last];
        let with = template.render(messages, false)?;
        let prompt = template.render(&messages[..last], true)?;
        let words = content_start(messages, &with, template)?;
        // The markup between prompt and words: cut where the text before looks most like the prompt's end.
        let cut = with[..words]
            .char_indices()
            .map(|(at, _)| at)
            .chain([words])
            .max_by_key(|at| shared_suffix(&with[..*at], &prompt))
            .filter(|at| shared_suffix(&with[..*at], &prompt) > 0);
        let Some(cut) = cut else {
            let message = "writes a finished answer so differently from its prompt that they cannot be matched";
            return Err(Error::input(template.place(), message));
        };
        let text = format!("{prompt}{}", &with[cut..]);
        let end = self.end_of_turn(&text, prompt.len());
        let trained = messages[last].trained;
        Ok((text, std::iter::once(prompt.len()..end).filter(|_| trained).collect()))
    }

    /// Ids of rendered text: control tokens where the template spelled them, ordinary text where a message did.
    /// `continues`: text came before.
    fn rendered(&self, text: &str, stand_ins: &StandIns, continues: bool) -> Result<Vec<u32>> {
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

/// An error of an example, with the example as its place.
fn within(place: &str, error: &Error) -> Error {
    let text: Vec<String> = error
        .problems()
        .iter()
        .map(|problem| match problem.place.is_empty() {
            true => problem.message.clone(),
            false => format!("{}: {}", problem.place, problem.message),
        })
        .collect();
    Error::input(place, text.join("; "))
}

fn no_template() -> Error {
    Error::input("", "the model has no chat template, and chat data needs one").hint(
        "use an instruct model, or data in the shape {\"prompt\", \"completion\"} or {\"instruction\", \"output\"}",
    )
}

/// Where the last of `messages`, the assistant's, begins in `with`, its rendering.
fn answer_start(messages: &[Message], with: &str, template: &ChatTemplate) -> Result<Option<usize>> {
    let Some((_, before)) = messages.split_last() else { return Ok(None) };
    if before.is_empty() {
        return content_start(messages, with, template).map(Some);
    }
    let prompt = template.render(before, true)?;
    if with.starts_with(&prompt) {
        return Ok(Some(prompt.len()));
    }
    // Some templates begin the answer for generation ("<think>") but not in a finished turn.
    let plain = template.render(before, false)?;
    // The answer itself may go on like what they begin.
    let shared = shared_prefix(&prompt, with).min(content_start(messages, with, template)?);
    Ok(Some(shared).filter(|shared| *shared >= plain.len()))
}

/// Where the words of the last message begin in `with`, its rendering: where another content first differs.
fn content_start(messages: &[Message], with: &str, template: &ChatTemplate) -> Result<usize> {
    let mut other = messages.to_vec();
    if let Some(last) = other.last_mut() {
        // Letters that the content does not begin with.
        let letter = if last.content.trim_start().starts_with('x') { 'y' } else { 'x' };
        last.content = letter.to_string();
        last.more.remove("content");
    }
    Ok(shared_prefix(&template.render(&other, false)?, with))
}

/// Bytes that both end with, beginning at a character.
fn shared_suffix(a: &str, b: &str) -> usize {
    a.chars().rev().zip(b.chars().rev()).take_while(|(x, y)| x == y).map(|(x, _)| x.len_utf8()).sum()
}

/// Bytes that both begin with, ending at a character.
fn shared_prefix(a: &str, b: &str) -> usize {
    a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y).map_or(a.len().min(b.len()), |((at, _), _)| at)
}

/// An Alpaca example as a conversation.
fn alpaca_messages(instruction: &str, input: &str, output: &str, system: Option<&str>) -> Vec<Message> {
    let question = match input.trim().is_empty() {
        true => instruction.to_owned(),
        false => format!("{instruction}\n\n{input}"),
    };
    let mut messages: Vec<Message> = system.into_iter().map(Message::system).collect();
    messages.extend([Message::user(question), Message::assistant(output)]);
    messages
}

/// Alpaca's own prompt up to the response. A system text takes the place of its first sentence.
fn alpaca_prompt(instruction: &str, input: &str, system: Option<&str>) -> String {
    let has_input = !input.trim().is_empty();
    let opening = system.unwrap_or(if has_input { ALPACA_WITH_INPUT } else { ALPACA_WITHOUT_INPUT });
    let input = if has_input { format!("### Input:\n{input}\n\n") } else { String::new() };
    format!("{opening}\n\n### Instruction:\n{instruction}\n\n{input}### Response:\n")
}

/// The texts of the special tokens, for finding them in what people wrote.
#[derive(Debug)]
struct SpecialTexts {
    /// By first character; the longest text first.
    by_first: HashMap<char, Vec<String>>,
}

/// Which text each stand-in character is for.
#[derive(Debug, Default)]
struct StandIns {
    texts: HashMap<char, String>,
}

/// A conversation in which stand-ins hide what spells special tokens.
struct Hidden {
    messages: Vec<Message>,
    tools: Option<Value>,
    stand_ins: StandIns,
}

impl SpecialTexts {
    fn of(tokenizer: &Tokenizer) -> Self {
        let mut by_first: HashMap<char, Vec<String>> = HashMap::new();
        for (text, _) in tokenizer.special_tokens() {
            if let Some(first) = text.chars().next() {
                by_first.entry(first).or_default().push(text.to_owned());
            }
        }
        for texts in by_first.values_mut() {
            texts.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        }
        Self { by_first }
    }

    /// The special text that `text` starts with, the longest if several.
    fn at_start(&self, text: &str) -> Option<&str> {
        let candidates = self.by_first.get(&text.chars().next()?)?;
        candidates.iter().find(|candidate| text.starts_with(candidate.as_str())).map(String::as_str)
    }

    /// Whether `text` ends with a special text.
    fn ends(&self, text: &str) -> bool {
        self.without_last(text).is_some()
    }

    /// `text` without the special text that it ends with, the longest if several.
    fn without_last<'a>(&self, text: &'a str) -> Option<&'a str> {
        let stripped = self.by_first.values().flatten().filter_map(|special| text.strip_suffix(special.as_str()));
        stripped.min_by_key(|rest| rest.len())
    }

    /// The first special text in `text`, with its position.
    fn find<'a>(&'a self, text: &str) -> Option<(usize, &'a str)> {
        text.char_indices().find_map(|(at, first)| {
            self.by_first.get(&first)?;
            Some((at, self.at_start(&text[at..])?))
        })
    }

    /// Replaces the special texts that messages and tools spell by one stand-in character each.
    fn hide(&self, messages: &[Message], tools: Option<&Value>) -> Result<Hidden> {
        let mut texts: Vec<&str> = Vec::new();
        for message in messages {
            texts.extend([message.role.name(), message.content.as_str()]);
            message.more.values().for_each(|value| strings(value, &mut texts));
        }
        tools.into_iter().for_each(|tools| strings(tools, &mut texts));
        if texts.iter().all(|text| self.find(text).is_none()) {
            let (messages, tools) = (messages.to_vec(), tools.cloned());
            return Ok(Hidden { messages, tools, stand_ins: StandIns::default() });
        }
        let used: HashSet<char> = texts.into_iter().flat_map(str::chars).filter(|symbol| is_private(*symbol)).collect();
        let mut free = PRIVATE_USE.filter_map(char::from_u32).filter(|symbol| !used.contains(symbol));
        let mut stand_ins: HashMap<&str, char> = HashMap::new();
        let mut replaced = |text: &str| -> Result<String> {
            let mut out = String::with_capacity(text.len());
            let mut rest = text;
            while let Some((at, special)) = self.find(rest) {
                let stand_in = match stand_ins.get(special) {
                    Some(stand_in) => *stand_in,
                    None => {
                        let next = free
                            .next()
                            .ok_or_else(|| Error::input("", "the text uses up all private-use characters"))?;
                        stand_ins.insert(special, next);
                        next
                    }
                };
                out.push_str(&rest[..at]);
                out.push(stand_in);
                rest = &rest[at + special.len()..];
            }
            out.push_str(rest);
            Ok(out)
        };
        let mut hidden = messages.to_vec();
        for message in &mut hidden {
            message.role = Role::of(&replaced(message.role.name())?);
            message.content = replaced(&message.content)?;
            message.more.values_mut().try_for_each(|value| replace_strings(value, &mut replaced))?;
        }
        let mut tools = tools.cloned();
        tools.iter_mut().try_for_each(|tools| replace_strings(tools, &mut replaced))?;
        let texts = stand_ins.into_iter().map(|(text, symbol)| (symbol, text.to_owned())).collect();
        Ok(Hidden { messages: hidden, tools, stand_ins: StandIns { texts } })
    }
}

/// Every text in a JSON value; not the keys.
fn strings<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => found.push(text),
        Value::Array(values) => values.iter().for_each(|value| strings(value, found)),
        Value::Object(fields) => fields.values().for_each(|value| strings(value, found)),
        _ => {}
    }
}

/// Puts another text for every text in a JSON value.
fn replace_strings(value: &mut Value, replaced: &mut impl FnMut(&str) -> Result<String>) -> Result<()> {
    match value {
        Value::String(text) => {
            *text = replaced(text)?;
            Ok(())
        }
        Value::Array(values) => values.iter_mut().try_for_each(|value| replace_strings(value, replaced)),
        Value::Object(fields) => fields.values_mut().try_for_each(|value| replace_strings(value, replaced)),
        _ => Ok(()),
    }
}

/// Whether it may stand for the text of a special token.
pub(super) fn is_private(symbol: char) -> bool {
    PRIVATE_USE.contains(&u32::from(symbol))
}
