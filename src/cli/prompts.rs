//! Prompts from the command line, from files and from stdin.

use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Place, Result};
use crate::files::open;

/// The most bytes of a prompt, or of a file of prompts.
const MAX_PROMPT_BYTES: u64 = 64 << 20;

/// A prompt on a line of a JSONL file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Text(String),
    Object { prompt: String },
}

/// The prompts of a file, or of stdin for `-`: one on each line that is not blank.
pub(super) fn of_file(path: &Path) -> Result<Vec<String>> {
    let text =
        if path.as_os_str() == "-" { read_stdin()? } else { in_utf8(open::read(path, MAX_PROMPT_BYTES)?, path)? };
    let is_json = path.extension().is_some_and(|extension| extension == "jsonl");
    let (mut prompts, mut errors) = (Vec::new(), Vec::new());
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        match is_json.then(|| serde_json::from_str(line)) {
            None => prompts.push(line.to_owned()),
            Some(Ok(Line::Text(prompt) | Line::Object { prompt })) => prompts.push(prompt),
            Some(Err(_)) => {
                let place = format!("{}:{}", path.display(), index + 1);
                errors.push(Error::input(place, "is neither a JSON string nor an object with the string `prompt`"));
            }
        }
    }
    if prompts.is_empty() && errors.is_empty() {
        return Err(Error::input(path, "has no prompt").hint("a prompt stands on a line of its own"));
    }
    Error::none_of(errors, prompts)
}

/// The texts of arguments: as they stand, of a file, or of stdin.
pub(super) fn of_arguments(arguments: &[String]) -> Result<Vec<String>> {
    if arguments.iter().filter(|text| *text == "-").count() > 1 {
        return Err(Error::input(Place::argument("--prompt"), "is `-` twice; stdin holds one prompt"));
    }
    arguments.iter().map(|text| of_argument(text)).collect()
}

/// The text of an argument. The line end that editors and `echo` put after a text is no part of it.
pub(super) fn of_argument(argument: &str) -> Result<String> {
    let text = match argument.strip_prefix('@') {
        _ if argument == "-" => read_stdin()?,
        Some(path) => {
            let bytes = open::read(Path::new(path), MAX_PROMPT_BYTES)
                .map_err(|error| error.hint("a text that begins with @ is given through a file or stdin (`-`)"))?;
            in_utf8(bytes, path)?
        }
        None => return Ok(argument.to_owned()),
    };
    let text = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(text.to_owned())
}

fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    let read = io::stdin().lock().take(MAX_PROMPT_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| Error::input("stdin", format!("cannot be read: {error}")))?;
    in_utf8(bytes, "stdin")
}

fn in_utf8(bytes: Vec<u8>, place: impl Into<Place>) -> Result<String> {
    String::from_utf8(bytes).map_err(|_| Error::input(place, "is not UTF-8 text"))
}
