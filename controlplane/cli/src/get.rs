//! `sallyport get`: which objects, in which form. The columns, the forms and the watch are elsewhere.

use std::io;

use sallyport_proto::{
    object::{self, DEFAULT_NAMESPACE},
    wire::{Kind, Object},
};
use serde_json::Value;

use crate::{
    args::{self, Form},
    client::{Client, Listing},
    columns::View,
    failure::Failure,
    kind,
    output::{self, Grid},
    watch,
};

/// The most tries of a listing, because another transaction may come between two kinds.
const ATTEMPTS: u32 = 5;

/// Runs the command.
pub(crate) async fn run(
    args: &args::Get,
    server: &args::Server,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let namespace = args.scope.namespace.as_deref();
    if args.watch {
        args.kind.kind()?;
    }
    if args.kind.name.is_none() && args.names.is_empty() {
        let namespace = match args.all_namespaces {
            true => "",
            false => namespace.unwrap_or(DEFAULT_NAMESPACE),
        };
        if !namespace.is_empty() || args.scope.namespace.is_some() {
            kind::can_be(object::Kind::Namespace, namespace)?;
        }
        let mut client = Client::connect(server).await?;
        if args.watch {
            return watch::run(args, namespace, &mut client, out).await;
        }
        let listings = list(&mut client, &args.kind.kinds, namespace).await?;
        return show(listings, args, namespace, out);
    }

    if args.all_namespaces || args.watch {
        let text = "--all-namespaces and --watch are for kinds, not for objects by name";
        return Err(Failure::Usage(text.to_owned()));
    }
    let kind = args.kind.kind()?;
    let references = args.kind.references(&args.names, namespace)?;
    let mut client = Client::connect(server).await?;
    let mut objects = Vec::new();
    for reference in references {
        objects.push(client.get(reference).await?);
    }
    match (&objects[..], args.output) {
        ([object], form @ (Form::Json | Form::Yaml)) => {
            write!(out, "{}", output::structured(&manifest(object), form))?;
            Ok(())
        }
        _ => {
            let revision = 0;
            show(vec![(kind, Listing { objects, revision })], args, "", out)
        }
    }
}

/// The objects of several kinds, at one revision if the cluster is calm enough.
async fn list(
    client: &mut Client,
    kinds: &[Kind],
    namespace: &str,
) -> Result<Vec<(Kind, Listing)>, Failure> {
    let mut listings = Vec::new();
    for _ in 0..ATTEMPTS {
        listings.clear();
        for &kind in kinds {
            let namespace = if kind::is_namespaced(kind) {
                namespace
            } else {
                ""
            };
            listings.push((kind, client.list(kind, namespace).await?));
        }
        let mut revisions = listings.iter().map(|(_, listing)| listing.revision);
        let first = revisions.next();
        if revisions.all(|revision| Some(revision) == first) {
            return Ok(listings);
        }
    }
    output::remark(
        "warning: the cluster is changing: the kinds shown are from different revisions",
    );
    Ok(listings)
}

fn show(
    listings: Vec<(Kind, Listing)>,
    args: &args::Get,
    namespace: &str,
    out: &mut dyn io::Write,
) -> Result<(), Failure> {
    let objects = listings.iter().flat_map(|(_, listing)| &listing.objects);
    match args.output {
        form @ (Form::Json | Form::Yaml) => {
            let list = output::list(objects.map(manifest).collect());
            write!(out, "{}", output::structured(&list, form))?;
        }
        Form::Name => {
            for object in objects {
                writeln!(out, "{}", name(object))?;
            }
        }
        Form::Table | Form::Wide => {
            let view = view(args);
            let filled = listings
                .iter()
                .filter(|(_, listing)| !listing.objects.is_empty());
            let tables = filled.map(|(kind, listing)| {
                let mut grid = Grid::new(view.header(*kind));
                listing
                    .objects
                    .iter()
                    .for_each(|object| grid.push(view.row(object)));
                grid.render()
            });
            let tables: Vec<_> = tables.collect();
            if tables.is_empty() {
                let namespaced = args
                    .kind
                    .kinds
                    .iter()
                    .any(|&kind| kind::is_namespaced(kind));
                match namespaced && !namespace.is_empty() {
                    true => output::remark(&format!("No objects found in namespace {namespace}.")),
                    false => output::remark("No objects found."),
                }
            }
            write!(out, "{}", tables.join("\n"))?;
        }
    }
    Ok(())
}

/// The columns that the arguments ask for.
pub(crate) fn view(args: &args::Get) -> View {
    View {
        wide: args.output == Form::Wide,
        namespaces: args.all_namespaces,
        kinds: args.kind.kinds.len() > 1,
    }
}

/// `KIND/NAMESPACE/NAME`
pub(crate) fn name(object: &Object) -> String {
    kind::path(&object.r#ref.clone().unwrap_or_default())
}

/// The stored manifest; what is not JSON as the string that it is.
pub(crate) fn manifest(object: &Object) -> Value {
    serde_json::from_str(&object.manifest).unwrap_or_else(|_| Value::from(object.manifest.clone()))
}
