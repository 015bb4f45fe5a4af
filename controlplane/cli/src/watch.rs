//! `sallyport get --watch`: what is there, then every change as it is committed. Never reconnects.

use std::{collections::BTreeSet, io};

use sallyport_proto::wire::{Kind, Object, ObjectRef, watch_event::Event};
use serde_json::json;

use crate::{
    args::{self, Form},
    client::Client,
    columns::View,
    failure::Failure,
    get, kind,
    output::{self, Grid},
};

/// Watches one kind in one namespace, or in all when it is empty.
pub(crate) async fn run(
    args: &args::Get,
    namespace: &str,
    client: &mut Client,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let kind = args.kind.kind()?;
    let namespace = if kind::is_namespaced(kind) {
        namespace
    } else {
        ""
    };
    let listing = client.list(kind, namespace).await?;
    let mut watch = client.watch(listing.revision).await?;
    let mut screen = Screen::new(kind, args.output, get::view(args));
    for object in &listing.objects {
        screen.put(object);
    }
    write!(out, "{}", screen.first())?;
    out.flush()?;

    let wanted = |reference: &ObjectRef| {
        reference.kind() == kind && (namespace.is_empty() || reference.namespace == namespace)
    };
    while let Some(transaction) = watch.next().await? {
        for event in transaction.events {
            match event.event {
                Some(Event::Put(object)) if object.r#ref.as_ref().is_some_and(wanted) => {
                    screen.put(&object);
                }
                Some(Event::Delete(reference)) if wanted(&reference) => screen.delete(&reference),
                _ => {}
            }
        }
        write!(out, "{}", screen.next())?;
        out.flush()?;
    }
    Err(Failure::Refused(
        "the control plane ended the watch".to_owned(),
    ))
}

/// The pending output, and the state that the next lines depend on.
struct Screen {
    kind: Kind,
    form: Form,
    view: View,
    grid: Grid,
    pending: String,
    known: BTreeSet<String>,
}

impl Screen {
    fn new(kind: Kind, form: Form, view: View) -> Screen {
        let mut header = vec!["EVENT"];
        header.extend(view.header(kind));
        let mut grid = Grid::new(header);
        grid.leave_room_for("configured");
        Screen {
            kind,
            form,
            view,
            grid,
            pending: String::new(),
            known: BTreeSet::new(),
        }
    }

    fn put(&mut self, object: &Object) {
        let path = get::name(object);
        let event = match self.known.insert(path.clone()) {
            true => "created",
            false => "configured",
        };
        match self.form {
            Form::Table | Form::Wide => {
                let mut row = vec![event.to_owned()];
                row.extend(self.view.row(object));
                self.grid.push(row);
            }
            _ => self.write(event, &path, Some(object)),
        }
    }

    fn delete(&mut self, reference: &ObjectRef) {
        debug_assert_eq!(reference.kind(), self.kind);
        let path = kind::path(reference);
        self.known.remove(&path);
        match self.form {
            Form::Table | Form::Wide => {
                let mut row = vec!["deleted".to_owned()];
                row.extend(self.view.gone(reference));
                self.grid.push(row);
            }
            _ => self.write("deleted", &path, None),
        }
    }

    fn write(&mut self, event: &str, path: &str, object: Option<&Object>) {
        let manifest = object.map(get::manifest);
        let value = json!({"event": event, "object": path, "manifest": manifest});
        self.pending += &match self.form {
            Form::Name => format!("{event} {path}\n"),
            Form::Yaml => format!("---\n{}", output::structured(&value, Form::Yaml)),
            // One a line, for programs that read line by line.
            _ => format!("{value}\n"),
        };
    }

    /// The objects at the start of the watch, under the header.
    fn first(&mut self) -> String {
        if matches!(self.form, Form::Table | Form::Wide) {
            return self.grid.drain(true);
        }
        std::mem::take(&mut self.pending)
    }

    /// The changes since the last output.
    fn next(&mut self) -> String {
        match self.grid.is_empty() {
            true => std::mem::take(&mut self.pending),
            false => self.grid.drain(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reference(name: &str) -> ObjectRef {
        ObjectRef {
            kind: Kind::Namespace.into(),
            namespace: String::new(),
            name: name.to_owned(),
        }
    }

    fn namespace(name: &str, team: &str) -> Object {
        let manifest = json!({"metadata": {"labels": {"team": team}}});
        Object {
            r#ref: Some(reference(name)),
            manifest: manifest.to_string(),
            revision: 1,
        }
    }

    fn story(form: Form) -> String {
        let mut screen = Screen::new(Kind::Namespace, form, View::default());
        screen.put(&namespace("production", "payments"));
        let mut text = screen.first();
        assert_eq!(screen.next(), "", "a bookmark prints nothing");
        screen.put(&namespace("production", "x"));
        text += &screen.next();
        screen.put(&namespace("test", "x"));
        screen.delete(&reference("production"));
        text + &screen.next()
    }

    #[test]
    fn rows_stay_in_their_columns() {
        assert_eq!(
            story(Form::Table),
            "EVENT       NAME        LABELS\n\
             created     production  team=payments\n\
             configured  production  team=x\n\
             created     test        team=x\n\
             deleted     production\n"
        );
    }

    #[test]
    fn programs_get_a_line_an_event() {
        assert_eq!(
            story(Form::Name),
            "created namespace/production\n\
             configured namespace/production\n\
             created namespace/test\n\
             deleted namespace/production\n"
        );
        let last = story(Form::Json).lines().last().map(str::to_owned);
        let expected = r#"{"event":"deleted","manifest":null,"object":"namespace/production"}"#;
        assert_eq!(last.as_deref(), Some(expected));
    }
}
