//! Chat templates by name, for bases that bring none or another one than is wanted.

use std::path::Path;

use super::template::ChatTemplate;
use crate::data::example::Message;
use crate::error::{Error, Place, Result};
use crate::files::open;
use crate::settings::choice;
use crate::text::Tokenizer;

/// The largest template file.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;
/// An answer that no template has anything like.
const ANSWER: &str = "\u{FFF00}";

choice! {
    /// A chat template that comes with this program.
    BuiltinTemplate {
        /// `<|im_start|>` and `<|im_end|>` around every turn.
        Chatml = "chatml",
        /// That of Llama 2: `[INST]` and `<<SYS>>`.
        Llama2 = "llama2",
        /// That of Llama 3: `<|start_header_id|>` and `<|eot_id|>`.
        Llama3 = "llama3",
        /// That of Mistral 7B: `[INST]`, the system text before the first question.
        Mistral = "mistral",
        /// That of Gemma 2 and 3: `<start_of_turn>`, the system text before the first question.
        Gemma = "gemma",
        /// That of Phi-3: `<|user|>` and `<|end|>`.
        Phi3 = "phi3",
        /// That of Qwen 2.5, without its default system text: ChatML with tools.
        Qwen = "qwen",
        /// That of Zephyr: `<|user|>` and the end token of the base.
        Zephyr = "zephyr",
        /// That of Vicuna: `USER:` and the end token of the base.
        Vicuna = "vicuna",
    }
}

impl BuiltinTemplate {
    /// The source of the template.
    pub fn source(self) -> &'static str {
        match self {
            Self::Chatml => include_str!("builtin/chatml.jinja"),
            Self::Llama2 => include_str!("builtin/llama2.jinja"),
            Self::Llama3 => include_str!("builtin/llama3.jinja"),
            Self::Mistral => include_str!("builtin/mistral.jinja"),
            Self::Gemma => include_str!("builtin/gemma.jinja"),
            Self::Phi3 => include_str!("builtin/phi3.jinja"),
            Self::Qwen => include_str!("builtin/qwen.jinja"),
            Self::Zephyr => include_str!("builtin/zephyr.jinja"),
            Self::Vicuna => include_str!("builtin/vicuna.jinja"),
        }
    }

    /// The words for all of them.
    pub(in crate::data) fn words() -> String {
        Self::ALL.map(|template| format!("`{template}`")).join(", ")
    }
}

/// `tokenizer` with the chat template that `data.template` names: a built-in one, or that of a file.
///
/// # Errors
/// Input: neither a built-in template nor a file; a template that does not compile; an end of turn that is no token of
/// `tokenizer`.
pub fn with_chosen_template(tokenizer: &Tokenizer, chosen: &str) -> Result<Tokenizer> {
    let place = || Place::setting("data.template");
    let source = match BuiltinTemplate::from_name(chosen) {
        Some(builtin) => {
            let source = builtin.source();
            // Models that expect a beginning-of-text token get it whether the template has one or not.
            let lacks_bos = tokenizer.adds_bos() && !source.contains("bos_token");
            if lacks_bos { format!("{{{{- bos_token }}}}\n{source}") } else { source.to_owned() }
        }
        None if !Path::new(chosen).exists() => {
            let message = format!("is `{chosen}`, which is neither a built-in template nor a file");
            return Err(Error::input(place(), message).hint(format!("built in are {}", BuiltinTemplate::words())));
        }
        None => String::from_utf8(open::read(Path::new(chosen), MAX_TEMPLATE_BYTES)?)
            .map_err(|_| Error::input(chosen, "the chat template is not UTF-8"))?,
    };
    let template = ChatTemplate::compile(&source, chosen, &tokenizer.named_tokens())?;
    let ended = template.render(&[Message::user("a"), Message::assistant(ANSWER)], false)?;
    let Some((_, end)) = ended.rsplit_once(ANSWER) else {
        return Err(Error::input(place(), format!("is `{chosen}`, which does not show the assistant's answers")));
    };
    match missing_end(end.trim_start(), tokenizer) {
        Some(missing) => {
            let message = format!("is `{chosen}`, which ends an answer with {missing}");
            Err(Error::input(place(), message).hint(
                "`vicuna` and `zephyr` end answers with the base's own end token; an instruct model has the tokens of its \
                 own template",
            ))
        }
        None => Ok(tokenizer.with_chat_template(&source)),
    }
}

/// The end of an answer in words, if `tokenizer` has no token for it. `behind` is the text behind an answer.
fn missing_end(behind: &str, tokenizer: &Tokenizer) -> Option<String> {
    let place = tokenizer.place();
    if behind.is_empty() {
        return tokenizer
            .eos_tokens()
            .is_empty()
            .then(|| format!("the end token, and {place} names none (`eos_token`)"));
    }
    let (open, close) = [('<', '>'), ('[', ']')].into_iter().find(|(open, _)| behind.starts_with(*open))?;
    let end = behind.find(close)? + close.len_utf8();
    let token = &behind[..end];
    let is_markup = open == '<' || token.chars().all(|symbol| symbol.is_ascii_uppercase() || "[]/_".contains(symbol));
    let is_token =
        tokenizer.token_to_id(token).is_some() || tokenizer.special_tokens().any(|(text, _)| behind.starts_with(text));
    (is_markup && !token.contains(char::is_whitespace) && !is_token)
        .then(|| format!("`{token}`, which is no token of {place}"))
}
