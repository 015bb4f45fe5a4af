//! Decodes a tree into a Kubernetes type, strictly: what the type does not know and what is not of its type is told by
//! path, all of it. Knows no rule about values.

use std::{cell::RefCell, fmt};

use serde::{
    de::{
        self, DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer,
        MapAccess, SeqAccess, Unexpected, Visitor, value::StrDeserializer,
    },
    forward_to_deserialize_any,
};

use super::tree::{Tree, Value};
use crate::validate::{Fault, FieldPath, Path, Segment, quote};

/// How many values of a wrong type are told of one object.
const MAX_WRONG: usize = 50;

/// What came of decoding.
pub(super) struct Decoded<T> {
    /// The value. Where something was of a wrong type it has the type's default.
    pub(super) value: Option<T>,
    /// Fields that the type does not know.
    pub(super) unknown: Vec<Fault>,
    /// Values of a wrong type.
    pub(super) wrong: Vec<Fault>,
}

/// Decodes a tree that has no duplicate keys. With `tolerant`, unknown fields inside the parts of `status` are passed
/// over: a cluster wrote those, perhaps one that is newer than this program.
pub(super) fn decode<T: DeserializeOwned>(tree: &Tree, tolerant: bool) -> Decoded<T> {
    let mut copy = None::<Tree>;
    let mut wrong = Vec::<Fault>::new();
    let mut attempts = 0;
    loop {
        let unknown = RefCell::new(Vec::new());
        let sink = Sink {
            unknown: &unknown,
            tolerant,
        };
        let result = T::deserialize(Decoder {
            tree: copy.as_ref().unwrap_or(tree),
            path: Path::ROOT,
            sink,
        });
        let unknown = unknown.into_inner();
        let error = match result {
            Ok(value) => {
                return Decoded {
                    value: Some(value),
                    unknown,
                    wrong,
                };
            }
            Err(error) => error,
        };
        // One wrong value ends a decoding. To find the next, put something harmless in its place and start again.
        let field = error.field.unwrap_or_default();
        if wrong.last().is_some_and(|last| last.field == field) {
            attempts += 1;
        } else {
            attempts = 0;
            wrong.push(Fault {
                field: field.clone(),
                message: error.message,
            });
        }
        let harmless = match attempts {
            0 => Value::Null,
            1 => Value::Text(String::new()),
            2 => Value::Map(Vec::new()),
            _ => {
                return Decoded {
                    value: None,
                    unknown,
                    wrong,
                };
            }
        };
        match copy.get_or_insert_with(|| tree.clone()).at_mut(&field) {
            Some(place) if wrong.len() < MAX_WRONG && !field.0.is_empty() => place.value = harmless,
            _ => {
                return Decoded {
                    value: None,
                    unknown,
                    wrong,
                };
            }
        }
    }
}

/// Where unknown fields go.
#[derive(Clone, Copy)]
struct Sink<'p> {
    unknown: &'p RefCell<Vec<Fault>>,
    tolerant: bool,
}

impl Sink<'_> {
    fn unknown(self, at: Path<'_>) {
        let field = at.to_field();
        let of_status = field.0.first() == Some(&Segment::Field("status".into()));
        if !(self.tolerant && of_status && field.0.len() > 2) {
            self.unknown.borrow_mut().push(Fault {
                message: format!("unknown field \"{field}\""),
                field,
            });
        }
    }
}

/// What ends a decoding.
#[derive(Debug)]
struct Error {
    field: Option<FieldPath>,
    message: String,
}

impl Error {
    fn at(mut self, path: Path<'_>) -> Error {
        self.field.get_or_insert_with(|| path.to_field());
        self
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Error {
        Error {
            field: None,
            message: format!("Invalid value: {message}"),
        }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Error {
        let given = match unexpected {
            Unexpected::Unit | Unexpected::Option => "null".to_owned(),
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Unsigned(value) => value.to_string(),
            Unexpected::Signed(value) => value.to_string(),
            Unexpected::Float(value) => value.to_string(),
            Unexpected::Str(value) => quote(value),
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "an object".to_owned(),
            other => other.to_string(),
        };
        let is_scalar = matches!(
            unexpected,
            Unexpected::Bool(_)
                | Unexpected::Unsigned(_)
                | Unexpected::Signed(_)
                | Unexpected::Float(_)
        );
        let expected = expected.to_string();
        let wanted = match expected.as_str() {
            "i32" | "a 32-bit integer" => "a 32-bit integer",
            "i64" => "a 64-bit integer",
            "a sequence" => "a list",
            "a map" => "an object",
            "IntOrString" => "an integer or a string",
            "Quantity" => "a quantity, such as \"500m\" or \"128Mi\"",
            name if name.starts_with(|c: char| c.is_ascii_uppercase()) => "an object",
            name if name.starts_with("struct ") => "an object",
            "a string" if is_scalar => "a string (put it in quotes)",
            name => name,
        };
        Error {
            field: None,
            message: format!("Invalid value: {given}: must be {wanted}"),
        }
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Error {
        Error::invalid_type(unexpected, expected)
    }
}

/// A tree, and where it is in the object.
#[derive(Clone, Copy)]
struct Decoder<'t, 'p> {
    tree: &'t Tree,
    path: Path<'p>,
    sink: Sink<'p>,
}

impl<'t> Decoder<'t, '_> {
    /// Shows the value to the visitor. `fields` tells a struct's fields from a map's keys.
    fn visit<V: Visitor<'t>>(self, visitor: V, fields: bool) -> Result<V::Value, Error> {
        match &self.tree.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_borrowed_str(value),
            Value::List(items) => visitor.visit_seq(Items {
                parent: self,
                items: items.iter(),
                next: 0,
            }),
            Value::Map(entries) => visitor.visit_map(Entries {
                parent: self,
                entries: entries.iter(),
                current: None,
                fields,
            }),
        }
        .map_err(|error| error.at(self.path))
    }
}

impl<'t> Deserializer<'t> for Decoder<'t, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit(visitor, false)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.visit(visitor, true)
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.tree.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor
            .visit_newtype_struct(self)
            .map_err(|error| error.at(self.path))
    }

    /// This is how a type says that it does not know a field.
    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.sink.unknown(self.path);
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <V: Visitor<'t>>
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq
        tuple tuple_struct map enum identifier
    }
}

struct Items<'t, 'p> {
    parent: Decoder<'t, 'p>,
    items: std::slice::Iter<'t, Tree>,
    next: usize,
}

impl<'t> SeqAccess<'t> for Items<'t, '_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'t>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let Some(tree) = self.items.next() else {
            return Ok(None);
        };
        let path = self.parent.path.index(self.next);
        self.next += 1;
        seed.deserialize(Decoder {
            tree,
            path,
            sink: self.parent.sink,
        })
        .map(Some)
    }
}

struct Entries<'t, 'p> {
    parent: Decoder<'t, 'p>,
    entries: std::slice::Iter<'t, (String, Tree)>,
    current: Option<&'t (String, Tree)>,
    fields: bool,
}

impl<'t> MapAccess<'t> for Entries<'t, '_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'t>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        self.current = self.entries.next();
        let Some((key, _)) = self.current else {
            return Ok(None);
        };
        let key: StrDeserializer<'_, Error> = key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'t>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let (key, tree) = self.current.expect("a value is asked for after its key");
        let at = self.parent.path;
        let path = if self.fields {
            at.field(key)
        } else {
            at.key(key)
        };
        seed.deserialize(Decoder {
            tree,
            path,
            sink: self.parent.sink,
        })
    }
}
