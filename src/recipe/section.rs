//! What a section of a recipe is: macros that make one declaration the struct, the reader and the reference.

use std::path::PathBuf;

/// A setting, for the reference and for suggestions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// `train.epochs`.
    pub key: String,
    /// What it does, and its unit.
    pub doc: String,
    /// Which values are accepted; empty where the type says it all.
    pub expected: String,
    /// Whether a recipe must give it.
    pub required: bool,
}

/// A part of the plan that is a section of the recipe.
pub(super) trait Describe {
    /// Adds this section's settings, whose keys start with `section`; nothing where the type is one setting.
    fn describe(_section: &str, _settings: &mut Vec<Setting>) {}

    /// What the type itself accepts, where it is more than its name says.
    fn expected() -> String {
        String::new()
    }
}

impl Describe for String {}
impl Describe for PathBuf {}
impl Describe for bool {}
impl Describe for f64 {}
impl Describe for u64 {}
impl Describe for usize {}

impl<T: Describe> Describe for Option<T> {
    fn describe(section: &str, settings: &mut Vec<Setting>) {
        T::describe(section, settings);
    }

    fn expected() -> String {
        T::expected()
    }
}

impl<T: Describe> Describe for Vec<T> {
    fn expected() -> String {
        match T::expected() {
            words if words.is_empty() => words,
            words => format!("any of {words}"),
        }
    }
}

/// Declares a section: each setting once, with its doc, type, what it is where it is missing, and its limit.
/// Out come the struct of the plan, its reader and its entry in the reference.
macro_rules! section {
    ($(#[doc = $doc:literal])* $name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident: $type:ty = $missing:expr, $limit:expr;)*
    }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub struct $name {
            $($(#[doc = $field_doc])* pub $field: $type,)*
        }

        impl $crate::recipe::reader::FromNode for $name {
            fn from_node(
                node: &$crate::recipe::tree::Node,
                key: &str,
                reader: &mut $crate::recipe::reader::Reader,
            ) -> Option<Self> {
                let known = [$(stringify!($field)),*];
                let section = $crate::recipe::reader::Section::open(node, key, &known, reader)?;
                $(let $field = section.setting(stringify!($field), $missing, &$limit, reader);)*
                Some(Self { $($field: $field?,)* })
            }
        }

        impl $crate::recipe::section::Describe for $name {
            fn describe(section: &str, settings: &mut Vec<$crate::recipe::section::Setting>) {
                $({
                    let key = $crate::recipe::reader::join_key(section, stringify!($field));
                    let (missing, limit): (Missing<$type>, Limit<$type>) = ($missing, $limit);
                    let before = settings.len();
                    <$type as $crate::recipe::section::Describe>::describe(&key, settings);
                    if settings.len() == before {
                        settings.push($crate::recipe::section::Setting {
                            key,
                            doc: [$($field_doc.trim()),*].join(" "),
                            expected: Some(<$type as $crate::recipe::section::Describe>::expected())
                                .filter(|words| !words.is_empty())
                                .unwrap_or(limit.expected),
                            required: matches!(missing, Missing::Refuse),
                        });
                    }
                })*
            }
        }
    };
}
pub(super) use section;

/// Declares a setting that is one of a few words.
macro_rules! choice {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $value_doc:literal])* $value:ident = $word:literal,)* }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
        pub enum $name {
            $($(#[doc = $value_doc])* #[serde(rename = $word)] $value,)*
        }

        impl $name {
            /// Every word a recipe may use.
            pub const WORDS: &[&str] = &[$($word),*];

            /// The word a recipe uses.
            pub fn word(self) -> &'static str {
                match self { $(Self::$value => $word,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.word())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$value),)*
                    _ => Err(format!("expected {}", Self::WORDS.join(", "))),
                }
            }
        }

        impl $crate::recipe::reader::FromNode for $name {
            fn from_node(
                node: &$crate::recipe::tree::Node,
                key: &str,
                reader: &mut $crate::recipe::reader::Reader,
            ) -> Option<Self> {
                $crate::recipe::reader::word(node, key, Self::WORDS, reader)
            }
        }

        impl $crate::recipe::section::Describe for $name {
            fn expected() -> String {
                $crate::recipe::reader::one_of(Self::WORDS)
            }
        }
    };
}
pub(super) use choice;
