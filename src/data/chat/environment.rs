//! Jinja as transformers sets it up: the names, functions, methods and tests that chat templates use.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, from_args};
use minijinja::{Environment, ErrorKind, State};
use minijinja_contrib::pycompat;
use time::OffsetDateTime;

use super::filters;
use super::namespace::kept;
use super::operators;
use super::python::{strftime, tojson};

/// Steps of one rendering; each 64 bytes made cost a step too, which bounds memory to 256 MB.
const FUEL: u64 = 4_000_000;

/// Jinja as transformers sets it up: blocks trimmed, Python's string methods, three functions.
pub(super) fn environment(now: OffsetDateTime, kept_name: String) -> Environment<'static> {
    let mut environment = Environment::new();
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        environment.set_syntax(syntax);
    }
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(method);
    operators::add(&mut environment, &kept_name);
    environment.add_function(kept_name, |state: &State, value: Value| {
        Ok::<_, minijinja::Error>(kept(state, &value, 0)?.unwrap_or(value))
    });
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: String| strftime(&format, now));
    environment.add_filter("tojson", tojson);
    filters::add(&mut environment);
    environment
}

/// Python's methods of texts, lists and maps: minijinja-contrib's, and those that it lacks. minijinja takes no fuel for
/// them, and what `split` gives takes many times the memory of the text.
fn method(state: &mut State, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, minijinja::Error> {
    const BYTES_A_STEP: u64 = 4;
    state.consume_fuel(value.as_str().map_or(0, |text| text.len() as u64 / BYTES_A_STEP))?;
    let found = value.as_str().map(|text| string_method(text, name, arguments)).transpose()?.flatten();
    match found {
        Some(found) => Ok(found),
        None => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}

fn string_method(text: &str, name: &str, arguments: &[Value]) -> Result<Option<Value>, minijinja::Error> {
    let one = || from_args::<(&str,)>(arguments).map(|(argument,)| argument);
    Ok(Some(match name {
        "removeprefix" => text.strip_prefix(one()?).unwrap_or(text).into(),
        "removesuffix" => text.strip_suffix(one()?).unwrap_or(text).into(),
        "partition" => {
            let separator = one()?;
            let parts = text.split_once(separator).map_or([text, "", ""], |(before, after)| [before, separator, after]);
            Value::from_iter(parts)
        }
        "rpartition" => {
            let separator = one()?;
            let parts =
                text.rsplit_once(separator).map_or(["", "", text], |(before, after)| [before, separator, after]);
            Value::from_iter(parts)
        }
        "rsplit" => match from_args::<(Option<&str>, Option<i64>)>(arguments)? {
            (None, None) => text.split_whitespace().collect(),
            (Some(separator), most) => {
                let most = most.and_then(|most| usize::try_from(most).ok()).map_or(usize::MAX, |most| most + 1);
                let parts: Vec<&str> = text.rsplitn(most, separator).collect();
                parts.into_iter().rev().collect()
            }
            (None, Some(_)) => return Ok(None),
        },
        _ => return Ok(None),
    }))
}
