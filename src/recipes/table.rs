//! Settings as TOML tables: reading with the value types of a command line, and writing.

use std::fmt;

use serde::{
    Serialize,
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, Visitor,
        value::{SeqDeserializer, StringDeserializer},
    },
    forward_to_deserialize_any,
};
use toml::{Table, Value};

/// An error of one key of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyError {
    /// The key; empty if the error belongs to none.
    pub key: String,
    /// The expected and the found value.
    pub message: String,
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)
    }
}

impl std::error::Error for KeyError {}

impl de::Error for KeyError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self { key: String::new(), message: message.to_string() }
    }
}

/// Returns the keys of `T`: the names of its fields.
pub fn keys<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    // The result is always an error, since there are no values.
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

/// Reads the fields of `T` from `table`, and ignores other keys.
///
/// Every value may also be text, as on a command line: `"0.1"` is a number, and `"0.9,0.99"` a list.
///
/// # Errors
/// If a value is missing or has another type; the error names the key.
pub fn read<T: DeserializeOwned>(table: &Table) -> Result<T, KeyError> {
    T::deserialize(Fields(table))
}

/// Writes the fields of `settings` to a table. Fields that are `None` or `false` are left out.
///
/// # Errors
/// If a number is larger than TOML's largest, 2⁶³ − 1.
pub fn write<T: Serialize>(settings: &T) -> Result<Table, toml::ser::Error> {
    let mut table = Table::try_from(settings)?;
    table.retain(|_, value| *value != Value::Boolean(false));
    Ok(table)
}

/// A deserializer that stores the names of a struct's fields.
struct FieldNames<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for FieldNames<'_> {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, KeyError> {
        Err(de::Error::custom("expected a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

/// A deserializer of a struct from the values of a table.
struct Fields<'a>(&'a Table);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, KeyError> {
        Err(de::Error::custom("expected a struct"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        visitor.visit_map(Entries { table: self.0, keys: fields.iter(), current: None })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

struct Entries<'a> {
    table: &'a Table,
    keys: std::slice::Iter<'static, &'static str>,
    current: Option<(&'static str, &'a Value)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = KeyError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, KeyError> {
        let table = self.table;
        self.current = self.keys.find_map(|&key| Some((key, table.get(key)?)));
        self.current.map(|(key, _)| seed.deserialize(key.into_deserializer())).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, KeyError> {
        let (key, value) =
            self.current.ok_or_else(|| <KeyError as de::Error>::custom("expected a key before a value"))?;
        seed.deserialize(Setting(value)).map_err(|error| KeyError { key: key.to_owned(), ..error })
    }
}

/// A value that may be text.
#[derive(Clone, Copy)]
struct Setting<'a>(&'a Value);

impl Setting<'_> {
    fn expected<T>(self, what: &str) -> Result<T, KeyError> {
        Err(de::Error::custom(format!("expected {what}, found {}", self.0)))
    }

    fn text(self) -> Result<String, KeyError> {
        match self.0 {
            Value::String(text) => Ok(text.clone()),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
                Ok(self.0.to_string())
            }
            Value::Array(items) if items.len() == 1 => Setting(&items[0]).text(),
            Value::Array(_) | Value::Table(_) => self.expected("a value"),
        }
    }

    fn parse<T: std::str::FromStr>(self, what: &str) -> Result<T, KeyError> {
        match self.text().ok().and_then(|text| text.parse().ok()) {
            Some(value) => Ok(value),
            None => self.expected(what),
        }
    }
}

macro_rules! deserialize_numbers {
    ($($method:ident $visit:ident $type:ty, $what:literal;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
            visitor.$visit(self.parse::<$type>($what)?)
        })*
    };
}

impl<'de> Deserializer<'de> for Setting<'_> {
    type Error = KeyError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        match self.0 {
            Value::Boolean(value) => visitor.visit_bool(*value),
            Value::Array(_) => self.deserialize_seq(visitor),
            _ => visitor.visit_string(self.text()?),
        }
    }

    deserialize_numbers! {
        deserialize_bool visit_bool bool, "true or false";
        deserialize_u32 visit_u32 u32, "an integer of 0 or more";
        deserialize_u64 visit_u64 u64, "an integer of 0 or more";
        deserialize_f64 visit_f64 f64, "a number";
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_string(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        visitor.visit_some(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, KeyError> {
        let items = match self.0 {
            Value::Array(items) => items.clone(),
            Value::String(text) => text.split(',').map(|item| Value::String(item.to_owned())).collect(),
            value => vec![value.clone()],
        };
        visitor.visit_seq(SeqDeserializer::new(items.iter().map(Setting)))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, KeyError> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, KeyError> {
        let text = self.text()?;
        if !variants.contains(&text.as_str()) {
            return self.expected(&format!("one of {}", variants.join(", ")));
        }
        visitor.visit_enum(StringDeserializer::new(text))
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 u8 u16 f32 char bytes byte_buf unit unit_struct newtype_struct tuple_struct map struct identifier
        ignored_any
    }
}

impl<'de> IntoDeserializer<'de, KeyError> for Setting<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::train::LrShape;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Sample {
        batch_size: usize,
        lr: f64,
        name: Option<String>,
        ema: Vec<f64>,
        interval: [f64; 2],
        shape: LrShape,
        switch: bool,
    }

    #[test]
    fn values_may_be_text() {
        assert_eq!(keys::<Sample>()[..3], ["batch-size", "lr", "name"]);
        let read = |text: &str| read::<Sample>(&text.parse::<Table>().unwrap()).map_err(|e| e.to_string());
        let typed = "batch-size = 8\nlr = 1\nname = 7\nema = [0.5, 1]\ninterval = [0, 1]\nshape = 'linear'\nswitch = true";
        let text = "batch-size = '8'\nlr = '1e0'\nname = '7'\nema = '0.5,1'\ninterval = '0,1'\nshape = 'linear'\nswitch = 'true'";
        let expected = read(typed).unwrap();
        assert_eq!((expected.batch_size, expected.ema.len(), expected.name.as_deref()), (8, 2, Some("7")));
        assert_eq!(read(&format!("{text}\nother = 1")).unwrap(), expected);
        assert_eq!(super::read::<Sample>(&write(&expected).unwrap()).unwrap(), expected);
        for (from, to, message) in [
            ("batch-size = 8", "batch-size = -1", "batch-size: expected an integer of 0 or more, found -1"),
            ("batch-size = 8", "", "batch-size"),
            ("lr = 1", "lr = { a = 1 }", "lr: expected a number, found { a = 1 }"),
            ("ema = [0.5, 1]", "ema = ['x']", "ema: expected a number, found \"x\""),
            ("interval = [0, 1]", "interval = [0]", "interval: invalid length 1"),
            ("'linear'", "'steps'", "shape: expected one of cosine, linear, constant, found \"steps\""),
            ("switch = true", "switch = 3", "switch: expected true or false, found 3"),
        ] {
            let error = read(&typed.replace(from, to)).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}
