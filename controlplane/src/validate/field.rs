//! Faults with their place in an object, in the API server's words: paths and faults. Never looks at an object itself.

use std::fmt;

/// The most faults that are kept of one object; the rest are counted.
const MAX_FAULTS: usize = 1_000;

/// The longest value that is repeated in a message.
const MAX_QUOTED: usize = 512;

/// A place in an object, as a chain on the stack: a path costs nothing until something is wrong at it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'a> {
    Root,
    Field(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// The object itself.
    pub(crate) const ROOT: Path<'static> = Path {
        parent: None,
        step: Step::Root,
    };

    /// A field of what is here.
    pub(crate) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Field(name),
        }
    }

    /// An item of the list here.
    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Index(index),
        }
    }

    /// An entry of the map here.
    pub(crate) fn key(&'a self, key: &'a str) -> Path<'a> {
        Path {
            parent: Some(self),
            step: Step::Key(key),
        }
    }

    /// The path as a value that can be kept.
    pub(crate) fn to_field(self) -> FieldPath {
        let mut segments = Vec::new();
        let mut at = Some(&self);
        while let Some(path) = at {
            match path.step {
                Step::Root => {}
                Step::Field(name) => segments.push(Segment::Field(name.to_owned())),
                Step::Index(index) => segments.push(Segment::Index(index)),
                Step::Key(key) => segments.push(Segment::Key(key.to_owned())),
            }
            at = path.parent;
        }
        segments.reverse();
        FieldPath(segments)
    }
}

/// A path that is kept. Displays as the API server writes it: `spec.ingress[0].ports[1].port`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FieldPath(pub(crate) Vec<Segment>);

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// Into a field of an object.
    Field(String),
    /// Into an item of a list.
    Index(usize),
    /// Into an entry of a map.
    Key(String),
}

impl FieldPath {
    /// Whether it is the other path or leads on from there.
    pub(crate) fn is_within(&self, other: &FieldPath) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Field(name) if i == 0 => f.write_str(name)?,
                Segment::Field(name) => write!(f, ".{name}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
                Segment::Key(key) => write!(f, "[{key}]")?,
            }
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Where.
    pub(crate) field: FieldPath,
    /// What: `Invalid value: 70000: must be between 1 and 65535, inclusive`.
    pub(crate) message: String,
}

/// Everything that is wrong with one object, in the order in which it was found.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// The faults, at most `MAX_FAULTS`.
    pub(crate) list: Vec<Fault>,
    /// The number of faults that are left out.
    pub(crate) omitted: usize,
}

impl Faults {
    /// Something is wrong at a path.
    pub(crate) fn add(&mut self, at: Path<'_>, message: String) {
        if self.list.len() < MAX_FAULTS {
            self.list.push(Fault {
                field: at.to_field(),
                message,
            });
        } else {
            self.omitted += 1;
        }
    }

    /// A value breaks a rule. Strings are to be passed through [`quote`].
    pub(crate) fn invalid(
        &mut self,
        at: Path<'_>,
        value: impl fmt::Display,
        rule: impl fmt::Display,
    ) {
        self.add(at, format!("Invalid value: {value}: {rule}"));
    }

    /// A string breaks each of some rules.
    pub(crate) fn invalid_each(&mut self, at: Path<'_>, value: &str, rules: Vec<String>) {
        for rule in rules {
            self.invalid(at, quote(value), rule);
        }
    }

    /// A value is missing.
    pub(crate) fn required(&mut self, at: Path<'_>, why: &str) {
        self.add(
            at,
            if why.is_empty() {
                "Required value".into()
            } else {
                format!("Required value: {why}")
            },
        );
    }

    /// A value is none of those that there are.
    pub(crate) fn unsupported(&mut self, at: Path<'_>, value: &str, supported: &[&str]) {
        let supported: Vec<_> = supported.iter().map(|value| quote(value)).collect();
        self.add(
            at,
            format!(
                "Unsupported value: {}: supported values: {}",
                quote(value),
                supported.join(", ")
            ),
        );
    }

    /// A value may not be here at all.
    pub(crate) fn forbidden(&mut self, at: Path<'_>, why: &str) {
        self.add(at, format!("Forbidden: {why}"));
    }

    /// A value is here twice.
    pub(crate) fn duplicate(&mut self, at: Path<'_>, value: impl fmt::Display) {
        self.add(at, format!("Duplicate value: {value}"));
    }

    /// Whether a list is within its limit; a fault if not.
    pub(crate) fn within(&mut self, at: Path<'_>, items: usize, limit: usize) -> bool {
        if items > limit {
            self.add(
                at,
                format!("Too many: {items}: must have at most {limit} items"),
            );
        }
        items <= limit
    }
}

/// A string as Go's `%q` prints it, cut where it gets long.
pub(crate) fn quote(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len().min(MAX_QUOTED) + 2);
    quoted.push('"');
    for c in value.chars() {
        if quoted.len() > MAX_QUOTED {
            quoted.push_str("...");
            break;
        }
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_ascii_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_within_itself_and_what_is_around_it() {
        let spec = Path::ROOT.field("spec");
        let ports = spec.field("ports");
        let (spec, first, second) = (
            spec.to_field(),
            ports.index(0).to_field(),
            ports.index(1).to_field(),
        );
        assert!(
            first.is_within(&spec)
                && first.is_within(&first)
                && first.is_within(&FieldPath::default())
        );
        assert!(!spec.is_within(&first) && !first.is_within(&second));
    }

    #[test]
    fn a_path_reads_as_the_api_server_writes_it() {
        let spec = Path::ROOT.field("spec");
        let ingress = spec.field("ingress");
        let rule = ingress.index(0);
        assert_eq!(
            rule.field("ports").to_field().to_string(),
            "spec.ingress[0].ports"
        );
        let metadata = Path::ROOT.field("metadata");
        let labels = metadata.field("labels");
        assert_eq!(
            labels.key("a.b/c").to_field().to_string(),
            "metadata.labels[a.b/c]"
        );
        assert_eq!(Path::ROOT.to_field().to_string(), "");
    }

    #[test]
    fn strings_are_quoted_as_go_quotes_them() {
        for (value, quoted) in [
            ("web", r#""web""#),
            ("", r#""""#),
            ("a\"b\\c", r#""a\"b\\c""#),
            ("a\n\r\t\u{1}", r#""a\n\r\t\x01""#),
            ("\u{85}é", r#""\u0085é""#),
        ] {
            assert_eq!(quote(value), quoted);
        }
        assert_eq!(quote(&"x".repeat(10_000)).len(), MAX_QUOTED + 5);
    }

    #[test]
    fn faults_past_the_limit_are_counted() {
        let mut faults = Faults::default();
        for _ in 0..MAX_FAULTS + 3 {
            faults.required(Path::ROOT, "");
        }
        assert_eq!((faults.list.len(), faults.omitted), (MAX_FAULTS, 3));
    }
}
