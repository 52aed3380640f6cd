//! The patterns that a schema asks of one text at once. The library derives their intersection by all combinations of their branches, and
//! does not limit a single derivation; so their number is limited here.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The most patterns, formats and lengths that one text can have to fulfil.
const MOST: usize = 6;

/// Checks how many patterns one text may have to fulfil, by an upper bound: of schemas that are merged, the properties count as if they
/// had the same names.
///
/// # Errors
/// Input: too many.
pub(super) fn check(schema: &Value) -> Result<()> {
    let weight = Schemas { root: schema, known: HashMap::new() }.weigh(schema);
    let most = weight.most();
    match most > MOST {
        true => {
            Err(Error::input("", format!("the schema merges {most} patterns and formats; at most {MOST} are taken")))
        }
        false => Ok(()),
    }
}

/// The patterns that a text has to fulfil at most, at a place and at any place within it.
#[derive(Debug, Clone, Copy, Default)]
struct Weight {
    here: usize,
    within: usize,
}

impl Weight {
    fn most(self) -> usize {
        self.here.max(self.within)
    }

    /// One or the other.
    fn or(self, other: Self) -> Self {
        Self { here: self.here.max(other.here), within: self.within.max(other.within) }
    }

    /// Both at once.
    fn and(self, other: Self) -> Self {
        Self { here: self.here.saturating_add(other.here), within: self.within.saturating_add(other.within) }
    }

    /// The weight of what holds this as a part.
    fn as_part(self) -> Self {
        Self { here: 0, within: self.most() }
    }
}

struct Schemas<'a> {
    root: &'a Value,
    /// The weights of what references point to; that of a reference within itself is nothing.
    known: HashMap<&'a str, Weight>,
}

impl<'a> Schemas<'a> {
    fn weigh(&mut self, schema: &'a Value) -> Weight {
        let Some(fields) = schema.as_object() else { return Weight::default() };
        let count = |keys: [&str; 2]| keys.iter().filter(|key| fields.contains_key(**key)).count();
        let patterns = count(["pattern", "format"]);
        let lengths = usize::from(patterns > 0 && count(["minLength", "maxLength"]) > 0);
        let own = Weight { here: patterns + lengths, within: 0 };
        let mut parts = Weight::default();
        for key in ["items", "prefixItems", "additionalItems", "additionalProperties"] {
            parts = parts.or(fields.get(key).map_or(Weight::default(), |part| self.any_of(part)).as_part());
        }
        let mut all = own.and(parts);
        for key in ["properties", "patternProperties"] {
            all = all
                .and(fields.get(key).and_then(Value::as_object).map_or(Weight::default(), |named| self.named(named)));
        }
        for option in ["anyOf", "oneOf"] {
            all = all.and(fields.get(option).map_or(Weight::default(), |options| self.any_of(options)));
        }
        for part in fields.get("allOf").and_then(Value::as_array).into_iter().flatten() {
            all = all.and(self.weigh(part));
        }
        all.and(
            fields.get("$ref").and_then(Value::as_str).map_or(Weight::default(), |reference| self.referred(reference)),
        )
    }

    /// The greatest weight among a list, or that of one schema.
    fn any_of(&mut self, value: &'a Value) -> Weight {
        match value {
            Value::Array(items) => items.iter().fold(Weight::default(), |most, item| most.or(self.weigh(item))),
            one => self.weigh(one),
        }
    }

    fn named(&mut self, fields: &'a Map<String, Value>) -> Weight {
        fields.values().fold(Weight::default(), |most, part| most.or(self.weigh(part))).as_part()
    }

    fn referred(&mut self, reference: &'a str) -> Weight {
        if let Some(known) = self.known.get(reference) {
            return *known;
        }
        self.known.insert(reference, Weight::default());
        let path = reference.strip_prefix('#').map(|path| path.trim_end_matches('/'));
        let target = path.and_then(|path| self.root.pointer(path));
        let weight = target.map_or(Weight::default(), |target| self.weigh(target));
        self.known.insert(reference, weight);
        weight
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_merged_is_added_and_alternatives_are_not() {
        let date = || json!({ "type": "string", "format": "date" });
        let dates = |count: usize| (0..count).map(|index| (format!("a{index}"), date())).collect::<Value>();
        let object = |count: usize| json!({ "type": "object", "properties": dates(count) });
        let merged =
            json!({ "allOf": [object(9), object(9), { "$ref": "#/$defs/more" }], "$defs": { "more": object(9) } });
        for schema in [object(20), merged.clone(), json!({ "anyOf": vec![date(); 20] }), json!({ "items": merged })] {
            assert!(check(&schema).is_ok(), "{schema}");
        }
        let chain = (0..7)
            .map(|index| (format!("d{index}"), json!({ "pattern": "a", "$ref": format!("#/$defs/d{}", index + 1) })));
        let circle = json!({ "pattern": "a", "anyOf": [{ "$ref": "#" }] });
        assert!(check(&circle).is_ok());
        for schema in [
            json!({ "allOf": vec![date(); 7] }),
            json!({ "allOf": vec![object(1); 7] }),
            json!({ "$ref": "#/$defs/d0", "$defs": chain.collect::<Value>() }),
            json!({ "items": { "allOf": [{ "anyOf": [date(), { "allOf": vec![date(); 5] }] }, date(), date()] } }),
            json!({ "properties": { "a": { "allOf": vec![date(); 4] } }, "patternProperties": { "a": { "allOf": vec![date(); 3] } } }),
        ] {
            assert!(check(&schema).expect_err("too many").to_string().contains("7 patterns"), "{schema}");
        }
    }
}
