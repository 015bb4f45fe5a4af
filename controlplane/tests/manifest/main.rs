//! The reader of manifests as its users meet it: texts in, objects or problems out. What is shared by the tables; the
//! cases are in the modules.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of tests fails the test that calls it"
)]

mod dumps;
mod laws;
mod lists;
mod metadata;
mod nodes;
mod policy_meaning;
mod policy_rules;
mod text;
mod workloads;

use std::net::IpAddr;

use sallyport_controlplane::{
    manifest::{self, Problem},
    model::Object,
};

/// The objects of a text that is right; each must survive its own replay.
fn accepted(text: &str) -> Vec<Object> {
    let objects = manifest::parse(text, "m.yaml")
        .unwrap_or_else(|problems| panic!("{text}\n{}", shown(problems).join("\n")));
    for object in &objects {
        assert_eq!(
            manifest::object_from_json(&object.manifest).as_ref(),
            Ok(object)
        );
    }
    objects
}

/// The object of a text that has one.
fn one(text: &str) -> Object {
    let mut objects = accepted(text);
    assert_eq!(objects.len(), 1, "{text}");
    objects.remove(0)
}

/// The problems in a text, as a person reads them.
fn problems_in(text: &str) -> Vec<String> {
    shown(manifest::parse(text, "m.yaml").expect_err(text))
}

/// The problems in a text with one object, without the object and its place.
fn field_problems(text: &str) -> Vec<String> {
    let problems = manifest::parse(text, "").expect_err(text);
    let bare = |problem| Problem {
        document: 0,
        object: None,
        ..problem
    };
    shown(problems.into_iter().map(bare).collect())
}

fn shown(problems: Vec<Problem>) -> Vec<String> {
    problems.iter().map(ToString::to_string).collect()
}

fn keys(objects: &[Object]) -> Vec<String> {
    objects
        .iter()
        .map(|object| object.key.to_string())
        .collect()
}

/// A NetworkPolicy `default/web` with a spec.
fn policy(spec: &str) -> String {
    let spec = spec.replace('\n', "\n  ");
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web}}\nspec:\n  {spec}\n"
    )
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// The remedy for kinds that are none of ours.
const REMEDY: &str = "; --ignore-unknown-kinds leaves other kinds out";

/// The API server's words for a name.
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
/// The API server's words for a name.
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
                         and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
                         validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";

/// The types that an unknown one is told of.
const SUPPORTED: &str = "supported are networking.k8s.io/v1 NetworkPolicy, v1 Namespace, v1 Node, v1 Pod, \
                         sallyport.dev/v1 Node, sallyport.dev/v1 Workload, and lists of these";
