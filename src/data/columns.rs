//! The names that a data file gives to the keys of the shapes, and the names that its author may have meant.

use std::str::FromStr;

use super::format::Format;
use crate::settings::{any, one_of, section};

section! {
    /// The keys of the shapes, each with the key or column of the data file that has its place.
    Columns {
        /// The text before a completion, or a list of turns.
        prompt: Option<String> = Take(None), any();
        /// The completion that is learned, or a list of turns.
        completion: Option<String> = Take(None), any();
        /// The task of an Alpaca example.
        instruction: Option<String> = Take(None), any();
        /// The material of the task.
        input: Option<String> = Take(None), any();
        /// The answer that is learned.
        output: Option<String> = Take(None), any();
        /// The earlier turns of an Alpaca example.
        history: Option<String> = Take(None), any();
        /// The turns of a conversation.
        messages: Option<String> = Take(None), any();
        /// The system text of a conversation or an Alpaca example.
        system: Option<String> = Take(None), any();
        /// The tools that the assistant may call.
        tools: Option<String> = Take(None), any();
        /// A text that is learned whole, or one that has a label.
        text: Option<String> = Take(None), any();
        /// The answer of two that is preferred, or a list of turns.
        chosen: Option<String> = Take(None), any();
        /// The other answer, or a list of turns.
        rejected: Option<String> = Take(None), any();
        /// Whether an answer is desirable: true or false, 1 or 0. Under `classify`: the label of the text.
        label: Option<String> = Take(None), any();
    }
}

/// The keys of the shapes as they are without a mapping: [`Columns`], in its order, and ShareGPT's name of `messages` and
/// OpenAI's former one of `tools`.
const KEYS: [&str; 15] = [
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "history",
    "messages",
    "system",
    "tools",
    "text",
    "chosen",
    "rejected",
    "label",
    "conversations",
    "functions",
];

/// The first of these are the fields of [`Columns`].
const MAPPED: usize = 13;

impl Columns {
    /// No key has another name.
    pub fn unmapped() -> Self {
        crate::settings::defaults()
    }

    /// The pairs of a key and its name in the file, as far as they are given.
    pub fn mapped(&self) -> impl Iterator<Item = (&'static str, &str)> {
        // The same fields as in `slot`.
        let names = KEYS.into_iter().zip([
            &self.prompt,
            &self.completion,
            &self.instruction,
            &self.input,
            &self.output,
            &self.history,
            &self.messages,
            &self.system,
            &self.tools,
            &self.text,
            &self.chosen,
            &self.rejected,
            &self.label,
        ]);
        names.filter_map(|(key, name)| Some((key, name.as_deref()?)))
    }

    /// The place for the name of `key`.
    fn slot(&mut self, key: &str) -> Option<&mut Option<String>> {
        Some(match key {
            "prompt" => &mut self.prompt,
            "completion" => &mut self.completion,
            "instruction" => &mut self.instruction,
            "input" => &mut self.input,
            "output" => &mut self.output,
            "history" => &mut self.history,
            "messages" => &mut self.messages,
            "system" => &mut self.system,
            "tools" => &mut self.tools,
            "text" => &mut self.text,
            "chosen" => &mut self.chosen,
            "rejected" => &mut self.rejected,
            "label" => &mut self.label,
            _ => return None,
        })
    }

    /// The name that `key` has in the file.
    pub fn name<'a>(&'a self, key: &'a str) -> &'a str {
        self.mapped().find(|(mapped, _)| *mapped == key).map_or(key, |(_, name)| name)
    }

    /// Whether `name` is read where it is the name of a key or column.
    #[cfg(any(test, feature = "tables"))]
    pub(super) fn reads(&self, name: &str) -> bool {
        KEYS.into_iter().any(|key| self.name(key) == name)
    }

    /// The shape of an object with these keys: one that is named by the mapping first.
    pub(super) fn format(&self, has: impl Fn(&str) -> bool) -> Option<Format> {
        let is_mapped = |key: &str| self.mapped().any(|(mapped, _)| mapped == key);
        Format::of_keys(|key| is_mapped(key) && has(self.name(key)))
            .or_else(|| Format::of_keys(|key| has(self.name(key))))
    }
}

/// A mapping on the command line: `prompt=question,completion=answer`.
impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = Self::unmapped();
        for pair in text.split(',') {
            let (key, name) = pair.split_once('=').ok_or("expected KEY=NAME, several separated by commas")?;
            let keys = one_of(&KEYS[..MAPPED]);
            *columns.slot(key.trim()).ok_or_else(|| format!("expected {keys}, found `{}`", key.trim()))? =
                Some(name.into());
        }
        Ok(columns)
    }
}

/// Names that other data sets give to a prompt, a completion, turns and a text: in lower case, without spaces around them.
const PROMPTS: &[&str] = &["prompt", "question", "query", "instruction", "input", "source", "user", "human", "problem"];
const COMPLETIONS: &[&str] =
    &["completion", "answer", "response", "output", "target", "reply", "assistant", "gpt", "solution"];
const TURNS: &[&str] = &["messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns"];
const TEXTS: &[&str] = &["text", "content", "document", "body", "sentence"];

/// The mapping that an object with the keys `keys` seems to need, as lines of a recipe; the words say where a choice is left.
pub(super) fn proposal(keys: &[&str]) -> Option<String> {
    let named = |names: &[&str]| {
        let is = |key: &&&str, name: &str| key.trim().to_lowercase() == name;
        names.iter().find_map(|name| keys.iter().find(|key| is(key, name)).copied())
    };
    let lines = |pairs: &[(&str, &str)]| {
        let lines: Vec<String> =
            pairs.iter().map(|(key, name)| format!("{key} = {}", toml::Value::from(*name))).collect();
        format!("[data.columns]\n{}", lines.join("\n"))
    };
    if let Some(turns) = named(TURNS) {
        return Some(format!("the recipe can say which key has the turns:\n{}", lines(&[("messages", turns)])));
    }
    if let (Some(prompt), Some(completion)) = (named(PROMPTS), named(COMPLETIONS)) {
        let input = named(&["input"]).filter(|input| *input != prompt);
        let bare = lines(&[("prompt", prompt), ("completion", completion)]);
        let mut alpaca = vec![("instruction", prompt), ("output", completion)];
        alpaca.extend(input.map(|input| ("input", input)));
        return Some(format!(
            "the recipe can say which key is which. For texts as they stand:\n{bare}\nfor questions and answers that go \
             through the model's chat template:\n{}",
            lines(&alpaca)
        ));
    }
    let text = named(TEXTS)?;
    Some(format!("the recipe can say which key has the text:\n{}", lines(&[("text", text)])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_names_the_shape_before_the_other_keys_do() {
        let columns = Columns { messages: Some("dialogue".into()), ..Columns::unmapped() };
        let has = |key: &str| ["prompt", "completion", "dialogue"].contains(&key);
        assert_eq!(columns.format(has), Some(Format::Chat));
        assert_eq!(Columns::unmapped().format(has), Some(Format::PromptCompletion));
        let half = Columns { prompt: Some("question".into()), ..Columns::unmapped() };
        assert_eq!(half.format(|key| ["question", "completion"].contains(&key)), Some(Format::PromptCompletion));
        assert!(half.reads("question") && !half.reads("prompt") && half.reads("conversations"));
    }

    #[test]
    fn a_mapping_can_be_typed() {
        let columns: Columns = "prompt=question, completion= Answer ".parse().expect("a mapping");
        let mapped: Vec<(&str, &str)> = columns.mapped().collect();
        assert_eq!(mapped, [("prompt", "question"), ("completion", " Answer ")]);
        for key in &KEYS[..MAPPED] {
            let columns: Columns = format!("{key}=x").parse().expect("a mapping");
            assert_eq!(columns.mapped().collect::<Vec<_>>(), [(*key, "x")]);
        }
        assert!("question".parse::<Columns>().is_err());
        assert!("promt=a".parse::<Columns>().expect_err("no key").contains("expected prompt, completion"));
    }

    #[test]
    fn common_names_get_the_lines_that_map_them() {
        let lines = |keys: &[&str]| proposal(keys).expect("a proposal");
        assert!(lines(&["id", "question", "answer"]).contains("prompt = \"question\"\ncompletion = \"answer\""));
        assert!(lines(&["input", "output"]).contains("instruction = \"input\"\noutput = \"output\""));
        assert!(lines(&["Instruction", "Input", "Output"]).ends_with("output = \"Output\"\ninput = \"Input\""));
        assert!(lines(&[" prompt ", "Response"]).contains("prompt = \" prompt \"\ncompletion = \"Response\""));
        assert!(lines(&["Dialogue", "id"]).ends_with("[data.columns]\nmessages = \"Dialogue\""));
        assert!(lines(&["content"]).ends_with("text = \"content\""));
        assert_eq!(proposal(&["a", "b"]), None);
    }
}
