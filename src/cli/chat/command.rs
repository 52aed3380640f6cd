//! The lines of a conversation: questions and commands.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The commands, for people.
pub(super) const HELP: &str = "\
In the conversation:
  /system [TEXT]       give the model instructions; without a text, take them away
  /adapter [NAME]      answer with another adapter, or with the base; without a name, list them
  /compare [QUESTION]  let base and adapter answer side by side, from the same seed; without a question, the last one again
  /image [PATH]        show a picture, a PNG or JPEG file, with the next question; several are shown in their order; without a path, take
                       those away that wait
  /undo                forget the last question and its answer
  /new                 begin a new conversation
  /save FILE           add the conversation to FILE as a line of training data
  /help                this list
  /quit                end, as Ctrl-D does
A line that ends with \\ goes on in the next one; \"\"\" begins a text of several lines, and \"\"\" ends it.
Ctrl-C stops an answer. A question that begins with / is written with //.";

/// A command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Command {
    Help,
    System(Option<String>),
    Adapter(Option<String>),
    Compare(Option<String>),
    Image(Option<String>),
    Undo,
    New,
    Save(PathBuf),
    Quit,
}

/// A line of the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    Question(String),
    Command(Command),
}

impl Input {
    /// Reads a text that is not empty.
    ///
    /// # Errors
    /// Input: a command that is not known, or lacks its argument.
    pub(super) fn of(text: &str) -> Result<Self> {
        let Some(rest) = text.strip_prefix('/') else { return Ok(Self::Question(text.to_owned())) };
        if rest.starts_with('/') {
            return Ok(Self::Question(rest.to_owned()));
        }
        let (name, argument) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let argument = Some(argument.trim()).filter(|argument| !argument.is_empty());
        let text = argument.map(str::to_owned);
        let command = match (name, argument) {
            ("help" | "?", None) => Command::Help,
            ("system", _) => Command::System(text),
            ("adapter" | "model", _) => Command::Adapter(text),
            ("compare", _) => Command::Compare(text),
            ("image", _) => Command::Image(text),
            ("undo", None) => Command::Undo,
            ("new" | "clear", None) => Command::New,
            ("save", Some(path)) => Command::Save(path.into()),
            ("save", None) => return Err(Error::input("/save", "names no file; expected `/save FILE`")),
            ("quit" | "exit" | "bye", None) => Command::Quit,
            ("help" | "?" | "undo" | "new" | "clear" | "quit" | "exit" | "bye", Some(argument)) => {
                return Err(Error::input(format_args!("/{name}"), format!("takes no argument; found `{argument}`")));
            }
            _ => {
                let message = "is no command";
                return Err(Error::input(format_args!("/{name}"), message)
                    .hint("/help lists the commands; a question that begins with / is written with //"));
            }
        };
        Ok(Self::Command(command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_questions_are_told_apart() {
        let of = |text: &str| Input::of(text).expect(text);
        assert_eq!(of("a /help"), Input::Question("a /help".to_owned()));
        assert_eq!(of("//etc is a folder"), Input::Question("/etc is a folder".to_owned()));
        assert_eq!(of("/system"), Input::Command(Command::System(None)));
        assert_eq!(of("/system  Be\nbrief. "), Input::Command(Command::System(Some("Be\nbrief.".to_owned()))));
        assert_eq!(of("/save a b.jsonl"), Input::Command(Command::Save("a b.jsonl".into())));
        assert_eq!(of("/image a b.png"), Input::Command(Command::Image(Some("a b.png".to_owned()))));
        for wrong in ["/", "/sytem x", "/undo it", "/save", "/ x"] {
            assert!(Input::of(wrong).is_err(), "{wrong}");
        }
    }
}
