//! Tests and filters that answer as Jinja2's do where minijinja's answer otherwise: of None, of undefined names, and of
//! types that they are not made for.

use std::cmp::Ordering;

use minijinja::value::{ArgType, Kwargs, StringInput, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, filters, tests};

/// The widest indentation.
const MAX_INDENT: usize = 1024;

/// Puts them in the place of minijinja's.
pub(super) fn add(environment: &mut Environment<'_>) {
    environment.add_test("iterable", |value: &Value| {
        value.is_undefined()
            || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::String)
    });
    // In Python a text and a map have a length and items, too.
    environment.add_test("sequence", |value: &Value| {
        value.is_undefined() || matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String)
    });
    // Functions and macros, and what a name that nothing defines stands for.
    environment.add_test("callable", |value: &Value| value.is_undefined() || value.kind() == ValueKind::Plain);
    environment.add_test("odd", |value: Value| is_number(&value).map(|()| tests::is_odd(value)));
    environment.add_test("even", |value: Value| is_number(&value).map(|()| tests::is_even(value)));
    environment.add_test("divisibleby", |value: &Value, other: &Value| {
        is_number(value).and_then(|()| is_number(other)).map(|()| tests::is_divisibleby(value, other))
    });
    environment.add_test("in", |state: &State, value: &Value, other: &Value| {
        match (value.kind(), other.kind()) {
            (ValueKind::String, ValueKind::String) => {}
            (kind, ValueKind::String) => return refused(format!("a string holds strings, not a value of type {kind}")),
            (_, kind @ (ValueKind::None | ValueKind::Number | ValueKind::Bool)) => {
                return refused(format!("a value of type {kind} holds nothing"));
            }
            _ => {}
        }
        tests::is_in(state, value, other)
    });
    for (names, holds) in [
        (["lt", "lessthan", "<"], Ordering::is_lt as fn(Ordering) -> bool),
        (["gt", "greaterthan", ">"], Ordering::is_gt),
        (["le", "le", "<="], Ordering::is_le),
        (["ge", "ge", ">="], Ordering::is_ge),
    ] {
        for name in names {
            environment.add_test(name, move |value: &Value, other: &Value| compared(value, other).map(holds));
        }
    }
    environment.add_filter("list", |state: &State, value: Value| {
        is_not_none(&value)?;
        filters::list(state, value)
    });
    environment.add_filter("sort", |state: &State, value: Value, options: Kwargs| {
        is_not_none(&value)?;
        filters::sort(state, value, options)
    });
    environment.add_filter("min", |state: &State, value: Value, options: Kwargs| {
        is_not_none(&value)?;
        filters::min(state, value, options)
    });
    environment.add_filter("max", |state: &State, value: Value, options: Kwargs| {
        is_not_none(&value)?;
        filters::max(state, value, options)
    });
    environment.add_filter("sum", sum);
    environment.add_filter("join", join);
    environment.add_filter("batch", |state: &State, value: Value, count: usize, fill: Option<Value>| {
        is_not_none(&value)?;
        filters::batch(state, value, count, fill)
    });
    environment.add_filter("abs", |value: Value| match value.kind() {
        ValueKind::Bool => Ok(Value::from(i64::from(value.is_true()))),
        _ => filters::abs(value),
    });
    environment.add_filter("unique", |state: &State, value: Value, options: Kwargs| {
        is_not_none(&value)?;
        filters::unique(state, value, options)
    });
    environment.add_filter("indent", indent);
    environment.add_filter("wordcount", |value: &Value| {
        let is_part = |symbol: char| symbol.is_alphanumeric() || symbol == '_';
        value.to_string().split(|symbol| !is_part(symbol)).filter(|word| !word.is_empty()).count()
    });
    environment.add_filter("int", int);
    environment.add_filter("float", float);
}

pub(super) fn refused<T>(message: String) -> Result<T, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn is_not_none(value: &Value) -> Result<(), Error> {
    if value.is_none() { refused("none is not iterable".into()) } else { Ok(()) }
}

fn is_number(value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number | ValueKind::Bool => Ok(()),
        kind => refused(format!("a value of type {kind} is no number")),
    }
}

/// The order of two values of one kind.
pub(super) fn compared(value: &Value, other: &Value) -> Result<Ordering, Error> {
    let kind = |value: &Value| match value.kind() {
        ValueKind::Bool => ValueKind::Number,
        kind => kind,
    };
    match (kind(value), kind(other)) {
        (ValueKind::Number, ValueKind::Number)
        | (ValueKind::String, ValueKind::String)
        | (ValueKind::Seq, ValueKind::Seq) => Ok(value.cmp(other)),
        (one, two) => refused(format!("values of type {one} and {two} have no order")),
    }
}

fn sum(
    state: &State,
    values: Value,
    attribute: Option<&str>,
    start: Option<Value>,
    options: Kwargs,
) -> Result<Value, Error> {
    is_not_none(&values)?;
    filters::sum(state, values, attribute, start, options)
}

fn join(
    state: &mut State,
    value: &Value,
    joiner: Option<StringInput<'_>>,
    attribute: Option<&str>,
    options: Kwargs,
) -> Result<Value, Error> {
    is_not_none(value)?;
    filters::join(state, value, joiner, attribute, options)
}

/// Jinja2 indents texts alone.
fn indent(
    value: &Value,
    width: Option<usize>,
    first: Option<bool>,
    blank: Option<bool>,
    options: Kwargs,
) -> Result<Value, Error> {
    if value.kind() != ValueKind::String {
        return refused(format!("a value of type {} is no text to indent", value.kind()));
    }
    let width = width.or(options.get::<Option<usize>>("width")?);
    if width.is_some_and(|width| width > MAX_INDENT) {
        return refused(format!("an indentation is at most {MAX_INDENT} wide"));
    }
    filters::indent(StringInput::from_value(Some(value))?, width, first, blank, options)
}

/// Jinja2 gives the default for whatever is no number.
fn int(
    state: &State,
    value: &Value,
    default: Option<Value>,
    base: Option<u32>,
    options: Kwargs,
) -> Result<Value, Error> {
    if value.is_undefined() {
        return refused("an undefined value is no number".into());
    }
    let default = default.or(options.get::<Option<Value>>("default")?).unwrap_or(Value::from(0));
    Ok(filters::int(state, value, Some(default.clone()), base, options).unwrap_or(default))
}

/// Jinja2's `float` filter, by the rules of [`int`].
fn float(state: &State, value: &Value, default: Option<Value>, options: Kwargs) -> Result<Value, Error> {
    if value.is_undefined() {
        return refused("an undefined value is no number".into());
    }
    let default = default.or(options.get::<Option<Value>>("default")?).unwrap_or(Value::from(0.0));
    Ok(filters::float(state, value, Some(default.clone()), options).unwrap_or(default))
}
