//! The kinds and names of objects as a command line spells them, kubectl's aliases included. Never asks the server.

use std::str::FromStr;

use sallyport_proto::{
    names,
    object::{self, DEFAULT_NAMESPACE},
    wire::{Kind, ObjectRef},
};

use crate::failure::Failure;

/// For the help of a KIND argument.
pub(crate) const HELP: &str =
    "namespace (ns), node (no), networkpolicy (netpol), pod (po) or workload (wl)";

/// The kind in the singular, lower case: how output refers to objects.
pub(crate) fn singular(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "object",
        Kind::Namespace => "namespace",
        Kind::Node => "node",
        Kind::NetworkPolicy => "networkpolicy",
        Kind::Pod => "pod",
        Kind::Workload => "workload",
    }
}

/// Whether objects of the kind live in a namespace.
pub(crate) fn is_namespaced(kind: Kind) -> bool {
    object::Kind::of_wire(kind).is_none_or(object::Kind::is_namespaced)
}

/// `networkpolicy/default/demo-policy`: what output prints and every command accepts.
pub(crate) fn path(reference: &ObjectRef) -> String {
    let kind = singular(reference.kind());
    match reference.namespace.as_str() {
        "" => format!("{kind}/{}", reference.name),
        namespace => format!("{kind}/{namespace}/{}", reference.name),
    }
}

fn parse(word: &str) -> Result<Kind, String> {
    match word.to_ascii_lowercase().as_str() {
        "ns" | "namespace" | "namespaces" => Ok(Kind::Namespace),
        "no" | "node" | "nodes" => Ok(Kind::Node),
        "netpol"
        | "netpols"
        | "networkpolicy"
        | "networkpolicies"
        | "networkpolicies.networking.k8s.io" => Ok(Kind::NetworkPolicy),
        "po" | "pod" | "pods" => Ok(Kind::Pod),
        "wl" | "workload" | "workloads" | "workloads.sallyport.dev" => Ok(Kind::Workload),
        _ => Err(format!("unknown kind `{word}`: use {HELP}")),
    }
}

/// A KIND argument: kinds (`ns`, `pods,workloads`, `all`), or one object (`po/web`, `po/prod/web`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) kinds: Vec<Kind>,
    /// The namespace, when the argument holds one.
    pub(crate) namespace: Option<String>,
    /// The name, when the argument holds one.
    pub(crate) name: Option<String>,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        if let Some((kind, path)) = text.split_once('/') {
            let kind = parse(kind)?;
            let (namespace, name) = match path.split_once('/') {
                Some((namespace, name)) if is_namespaced(kind) => (Some(namespace), name),
                Some(_) => return Err(format!("a {} has no namespace", singular(kind))),
                None => (None, path),
            };
            if name.is_empty() || name.contains('/') || namespace == Some("") {
                return Err("write it as KIND/NAME or KIND/NAMESPACE/NAME".to_owned());
            }
            return Ok(Target {
                kinds: vec![kind],
                namespace: namespace.map(str::to_owned),
                name: Some(name.to_owned()),
            });
        }
        let kinds = match text {
            "all" => object::Kind::ALL.map(Kind::from).to_vec(),
            list => list.split(',').map(parse).collect::<Result<_, _>>()?,
        };
        Ok(Target {
            kinds,
            namespace: None,
            name: None,
        })
    }
}

impl Target {
    /// The one kind, for what cannot be done to several.
    pub(crate) fn kind(&self) -> Result<Kind, Failure> {
        match self.kinds[..] {
            [kind] => Ok(kind),
            _ => Err(Failure::Usage("name one kind, not several".to_owned())),
        }
    }

    /// The objects that the target and the names after it mean.
    pub(crate) fn references(
        &self,
        names: &[String],
        namespace: Option<&str>,
    ) -> Result<Vec<ObjectRef>, Failure> {
        let usage = |text: &str| Err(Failure::Usage(text.to_owned()));
        let kind = self.kind()?;
        let names = match (&self.name, names) {
            (Some(name), []) => std::slice::from_ref(name),
            (Some(_), [_, ..]) => return usage("after KIND/NAME no other name may follow"),
            (None, names) => names,
        };
        if names
            .iter()
            .any(|name| name.is_empty() || name.contains('/'))
        {
            return usage("a NAME is not empty and has no slash; KIND/NAME stands alone");
        }
        let namespace = match (self.namespace.as_deref(), namespace) {
            _ if !is_namespaced(kind) => "",
            (Some(own), Some(flag)) if own != flag => {
                return usage(&format!("namespace `{own}` contradicts --namespace {flag}"));
            }
            (Some(namespace), _) | (None, Some(namespace)) => namespace,
            (None, None) => DEFAULT_NAMESPACE,
        };
        if let Some(kind) = object::Kind::of_wire(kind) {
            names.iter().try_for_each(|name| can_be(kind, name))?;
        }
        if is_namespaced(kind) {
            can_be(object::Kind::Namespace, namespace)?;
        }
        let reference = |name: &String| ObjectRef {
            kind: kind.into(),
            namespace: namespace.to_owned(),
            name: name.clone(),
        };
        Ok(names.iter().map(reference).collect())
    }
}

/// Refuses a name that no object of the kind can have.
pub(crate) fn can_be(kind: object::Kind, name: &str) -> Result<(), Failure> {
    match names::object_name(kind, name).into_iter().next() {
        None => Ok(()),
        Some(rule) => Err(Failure::Usage(format!(
            "no {} can have the name `{name}`: {rule}",
            kind.as_str()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().expect(text)
    }

    #[test]
    fn kubectl_aliases() {
        for (kind, words) in [
            (
                Kind::NetworkPolicy,
                "netpol networkpolicy networkpolicies NetworkPolicy",
            ),
            (Kind::Namespace, "ns namespace namespaces"),
            (Kind::Node, "no node nodes"),
            (Kind::Pod, "po pod pods"),
            (Kind::Workload, "wl workload workloads"),
        ] {
            for word in words.split(' ') {
                assert_eq!(target(word).kinds, [kind], "{word}");
            }
        }
        assert_eq!(target("all").kinds, object::Kind::ALL.map(Kind::from));
        assert_eq!(target("po,wl").kinds, [Kind::Pod, Kind::Workload]);
        let error = "deployment".parse::<Target>().expect_err("no such kind");
        assert!(error.starts_with("unknown kind `deployment`: use namespace (ns)"));
    }

    #[test]
    fn a_printed_path_is_accepted_again() {
        for path in ["networkpolicy/prod/demo", "node/node-a", "namespace/prod"] {
            let references = target(path).references(&[], None).expect(path);
            assert_eq!(
                references.iter().map(super::path).collect::<Vec<_>>(),
                [path]
            );
        }
    }

    #[test]
    fn names_get_the_namespace_they_are_meant_in() {
        let paths = |text: &str, names: &[&str], namespace| {
            let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            let references = target(text).references(&names, namespace);
            references.map(|all| all.iter().map(path).collect::<Vec<_>>().join(" "))
        };
        let ok = |text, names: &[&str], namespace| paths(text, names, namespace).expect(text);
        assert_eq!(ok("po", &["a", "b"], None), "pod/default/a pod/default/b");
        assert_eq!(ok("po", &["a"], Some("prod")), "pod/prod/a");
        assert_eq!(ok("po/a", &[], Some("prod")), "pod/prod/a");
        assert_eq!(ok("po/prod/a", &[], Some("prod")), "pod/prod/a");
        assert_eq!(ok("ns", &["prod"], Some("x")), "namespace/prod");
        for (text, names, namespace) in [
            ("po/a", &["b"][..], None),
            ("po/prod/a", &[], Some("test")),
            ("po", &["a/b"], None),
            ("po,wl", &["a"], None),
            ("po", &["Web"], None),
            ("po", &["a"], Some("no_ns")),
            ("po/no_ns/a", &[], None),
            ("ns", &["a.b"], None),
            ("netpol", &["-a"], None),
        ] {
            let failure = paths(text, names, namespace).expect_err(text);
            assert!(matches!(failure, Failure::Usage(_)), "{text}: {failure}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        for text in ["po/", "po//a", "po/a/", "po/a/b/c", "ns/a/b", "all/a", ""] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
