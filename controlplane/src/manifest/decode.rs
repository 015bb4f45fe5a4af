//! Decodes a tree into a Kubernetes type, strictly: each unknown field and each value of a wrong type is reported by
//! its path. A null is the type's zero value, as for the API server. Knows no rule about values.

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

/// The most values of a wrong type that are reported of one object.
const MAX_WRONG: usize = 50;

/// The result of decoding.
pub(super) struct Decoded<T> {
    /// The value. Where something was of a wrong type it has the type's default.
    pub(super) value: Option<T>,
    /// Fields that the type does not know.
    pub(super) unknown: Vec<Fault>,
    /// Values of a wrong type.
    pub(super) wrong: Vec<Fault>,
    /// The places where a null stands for a zero value, and that value: the one that the API server would store there.
    pub(super) zeros: Vec<(FieldPath, Value)>,
}

/// Decodes a tree that has no duplicate keys. Unknown fields inside of the `tolerated` top-level fields are passed
/// over: a cluster wrote those, perhaps one that is newer than this program. Known names in another case are refused
/// there too: those are mistakes.
pub(super) fn decode<T: DeserializeOwned>(tree: &Tree, tolerated: &[&str]) -> Decoded<T> {
    let mut copy = None::<Tree>;
    let mut wrong = Vec::<Fault>::new();
    let mut attempts = 0;
    loop {
        let (unknown, zeros) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let sink = Sink {
            unknown: &unknown,
            zeros: &zeros,
            tolerated,
        };
        let result = T::deserialize(Decoder {
            tree: copy.as_ref().unwrap_or(tree),
            path: Path::ROOT,
            sink,
            siblings: &[],
        });
        let (unknown, zeros) = (unknown.into_inner(), zeros.into_inner());
        let error = match result {
            Ok(value) => {
                return Decoded {
                    value: Some(value),
                    unknown,
                    wrong,
                    zeros,
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
                    zeros,
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
                    zeros,
                };
            }
        }
    }
}

/// A list without items, and an object without entries.
static NO_ITEMS: Tree = Tree {
    position: None,
    value: Value::List(Vec::new()),
};
static NO_ENTRIES: Tree = Tree {
    position: None,
    value: Value::Map(Vec::new()),
};

/// The target of unknown fields and zero values.
#[derive(Clone, Copy)]
struct Sink<'p> {
    unknown: &'p RefCell<Vec<Fault>>,
    zeros: &'p RefCell<Vec<(FieldPath, Value)>>,
    tolerated: &'p [&'p str],
}

impl Sink<'_> {
    /// Notes a field that is none of its siblings, the fields that the type knows.
    fn unknown(self, at: Path<'_>, siblings: &[&str]) {
        let field = at.to_field();
        let is_tolerated = match (field.0.first(), field.0.last()) {
            (Some(Segment::Field(first)), Some(Segment::Field(last))) => {
                self.tolerated.contains(&first.as_str())
                    && !siblings
                        .iter()
                        .any(|known| known.eq_ignore_ascii_case(last))
            }
            _ => false,
        };
        if !is_tolerated {
            self.unknown.borrow_mut().push(Fault {
                message: format!("unknown field \"{field}\""),
                field,
            });
        }
    }
}

/// The error that ends a decoding.
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
    /// The fields that the type has around this value.
    siblings: &'static [&'static str],
}

/// Each null that is a type's zero value: the type as serde calls it, the value, and how a visitor is shown it.
macro_rules! zero_values {
    ($($method:ident: $zero:expr => $show:ident($shown:expr);)*) => {
        $(fn $method<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
            match self.tree.value {
                Value::Null => {
                    self.zero($zero);
                    visitor.$show($shown).map_err(|error: Error| error.at(self.path))
                }
                _ => self.visit(visitor, None),
            }
        })*
    };
}

impl<'t, 'p> Decoder<'t, 'p> {
    /// Notes that a null stands for a zero value.
    fn zero(self, value: Value) {
        let field = self.path.to_field();
        self.sink.zeros.borrow_mut().push((field, value));
    }

    /// Shows the value to the visitor; in place of a null what has nothing in it.
    fn visit_or<V: Visitor<'t>>(
        self,
        empty: &'static Tree,
        visitor: V,
        fields: Option<&'static [&'static str]>,
    ) -> Result<V::Value, Error> {
        if self.tree.value != Value::Null {
            return self.visit(visitor, fields);
        }
        self.zero(empty.value.clone());
        let empty = Decoder {
            tree: empty,
            ..self
        };
        empty.visit(visitor, fields)
    }

    /// Shows the value to the visitor. `fields` tells a struct's fields from a map's keys.
    fn visit<V: Visitor<'t>>(
        self,
        visitor: V,
        fields: Option<&'static [&'static str]>,
    ) -> Result<V::Value, Error> {
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
        self.visit(visitor, None)
    }

    fn deserialize_struct<V: Visitor<'t>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.visit_or(&NO_ENTRIES, visitor, Some(fields))
    }

    fn deserialize_seq<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit_or(&NO_ITEMS, visitor, None)
    }

    fn deserialize_map<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.visit_or(&NO_ENTRIES, visitor, None)
    }

    zero_values! {
        deserialize_str: Value::Text(String::new()) => visit_borrowed_str("");
        deserialize_string: Value::Text(String::new()) => visit_borrowed_str("");
        deserialize_bool: Value::Bool(false) => visit_bool(false);
        deserialize_i32: Value::Unsigned(0) => visit_u64(0);
        deserialize_i64: Value::Unsigned(0) => visit_u64(0);
    }

    fn deserialize_option<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.tree.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'t>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if name == "Quantity" && self.tree.value == Value::Null {
            self.zero(Value::Text("0".to_owned()));
            return visitor.visit_borrowed_str("0");
        }
        visitor
            .visit_newtype_struct(self)
            .map_err(|error| error.at(self.path))
    }

    /// This is how a type says that it does not know a field.
    fn deserialize_ignored_any<V: Visitor<'t>>(self, visitor: V) -> Result<V::Value, Error> {
        self.sink.unknown(self.path, self.siblings);
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        <V: Visitor<'t>>
        i8 i16 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum
        identifier
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
            siblings: &[],
        })
        .map(Some)
    }
}

struct Entries<'t, 'p> {
    parent: Decoder<'t, 'p>,
    entries: std::slice::Iter<'t, (String, Tree)>,
    current: Option<&'t (String, Tree)>,
    /// The fields that a struct knows; `None` in a map, which has keys.
    fields: Option<&'static [&'static str]>,
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
        let path = match self.fields {
            Some(_) => at.field(key),
            None => at.key(key),
        };
        seed.deserialize(Decoder {
            tree,
            path,
            sink: self.parent.sink,
            siblings: self.fields.unwrap_or_default(),
        })
    }
}
