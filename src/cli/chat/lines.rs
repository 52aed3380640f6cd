//! The lines of the user: with an editor and a history in a terminal, as they come otherwise.

use std::io;

use crate::error::{Error, Result};

/// The longest text of one question, in bytes.
const MAX_BYTES: usize = 16 << 20;
const FENCE: &str = "\"\"\"";

/// The next input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Text(String),
    /// An empty line, or one that Ctrl-C threw away.
    Nothing,
    End,
}

/// A line as its source has it.
enum Line {
    Text(String),
    #[cfg_attr(not(feature = "serve"), expect(dead_code, reason = "only an editor hears Ctrl-C"))]
    Interrupted,
    End,
}

/// The source of lines.
pub(super) enum Lines {
    #[cfg(feature = "serve")]
    Editor(Box<rustyline::Editor<(), rustyline::history::MemHistory>>),
    Plain(Box<dyn io::BufRead>),
}

impl Lines {
    /// The user's lines; an editor where the user sits before a terminal.
    ///
    /// # Errors
    /// Failed: the terminal cannot be used.
    pub(super) fn open(is_interactive: bool) -> Result<Self> {
        #[cfg(feature = "serve")]
        if is_interactive {
            let failed = |error| Error::failed("", format!("the terminal cannot be used: {error}"));
            let history = rustyline::history::MemHistory::new();
            let editor = rustyline::Editor::with_history(rustyline::Config::default(), history).map_err(failed)?;
            return Ok(Self::Editor(Box::new(editor)));
        }
        let _ = is_interactive;
        Ok(Self::Plain(Box::new(io::stdin().lock())))
    }

    /// The columns of the terminal, where they are known.
    pub(super) fn width(&mut self) -> Option<usize> {
        match self {
            #[cfg(feature = "serve")]
            Self::Editor(editor) => editor.dimensions().map(|(columns, _)| usize::from(columns)),
            Self::Plain(_) => None,
        }
    }

    /// The next text: one line, or several joined by `\` at their ends or within `"""`.
    ///
    /// # Errors
    /// Input: a text that is too long or not UTF-8. Failed: the source cannot be read.
    pub(super) fn next(&mut self) -> Result<Next> {
        let mut text = match self.line("> ")? {
            Line::Text(line) => line,
            Line::Interrupted => return Ok(Next::Nothing),
            Line::End => return Ok(Next::End),
        };
        let mut is_fenced = false;
        if let Some(rest) = text.trim_start().strip_prefix(FENCE) {
            text = rest.to_owned();
            is_fenced = true;
        }
        loop {
            if is_fenced {
                if let Some(whole) = text.trim_end().strip_suffix(FENCE) {
                    text = whole.trim_matches('\n').to_owned();
                    break;
                }
            } else if let Some(before) = text.strip_suffix('\\') {
                text = before.to_owned();
            } else {
                break;
            }
            match self.line("  ")? {
                Line::Text(line) => {
                    text.push('\n');
                    text += &line;
                }
                Line::Interrupted => return Ok(Next::Nothing),
                Line::End => break,
            }
            if text.len() > MAX_BYTES {
                return Err(Error::input("stdin", format!("a text has more than {MAX_BYTES} bytes")));
            }
        }
        let text = text.trim();
        if text.is_empty() {
            return Ok(Next::Nothing);
        }
        self.remember(text);
        Ok(Next::Text(text.to_owned()))
    }

    #[cfg_attr(not(feature = "serve"), expect(unused_variables, reason = "the editor shows it"))]
    fn line(&mut self, prompt: &str) -> Result<Line> {
        match self {
            #[cfg(feature = "serve")]
            Self::Editor(editor) => {
                use rustyline::error::ReadlineError;
                match editor.readline(prompt) {
                    Ok(line) => Ok(Line::Text(line)),
                    Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                    Err(ReadlineError::Eof) => Ok(Line::End),
                    Err(error) => Err(Error::failed("stdin", format!("cannot be read: {error}"))),
                }
            }
            Self::Plain(source) => {
                let mut line = Vec::new();
                let limit = MAX_BYTES as u64 + 1;
                let read = io::BufRead::read_until(&mut io::Read::take(source, limit), b'\n', &mut line);
                read.map_err(|error| Error::failed("stdin", format!("cannot be read: {error}")))?;
                if line.len() > MAX_BYTES {
                    return Err(Error::input("stdin", format!("a line has more than {MAX_BYTES} bytes")));
                }
                if line.is_empty() {
                    return Ok(Line::End);
                }
                let line = String::from_utf8(line).map_err(|_| Error::input("stdin", "is not UTF-8 text"))?;
                let line = line.strip_suffix('\n').unwrap_or(&line);
                Ok(Line::Text(line.strip_suffix('\r').unwrap_or(line).to_owned()))
            }
        }
    }

    #[cfg_attr(not(feature = "serve"), expect(unused_variables, reason = "the editor remembers it"))]
    fn remember(&mut self, text: &str) {
        #[cfg(feature = "serve")]
        if let Self::Editor(editor) = self {
            // A line that is not remembered can be typed again.
            let _ = editor.add_history_entry(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_may_have_several_lines() {
        let source = "one\r\n\nfirst\\\nsecond\n\"\"\"a\nb\\\n\"\"\"\n \"\"\"whole\"\"\" \n\\\nlast";
        let mut lines = Lines::Plain(Box::new(source.as_bytes()));
        let mut all = Vec::new();
        loop {
            match lines.next().expect("a line") {
                Next::End => break,
                next => all.push(next),
            }
        }
        let text = |text: &str| Next::Text(text.to_owned());
        assert_eq!(
            all,
            [text("one"), Next::Nothing, text("first\nsecond"), text("a\nb\\"), text("whole"), text("last")]
        );
    }

    #[test]
    fn rubbish_is_an_error() {
        assert!(Lines::Plain(Box::new(&b"\xff\xfe\n"[..])).next().is_err());
    }
}
