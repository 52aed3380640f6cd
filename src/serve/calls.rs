//! The calls of tools in an answer, and the text before them.
//!
//! Families mark calls differently, and some mark them with control tokens that the text does not show. The text is
//! held back from the first symbol on that could begin a call; at the end of the answer it turns out whether it did.

use crate::eval::tool_calls::{ToolCall, calls_in};

/// The symbols that a call, or the markup before it, begins with.
const BEGINNINGS: [char; 4] = ['{', '[', '<', '`'];

/// Lets the text of an answer through that is no call.
#[derive(Debug)]
pub(super) struct CallGate {
    /// The tools that can be called; without any, all text goes through.
    names: Vec<String>,
    /// The whole answer so far.
    text: String,
    /// The number of bytes of it that went through.
    given: usize,
    is_holding: bool,
}

impl CallGate {
    pub(super) fn new(names: Vec<String>) -> Self {
        Self { names, text: String::new(), given: 0, is_holding: false }
    }

    /// Takes the next text; returns what is certainly no call.
    pub(super) fn push(&mut self, text: String) -> String {
        if self.names.is_empty() {
            return text;
        }
        self.text += &text;
        if self.is_holding {
            return String::new();
        }
        let rest = &self.text[self.given..];
        let certain = match rest.find(BEGINNINGS) {
            Some(at) => {
                self.is_holding = true;
                rest[..at].to_owned()
            }
            None => rest.to_owned(),
        };
        self.given += certain.len();
        certain
    }

    /// The end of the answer: the calls of known tools, or, if there are none, the text that was held back.
    pub(super) fn finish(&mut self) -> (String, Vec<ToolCall>) {
        if !self.is_holding {
            return (String::new(), Vec::new());
        }
        let mut calls = calls_in(&self.text);
        calls.retain(|call| self.names.contains(&call.name));
        let rest = if calls.is_empty() { self.text[self.given..].to_owned() } else { String::new() };
        (rest, calls)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn through(names: &[&str], pieces: &[&str]) -> (String, Vec<ToolCall>) {
        let mut gate = CallGate::new(names.iter().map(|name| (*name).to_owned()).collect());
        let mut text: String = pieces.iter().map(|piece| gate.push((*piece).to_owned())).collect();
        let (rest, calls) = gate.finish();
        text += &rest;
        (text, calls)
    }

    #[test]
    fn calls_of_known_tools_are_no_text() {
        let call = ToolCall { name: "add".to_owned(), arguments: json!({ "a": 1 }) };
        let answer = ["I add. <tool", "_call>{\"name\": \"add\", \"arguments\": {\"a\": 1}}", "</tool_call>"];
        assert_eq!(through(&["add"], &answer), ("I add. ".to_owned(), vec![call]));
        let all = answer.concat();
        assert_eq!(through(&[], &answer), (all.clone(), Vec::new()), "without tools it is text");
        assert_eq!(through(&["other"], &answer), (all, Vec::new()), "a tool that is not there is not called");
    }

    #[test]
    fn text_that_only_looks_like_a_call_comes_at_the_end() {
        let answer = ["1 <", " 2 and {x}", " too"];
        assert_eq!(through(&["add"], &answer), (answer.concat(), Vec::new()));
    }
}
