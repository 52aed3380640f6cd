//! The two ways to declare settings: `section!` for a section of a recipe, `choice!` for a setting that is one of a few
//! words. One declaration is the type, its reader, its entry in the reference, its JSON Schema and its values on the command line.

use std::path::PathBuf;

use serde_json::{Value, json};

/// A setting, for the reference and for suggestions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `train.epochs`.
    pub key: String,
    /// Its meaning, and its unit.
    pub doc: String,
    /// Which values are accepted; empty where the type says it all.
    pub expected: String,
    /// Whether a recipe must give it.
    pub required: bool,
}

/// A type that a setting can have, or a section of them.
pub(crate) trait Describe {
    /// Adds this section's settings, whose keys start with `section`; nothing where the type is one setting.
    fn describe(_section: &str, _settings: &mut Vec<Setting>) {}

    /// The values that the type itself accepts, where they are more than its name says.
    fn expected() -> String {
        String::new()
    }

    /// The JSON Schema of its values (draft 2020-12), for editors.
    fn schema() -> Value;
}

/// A type declared by `choice!`.
pub(crate) trait Choice: std::str::FromStr {
    /// The word of each value, in the order of the declaration.
    const NAMES: &'static [&'static str];
}

/// Implements [`Describe`] for types that are one setting, by their schemas.
macro_rules! plain {
    ($($type:ty = $schema:tt;)*) => {
        $(impl Describe for $type {
            fn schema() -> Value {
                json!($schema)
            }
        })*
    };
}

plain! {
    String = { "type": "string" };
    PathBuf = { "type": "string" };
    bool = { "type": "boolean" };
    f64 = { "type": "number" };
    u64 = { "type": "integer", "minimum": 0 };
    usize = { "type": "integer", "minimum": 0 };
}

impl<T: Describe> Describe for Option<T> {
    fn describe(section: &str, settings: &mut Vec<Setting>) {
        T::describe(section, settings);
    }

    fn expected() -> String {
        T::expected()
    }

    fn schema() -> Value {
        T::schema()
    }
}

impl<T: Describe> Describe for Vec<T> {
    fn describe(section: &str, settings: &mut Vec<Setting>) {
        T::describe(section, settings);
    }

    fn expected() -> String {
        match T::expected() {
            words if words.is_empty() => words,
            words => format!("any of {words}"),
        }
    }

    fn schema() -> Value {
        json!({ "type": "array", "items": T::schema() })
    }
}

/// The schema of one setting of a section: that of its type, with its meaning and its default.
pub(crate) fn setting_schema(mut schema: Value, doc: &str, expected: &str, default: Option<Value>) -> Value {
    let description = match expected {
        "" => doc.to_owned(),
        expected => format!("{doc} Accepted: {expected}."),
    };
    schema["description"] = description.into();
    if let Some(default) = default.filter(|default| !default.is_null()) {
        schema["default"] = default;
    }
    schema
}

/// Declares a section: each setting once, with its doc, type, value where it is missing, and limit.
/// Out come the struct, its reader and its entry in the reference.
macro_rules! section {
    ($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident: $type:ty = $missing:expr, $limit:expr;)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct $name {
            $($(#[doc = $field_doc])* pub $field: $type,)*
        }

        impl $crate::settings::FromNode for $name {
            fn from_node(
                node: &$crate::settings::Node,
                key: &str,
                reader: &mut $crate::settings::Reader,
            ) -> Option<Self> {
                #[allow(unused_imports)]
                use $crate::settings::Missing::{ReadEmpty, Refuse, Take};
                let known = [$(stringify!($field)),*];
                let section = $crate::settings::Section::open(node, key, &known, reader)?;
                $(let $field = section.setting(stringify!($field), $missing, &$limit, reader);)*
                Some(Self { $($field: $field?,)* })
            }
        }

        impl $crate::settings::Describe for $name {
            fn describe(section: &str, settings: &mut Vec<$crate::settings::Setting>) {
                #[allow(unused_imports)]
                use $crate::settings::Missing::{ReadEmpty, Refuse, Take};
                $({
                    let key = $crate::settings::join_key(section, stringify!($field));
                    let (missing, limit): ($crate::settings::Missing<$type>, $crate::settings::Limit<$type>) =
                        ($missing, $limit);
                    let before = settings.len();
                    <$type as $crate::settings::Describe>::describe(&key, settings);
                    if settings.len() == before {
                        settings.push($crate::settings::Setting {
                            key,
                            doc: [$($field_doc.trim()),*].join(" "),
                            expected: Some(<$type as $crate::settings::Describe>::expected())
                                .filter(|words| !words.is_empty())
                                .unwrap_or(limit.expected),
                            required: matches!(missing, Refuse),
                        });
                    }
                })*
            }

            fn schema() -> serde_json::Value {
                #[allow(unused_imports)]
                use $crate::settings::Missing::{ReadEmpty, Refuse, Take};
                let mut properties = serde_json::Map::new();
                let mut required: Vec<&str> = Vec::new();
                $({
                    let (missing, limit): ($crate::settings::Missing<$type>, $crate::settings::Limit<$type>) =
                        ($missing, $limit);
                    required.extend(matches!(missing, Refuse).then_some(stringify!($field)));
                    let default = match &missing {
                        Take(value) => serde_json::to_value(value).ok(),
                        Refuse | ReadEmpty => None,
                    };
                    let doc = [$($field_doc.trim()),*].join(" ");
                    let schema = <$type as $crate::settings::Describe>::schema();
                    let schema = $crate::settings::setting_schema(schema, &doc, &limit.expected, default);
                    properties.insert(stringify!($field).to_owned(), schema);
                })*
                serde_json::json!({
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": false,
                })
            }
        }
    };
}
pub(crate) use section;

/// Declares a setting that is one of a few words: in recipes, on the command line (`clap::ValueEnum`) and in files.
macro_rules! choice {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $value_doc:literal])* $value:ident = $word:literal,)* }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        pub enum $name {
            $($(#[doc = $value_doc])* #[serde(rename = $word)] $value,)*
        }

        impl $name {
            /// Every value, in the order of the declaration.
            pub const ALL: [Self; [$($word),*].len()] = [$(Self::$value),*];

            /// The word for this value, in recipes, arguments and files.
            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $word,)* }
            }

            /// The value with this word.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|value| value.name() == name)
            }
        }

        impl $crate::settings::Choice for $name {
            const NAMES: &'static [&'static str] = &[$($word),*];
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(name: &str) -> Result<Self, String> {
                Self::from_name(name).ok_or_else(|| {
                    let names = <Self as $crate::settings::Choice>::NAMES;
                    format!("expected {}, found `{name}`", $crate::settings::one_of(names))
                })
            }
        }

        impl clap::ValueEnum for $name {
            fn value_variants<'a>() -> &'a [Self] {
                &Self::ALL
            }

            fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
                let help = match self { $(Self::$value => [$($value_doc.trim()),*].join(" "),)* };
                Some(clap::builder::PossibleValue::new(self.name()).help(help.trim_end_matches('.').to_owned()))
            }
        }

        impl $crate::settings::FromNode for $name {
            fn from_node(
                node: &$crate::settings::Node,
                key: &str,
                reader: &mut $crate::settings::Reader,
            ) -> Option<Self> {
                $crate::settings::word(node, key, <Self as $crate::settings::Choice>::NAMES, reader)
            }
        }

        impl $crate::settings::Describe for $name {
            fn expected() -> String {
                $crate::settings::one_of(<Self as $crate::settings::Choice>::NAMES)
            }

            fn schema() -> serde_json::Value {
                serde_json::json!({ "enum": <Self as $crate::settings::Choice>::NAMES })
            }
        }
    };
}
pub(crate) use choice;
