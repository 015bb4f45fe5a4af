//! The problems of a text, reported to the person who wrote it. Finds no problem itself.

use std::fmt;

use super::{MAX_PROBLEMS, UnknownKinds, tree::Tree};
use sallyport_proto::object::ObjectKey;

use crate::validate::Fault;

/// One thing that is wrong with a text, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The name of the text, such as a file's. Empty where there is none.
    pub source: String,
    /// The number of the document in the text, from 1; 0 for the whole text.
    pub document: usize,
    /// The object, when it is known: `NetworkPolicy default/web`.
    pub object: Option<String>,
    /// The field: `spec.ingress[0].ports[0].port`.
    pub field: Option<String>,
    /// The line, from 1, when it is known.
    pub line: Option<u32>,
    /// The column, from 1, when it is known.
    pub column: Option<u32>,
    /// The problem, in the API server's words.
    pub message: String,
}

impl Problem {
    /// A problem of a text as a whole.
    pub(crate) fn of_text(message: String) -> Problem {
        Problem {
            source: String::new(),
            document: 0,
            object: None,
            field: None,
            line: None,
            column: None,
            message,
        }
    }

    /// A problem of an object that comes from no file.
    pub(crate) fn of_object(key: &ObjectKey, fault: &Fault) -> Problem {
        Problem {
            object: Some(key.to_string()),
            field: Some(fault.field.to_string()).filter(|field| !field.is_empty()),
            ..Problem::of_text(fault.message.clone())
        }
    }
}

impl std::error::Error for Problem {}

impl fmt::Display for Problem {
    /// `policy.yaml:14:7: document 2: NetworkPolicy default/web: spec.policyTypes[0]: Unsupported value: ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if let (false, Some(line), Some(column)) = (self.source.is_empty(), self.line, self.column)
        {
            write!(f, ":{line}:{column}")?;
        }
        if !self.source.is_empty() {
            f.write_str(": ")?;
        }
        if self.document > 0 {
            write!(f, "document {}: ", self.document)?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field
            // `unknown field "spec.ingres"` has said it.
            && !self.message.ends_with(&format!("field \"{field}\""))
        {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}

/// The location of a problem: the document and the object.
pub(super) struct Location<'a> {
    pub(super) document: usize,
    pub(super) object: Option<&'a str>,
    /// The tree that has the positions of the fields.
    pub(super) tree: Option<&'a Tree>,
}

/// The problems of one text, as they are found.
pub(super) struct Report {
    source: String,
    problems: Vec<Problem>,
    omitted: usize,
    unknown_kinds: UnknownKinds,
    ignored: Vec<String>,
}

impl Report {
    pub(super) fn new(source: &str, unknown_kinds: UnknownKinds) -> Report {
        Report {
            source: source.to_owned(),
            problems: Vec::new(),
            omitted: 0,
            unknown_kinds,
            ignored: Vec::new(),
        }
    }

    /// An empty report of the same text.
    pub(super) fn fresh(&self) -> Report {
        Report::new(&self.source, self.unknown_kinds)
    }

    /// Whether nothing has been found so far.
    pub(super) fn is_empty(&self) -> bool {
        self.problems.is_empty()
    }

    /// Something is wrong with a document's text.
    pub(super) fn text(&mut self, document: usize, position: Option<(u32, u32)>, message: String) {
        self.push(Problem {
            document,
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            ..Problem::of_text(message)
        });
    }

    /// Something is wrong with an object.
    pub(super) fn fault(&mut self, location: &Location<'_>, fault: Fault) {
        let position = location
            .tree
            .and_then(|tree| tree.position_of(&fault.field));
        self.push(Problem {
            document: location.document,
            object: location.object.map(str::to_owned),
            field: Some(fault.field.to_string()).filter(|field| !field.is_empty()),
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            ..Problem::of_text(fault.message)
        });
    }

    /// Whether objects of unknown kinds are left out.
    pub(super) fn ignores_unknown_kinds(&self) -> bool {
        self.unknown_kinds == UnknownKinds::Ignore
    }

    /// Takes note of an object that is left out.
    pub(super) fn ignore(&mut self, location: &Location<'_>, what: String) {
        let position = location.tree.and_then(|tree| tree.position);
        let problem = Problem {
            source: self.source.clone(),
            document: location.document,
            line: position.map(|(line, _)| line),
            column: position.map(|(_, column)| column),
            ..Problem::of_text(what)
        };
        self.ignored.push(problem.to_string());
    }

    /// The objects that were left out.
    pub(super) fn take_ignored(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ignored)
    }

    /// More is wrong with an object than was written down.
    pub(super) fn omitted(&mut self, count: usize) {
        self.omitted += count;
    }

    fn push(&mut self, mut problem: Problem) {
        if self.problems.len() < MAX_PROBLEMS {
            problem.source.clone_from(&self.source);
            self.problems.push(problem);
        } else {
            self.omitted += 1;
        }
    }

    /// The result of it all.
    pub(super) fn finish<T>(mut self, result: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() {
            return Ok(result);
        }
        // The texts that cannot be read at all were found before the problems of the rest.
        self.problems.sort_by_key(|problem| problem.document);
        if self.omitted > 0 {
            self.problems.push(Problem {
                source: self.source,
                ..Problem::of_text(format!("{} more problems are not shown", self.omitted))
            });
        }
        Err(self.problems)
    }
}
