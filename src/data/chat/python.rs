//! Python's output formats: the JSON of `json.dumps`, floats, and the dates of `strftime`.

use minijinja::ErrorKind;
use minijinja::value::{Kwargs, Value, ValueKind};
use serde_json::Value as Json;
use time::OffsetDateTime;

use super::stand_ins::is_private;
use super::template::value_of;

/// The deepest nesting that `tojson` accepts.
const MAX_JSON_DEPTH: usize = 64;

/// The layout of JSON.
struct JsonStyle {
    indent: Option<usize>,
    /// Between items, and between key and value.
    separators: [String; 2],
    ascii: bool,
    sorted: bool,
}

/// Python's `json.dumps(value, ensure_ascii=False)` of a JSON value.
pub(in crate::data) fn dumps(value: &Json) -> String {
    let style = JsonStyle { indent: None, separators: [", ", ": "].map(str::to_owned), ascii: false, sorted: false };
    let mut text = String::new();
    // Nothing in a JSON value is of a kind that cannot be written, but it may be nested deeper than templates are.
    match write_json(&mut text, &value_of(value), &style, 0) {
        Ok(()) => text,
        Err(_) => value.to_string(),
    }
}

/// Python's `json.dumps(value, ensure_ascii=False, …)`, which transformers puts under this name.
pub(super) fn tojson(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    let separators: Option<Vec<String>> = options.get("separators")?;
    let usual = [if indent.is_some() { "," } else { ", " }, ": "].map(str::to_owned);
    let style = JsonStyle {
        indent,
        separators: separators.and_then(|given| given.try_into().ok()).unwrap_or(usual),
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(&mut text, value, &style, 0)?;
    Ok(Value::from(text))
}

fn write_json(out: &mut String, value: &Value, style: &JsonStyle, depth: usize) -> Result<(), minijinja::Error> {
    if depth > MAX_JSON_DEPTH {
        return Err(minijinja::Error::new(ErrorKind::InvalidOperation, "tojson: nested too deep"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent.min(16) * depth));
        }
    };
    let [comma, colon] = &style.separators;
    let (open, close) = match value.kind() {
        ValueKind::Map => ('{', '}'),
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        ValueKind::String => {
            write_json_text(out, value.as_str().unwrap_or_default(), style.ascii);
            return Ok(());
        }
        ValueKind::None => {
            out.push_str("null");
            return Ok(());
        }
        ValueKind::Bool => {
            out.push_str(if value.is_true() { "true" } else { "false" });
            return Ok(());
        }
        ValueKind::Number => {
            match value.is_integer() {
                true => out.push_str(&value.to_string()),
                false => out.push_str(&python_float(f64::try_from(value.clone())?)),
            }
            return Ok(());
        }
        other => {
            let message = format!("tojson: cannot write {other}");
            return Err(minijinja::Error::new(ErrorKind::InvalidOperation, message));
        }
    };
    let mut items: Vec<Value> = value.try_iter()?.collect();
    if open == '{' && style.sorted {
        items.sort_by_cached_key(Value::to_string);
    }
    out.push(open);
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push_str(comma);
        }
        line(out, depth + 1);
        if open == '{' {
            write_json_text(out, &item.to_string(), style.ascii);
            out.push_str(colon);
            write_json(out, &value.get_item(item)?, style, depth + 1)?;
        } else {
            write_json(out, item, style, depth + 1)?;
        }
    }
    if !items.is_empty() {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// A float as Python writes it: with an exponent of two digits or more below 1e-4 and from 1e16 on.
fn python_float(value: f64) -> String {
    let scientific = format!("{value:e}");
    match scientific.split_once('e').map(|(digits, exponent)| (digits, exponent.parse::<i32>())) {
        Some((digits, Ok(exponent))) if value != 0.0 && !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
        }
        _ => format!("{value:?}"),
    }
}

/// A text in quotes; with `ascii`, other characters are escaped.
fn write_json_text(out: &mut String, text: &str, ascii: bool) {
    for symbol in Json::from(text).to_string().chars() {
        // Stand-ins for control tokens have to come out as they are.
        if !ascii || symbol.is_ascii() || is_private(symbol) {
            out.push(symbol);
            continue;
        }
        for unit in symbol.encode_utf16(&mut [0; 2]) {
            out.push_str(&format!("\\u{unit:04x}"));
        }
    }
}

/// The directives of C's `strftime` that templates use, in the C locale; others stay as they are.
pub(super) fn strftime(format: &str, now: OffsetDateTime) -> String {
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(symbol) = rest.next() {
        if symbol != '%' {
            text.push(symbol);
            continue;
        }
        let month = now.month().to_string();
        let weekday = now.weekday().to_string();
        let hour12 = (now.hour() + 11) % 12 + 1;
        let Some(directive) = rest.next() else {
            text.push('%');
            break;
        };
        text.push_str(&match directive {
            'Y' => now.year().to_string(),
            'y' => format!("{:02}", now.year().rem_euclid(100)),
            'm' => format!("{:02}", u8::from(now.month())),
            'B' => month,
            'b' | 'h' => month.chars().take(3).collect(),
            'd' => format!("{:02}", now.day()),
            'e' => format!("{:2}", now.day()),
            'j' => format!("{:03}", now.ordinal()),
            'A' => weekday,
            'a' => weekday.chars().take(3).collect(),
            'H' => format!("{:02}", now.hour()),
            'I' => format!("{hour12:02}"),
            'p' => if now.hour() < 12 { "AM" } else { "PM" }.to_owned(),
            'M' => format!("{:02}", now.minute()),
            'S' => format!("{:02}", now.second()),
            'F' => strftime("%Y-%m-%d", now),
            'T' => strftime("%H:%M:%S", now),
            'D' => strftime("%m/%d/%y", now),
            'R' => strftime("%H:%M", now),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        });
    }
    text
}
