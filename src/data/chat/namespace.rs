//! The values that a template's namespace may hold.

use minijinja::value::{Value, ValueKind};
use minijinja::{ErrorKind, State};

/// The deepest nesting of a value in a namespace.
const MAX_STORED_DEPTH: usize = 32;

/// Replaces lazy iterators in `value` by lists, so that a namespace cannot hold a cycle. `None` where there are none.
///
/// minijinja prints, compares and drops values by recursion. A namespace is all that a template can change, so it is what
/// lets a value hold itself, or grow deeper with every round of a loop, until the stack overflows.
pub(super) fn kept(state: &State, value: &Value, depth: usize) -> Result<Option<Value>, minijinja::Error> {
    let refuse = |message: &str| Err(minijinja::Error::new(ErrorKind::InvalidOperation, message.to_owned()));
    state.consume_fuel(1)?;
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain) {
        return Ok(None);
    }
    if depth == MAX_STORED_DEPTH {
        return refuse("a namespace is given a value that is nested too deep");
    }
    let object = value.as_object().map_or("", |object| object.type_name());
    if kind == ValueKind::Plain || object.ends_with("::Namespace") || object.ends_with("::Loop") {
        return refuse("a namespace can hold texts, numbers, lists and maps; not a macro, a loop or another namespace");
    }
    let mut changed = kind == ValueKind::Iterable;
    let mut items = Vec::new();
    for item in value.try_iter()? {
        let held = if kind == ValueKind::Map { value.get_item(&item)? } else { item.clone() };
        let new = kept(state, &held, depth + 1)?;
        changed |= new.is_some();
        items.push((item, new.unwrap_or(held)));
    }
    Ok(changed.then(|| match kind {
        ValueKind::Map => Value::from_pairs(items),
        _ => items.into_iter().map(|(_, new)| new).collect(),
    }))
}
