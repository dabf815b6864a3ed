// SPDX-License-Identifier: MIT OR Apache-2.0
//! Typed reading of one section, with an error for everything that does not fit its [`Section`].
//!
//! Serde's derived readers stop at the first error of a file; here every error is found in one pass, and
//! each one knows whether it concerns one VM or all of them. So the document tree of `toml` is walked by
//! hand.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Position, Scope, Spanned, quoted, shortened};
use super::schema::{Key, Section};
use crate::base::nearest::nearest;

/// A value of the document tree.
pub(super) type Value<'t> = toml::Spanned<DeValue<'t>>;

/// One section under examination.
pub(super) struct Table<'t> {
    text: &'t str,
    entries: &'t DeTable<'t>,
    section: &'static Section,
    /// Where its heading stands.
    pub at: Position,
    /// What it describes, for messages: `vm alpha`. Empty until known.
    pub subject: String,
    scope: Scope,
}

impl<'t> Table<'t> {
    /// Looks at `entries` as a `section`. Unknown keys are reported by [`Table::refuse_unknown_keys`].
    pub fn new(
        text: &'t str,
        entries: &'t DeTable<'t>,
        section: &'static Section,
        at: Position,
        subject: String,
        scope: Scope,
    ) -> Self {
        Self { text, entries, section, at, subject, scope }
    }

    /// An error at `at` about this section.
    pub fn error(
        &self,
        at: Position,
        what: impl core::fmt::Display,
        remedy: impl Into<String>,
    ) -> ConfigError {
        ConfigError::new(self.scope, at, format!("{}: {what}", self.subject), remedy)
    }

    /// Reports each key that the section does not have.
    pub fn refuse_unknown_keys(&self, errors: &mut Vec<ConfigError>) {
        for key in self.entries.keys() {
            let name = key.get_ref();
            if self.section.key(name).is_none() {
                let at = Position::of(self.text, key.span().start);
                let known = self.section.keys.iter().map(|key| key.name);
                let remedy = unknown_key_remedy(name, known, self.section.heading);
                errors.push(self.error(at, format_args!("unknown key {}", quoted(name)), remedy));
            }
        }
    }

    /// The raw value of a key and its place.
    pub fn value(&self, name: &str) -> Option<(&'t Value<'t>, Position)> {
        let value = self.entries.get(name)?;
        Some((value, Position::of(self.text, value.span().start)))
    }

    /// Reports a value of the wrong type.
    pub fn wrong_type(&self, name: &str, value: &DeValue<'_>, at: Position, errors: &mut Vec<ConfigError>) {
        let key = self.describe(name);
        errors.push(self.error(
            at,
            format_args!("{name} takes {}, but this is {}", plain(key.takes), with_article(value.type_str())),
            format!("write {}", key.example),
        ));
    }

    /// A string, with its place. Absent: `None`; of another type: reported, and `None`.
    pub fn string(&self, name: &str, errors: &mut Vec<ConfigError>) -> Option<Spanned<String>> {
        let (value, at) = self.value(name)?;
        match value.get_ref() {
            DeValue::String(text) => Some(Spanned::new(text.to_string(), at)),
            other => {
                self.wrong_type(name, other, at, errors);
                None
            }
        }
    }

    /// A list of strings, each with its place; empty where it is absent. What is something else is reported.
    pub fn strings(&self, name: &str, errors: &mut Vec<ConfigError>) -> Vec<Spanned<String>> {
        let Some((value, at)) = self.value(name) else { return Vec::new() };
        let Some(list) = value.get_ref().as_array() else {
            self.wrong_type(name, value.get_ref(), at, errors);
            return Vec::new();
        };
        if list.is_empty() {
            let remedy = format!("write {}", self.describe(name).example);
            errors.push(self.error(at, format_args!("{name} is empty"), remedy));
        }
        let mut strings = Vec::new();
        for value in list.iter() {
            let at = Position::of(self.text, value.span().start);
            match value.get_ref() {
                DeValue::String(text) => strings.push(Spanned::new(text.to_string(), at)),
                other => self.wrong_type(name, other, at, errors),
            }
        }
        strings
    }

    /// A string that must be there.
    pub fn required_string(&self, name: &str, errors: &mut Vec<ConfigError>) -> Option<Spanned<String>> {
        if self.value(name).is_none() {
            let key = self.describe(name);
            errors.push(self.error(
                self.at,
                format_args!("the key {name} is missing"),
                format!("add a line like {} to this {}", key.example, self.section.heading),
            ));
        }
        self.string(name, errors)
    }

    /// A truth value.
    pub fn boolean(&self, name: &str, default: bool, errors: &mut Vec<ConfigError>) -> Spanned<bool> {
        match self.value(name) {
            None => Spanned::new(default, self.at),
            Some((value, at)) => match value.get_ref() {
                DeValue::Boolean(value) => Spanned::new(*value, at),
                other => {
                    self.wrong_type(name, other, at, errors);
                    Spanned::new(default, at)
                }
            },
        }
    }

    /// A whole number in `range`.
    pub fn integer(
        &self,
        name: &str,
        range: core::ops::RangeInclusive<u16>,
        errors: &mut Vec<ConfigError>,
    ) -> Option<Spanned<u16>> {
        let (value, at) = self.value(name)?;
        let DeValue::Integer(digits) = value.get_ref() else {
            self.wrong_type(name, value.get_ref(), at, errors);
            return None;
        };
        let number = i128::from_str_radix(digits.as_str(), digits.radix())
            .ok()
            .and_then(|number| u16::try_from(number).ok())
            .filter(|number| range.contains(number));
        if number.is_none() {
            errors.push(self.error(
                at,
                format_args!("{name} = {} is out of range", shortened(&digits.to_string())),
                format!("use a number from {} to {}", range.start(), range.end()),
            ));
        }
        number.map(|number| Spanned::new(number, at))
    }

    /// One of a few words; the first is the default.
    pub fn choice<T: Clone>(
        &self,
        name: &str,
        choices: &[(&'static str, T)],
        default: T,
        errors: &mut Vec<ConfigError>,
    ) -> Spanned<T> {
        let Some(word) = self.string(name, errors) else {
            return Spanned::new(default, self.at);
        };
        if let Some((_, value)) = choices.iter().find(|(known, _)| *known == word.value) {
            return Spanned::new(value.clone(), word.at);
        }
        let known = choices.iter().map(|(known, _)| *known);
        let remedy = match nearest(&word, known) {
            Some(near) => format!("did you mean {name} = \"{near}\"?"),
            None => format!("{name} takes {}", plain(self.describe(name).takes)),
        };
        errors.push(self.error(word.at, format_args!("{name} = {} is unknown", quoted(&word)), remedy));
        Spanned::new(default, word.at)
    }

    /// The section's description of a key. Only keys of the schema are asked for (a test reads a file
    /// with all of them); anything else would still give a sensible message.
    fn describe(&self, name: &str) -> &'static Key {
        self.section.key(name).unwrap_or(&Key {
            name: "",
            takes: "another type",
            default: None,
            example: "what the configuration reference shows",
            about: "",
        })
    }
}

/// What to say about a key that is not known.
pub(super) fn unknown_key_remedy(
    name: &str,
    known: impl Iterator<Item = &'static str> + Clone,
    heading: &str,
) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("{heading} knows {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// Documentation words without their Markdown quotes.
fn plain(text: &str) -> String {
    text.replace('`', "")
}

fn with_article(type_name: &str) -> String {
    let article = if type_name.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
    format!("{article} {type_name}")
}
