//! A document as it stands, before anybody asks what it means: values in the order of the text, duplicates included,
//! with their places. Knows no kind of object.

use std::{collections::HashSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap,
};
use serde_saphyr::Spanned;

use crate::validate::{Fault, FieldPath, Path, Segment};

/// A value, and where the text has it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tree {
    /// Line and column, from 1; of the key, for an entry of a map. `None` in JSON.
    pub(super) position: Option<(u32, u32)>,
    /// The value.
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<(String, Tree)>),
}

impl Tree {
    /// A text that stood nowhere.
    pub(super) fn text(text: &str) -> Tree {
        Tree {
            position: None,
            value: Value::Text(text.to_owned()),
        }
    }

    /// An entry of a map.
    pub(super) fn get(&self, key: &str) -> Option<&Tree> {
        match &self.value {
            Value::Map(entries) => entries
                .iter()
                .find(|(name, _)| name == key)
                .map(|(_, value)| value),
            _ => None,
        }
    }

    /// An entry of a map, if it is a text.
    pub(super) fn get_text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn step(&self, segment: &Segment) -> Option<&Tree> {
        match (&self.value, segment) {
            (Value::List(items), Segment::Index(index)) => items.get(*index),
            (_, Segment::Field(key) | Segment::Key(key)) => self.get(key),
            _ => None,
        }
    }

    /// The value at a path.
    pub(super) fn at_mut(&mut self, path: &FieldPath) -> Option<&mut Tree> {
        path.0
            .iter()
            .try_fold(self, |tree, segment| match (&mut tree.value, segment) {
                (Value::List(items), Segment::Index(index)) => items.get_mut(*index),
                (Value::Map(entries), Segment::Field(key) | Segment::Key(key)) => entries
                    .iter_mut()
                    .find(|(name, _)| name == key)
                    .map(|(_, value)| value),
                _ => None,
            })
    }

    /// The position of the value at a path, or of the nearest value around it.
    pub(super) fn position_of(&self, path: &FieldPath) -> Option<(u32, u32)> {
        let mut tree = self;
        for segment in &path.0 {
            match tree.step(segment) {
                Some(next) => tree = next,
                None => break,
            }
        }
        tree.position
    }

    /// Moves every place down by some lines.
    pub(super) fn shift(&mut self, lines: u32) {
        if lines == 0 {
            return;
        }
        if let Some((line, _)) = &mut self.position {
            *line = line.saturating_add(lines);
        }
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.shift(lines)),
            Value::Map(entries) => entries.iter_mut().for_each(|(_, value)| value.shift(lines)),
            _ => {}
        }
    }

    /// Takes out every entry whose key comes again in its map, and tells of it.
    pub(super) fn take_duplicates(&mut self, at: Path<'_>, found: &mut Vec<Fault>) {
        match &mut self.value {
            Value::List(items) => {
                for (i, item) in items.iter_mut().enumerate() {
                    item.take_duplicates(at.index(i), found);
                }
            }
            Value::Map(entries) => {
                let mut seen = HashSet::with_capacity(entries.len());
                if !entries.iter().all(|(key, _)| seen.insert(key.as_str())) {
                    last_of_each(entries, at, found);
                }
                for (key, value) in entries {
                    value.take_duplicates(at.field(key), found);
                }
            }
            _ => {}
        }
    }

    /// Writes an object's namespace into its metadata.
    pub(super) fn set_namespace(&mut self, namespace: &str) {
        let Some(Value::Map(metadata)) = self
            .at_mut(&FieldPath(vec![Segment::Field("metadata".into())]))
            .map(|tree| &mut tree.value)
        else {
            return;
        };
        match metadata.iter_mut().find(|(key, _)| key == "namespace") {
            Some((_, value)) => value.value = Value::Text(namespace.to_owned()),
            None => metadata.push(("namespace".into(), Tree::text(namespace))),
        }
    }

    /// The tree as compact JSON, in the order of the text.
    pub(super) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a tree has text keys and finite numbers")
    }
}

fn last_of_each(entries: &mut Vec<(String, Tree)>, at: Path<'_>, found: &mut Vec<Fault>) {
    let mut seen = HashSet::with_capacity(entries.len());
    let mut kept = Vec::with_capacity(entries.len());
    for (key, value) in entries.drain(..).rev() {
        if seen.insert(key.clone()) {
            kept.push((key, value));
        } else {
            let field = at.field(&key).to_field();
            found.push(Fault {
                message: format!("duplicate field \"{field}\""),
                field,
            });
        }
    }
    kept.reverse();
    *entries = kept;
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(value) => serializer.serialize_bool(*value),
            Value::Unsigned(value) => serializer.serialize_u64(*value),
            Value::Signed(value) => serializer.serialize_i64(*value),
            Value::Float(value) => serializer.serialize_f64(*value),
            Value::Text(value) => serializer.serialize_str(value),
            Value::List(items) => serializer.collect_seq(items),
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

/// The conversion of a parser's values to trees.
pub(super) trait Form: Sized {
    /// A map's key, with its place.
    type Key: for<'de> Deserialize<'de>;
    /// A list's item, with its place.
    type Item: for<'de> Deserialize<'de>;
    /// Takes a key apart.
    fn key(key: Self::Key) -> (String, Option<(u32, u32)>);
    /// Takes an item apart.
    fn item(item: Self::Item) -> Tree;
}

/// YAML, which knows places.
pub(super) struct Yaml;

/// JSON, which does not.
pub(super) struct Json;

fn place<T>(spanned: &Spanned<T>) -> Option<(u32, u32)> {
    let at = spanned.referenced;
    Some((
        u32::try_from(at.line()).ok()?,
        u32::try_from(at.column()).ok()?,
    ))
    .filter(|(line, _)| *line > 0)
}

impl Form for Yaml {
    type Key = Spanned<String>;
    type Item = Spanned<Read<Yaml>>;

    fn key(key: Self::Key) -> (String, Option<(u32, u32)>) {
        let position = place(&key);
        (key.value, position)
    }

    fn item(item: Self::Item) -> Tree {
        let position = place(&item);
        Tree {
            position,
            ..item.value.tree
        }
    }
}

impl Form for Json {
    type Key = String;
    type Item = Read<Json>;

    fn key(key: Self::Key) -> (String, Option<(u32, u32)>) {
        (key, None)
    }

    fn item(item: Self::Item) -> Tree {
        item.tree
    }
}

/// A tree as it is read from one of the forms.
pub(super) struct Read<F> {
    pub(super) tree: Tree,
    form: PhantomData<F>,
}

impl<'de, F: Form> Deserialize<'de> for Read<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(Values::<F>(PhantomData))?;
        Ok(Read {
            tree: Tree {
                position: None,
                value,
            },
            form: PhantomData,
        })
    }
}

struct Values<F>(PhantomData<F>);

impl<'de, F: Form> Visitor<'de> for Values<F> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Unsigned(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned))
    }

    /// A float without a fraction is an integer, as for kubectl, which makes JSON of YAML and prints such floats so.
    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        const LIMIT: f64 = 9_007_199_254_740_992.0; // 2^53: up to here every integer has a float of its own
        if value.fract() != 0.0 || value.abs() > LIMIT {
            return Ok(Value::Float(value));
        }
        #[expect(clippy::cast_possible_truncation, reason = "an integer, at most LIMIT")]
        self.visit_i64(value as i64)
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<F::Item>()? {
            items.push(F::item(item));
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = map.next_key::<F::Key>()? {
            let (key, position) = F::key(key);
            let value = map.next_value::<Read<F>>()?.tree.value;
            entries.push((key, Tree { position, value }));
        }
        Ok(Value::Map(entries))
    }
}
