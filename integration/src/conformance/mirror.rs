//! A copy of the control plane's cluster, so that the compiler can be asked about it. Sends nothing.

use sallyport_controlplane::{cluster::Cluster, manifest};
use sallyport_policy::Revision;
use sallyport_proto::{
    object::Kind,
    wire::{self, Edit},
};

/// Whether an edit puts what is there already.
pub(super) fn is_done(cluster: &Cluster, edit: &Edit) -> bool {
    let Some(wire::edit::Op::Put(text)) = &edit.op else {
        return false;
    };
    // The control plane has to refuse a text that cannot be read.
    manifest::parse(&text.text, &text.source).is_ok_and(|objects| {
        objects.iter().all(|object| {
            let stored = cluster.get(&object.key);
            stored.is_some_and(|stored| stored.object == *object)
        })
    })
}

/// Applies an edit to the mirror of the control plane's cluster.
pub(super) fn apply(cluster: &mut Cluster, edit: &Edit, revision: u64) {
    const ACCEPTED: &str = "the control plane read it";
    match &edit.op {
        Some(wire::edit::Op::Put(text)) => {
            for object in manifest::parse(&text.text, &text.source).expect(ACCEPTED) {
                cluster.put(object, Revision(revision));
            }
        }
        Some(wire::edit::Op::DeleteManifest(text)) => {
            for key in manifest::parse_keys(&text.text, &text.source).expect(ACCEPTED) {
                if key.kind == Kind::Namespace {
                    let within = cluster.within(&key.name);
                    let keys: Vec<_> = within.map(|stored| stored.object.key.clone()).collect();
                    keys.iter().for_each(|key| drop(cluster.remove(key)));
                }
                cluster.remove(&key);
            }
        }
        _ => unreachable!("a world puts and deletes manifests only"),
    }
}
