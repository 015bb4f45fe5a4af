//! Requests to the API, as bytes on the wire: taken in, decided, compiled. The compiler's result, edit by edit, must be
//! the definition's result for the whole.
//!
//! An input that begins with a NUL is a request as it is. Any other is text: `@put`, `@delete` and `@ref KIND NS NAME`
//! begin an edit, `@commit` ends a transaction.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use sallyport_controlplane::{
    api, cluster::Cluster, compile, compile::Compiler, history::Event, transaction,
};
use sallyport_policy::Revision;
use sallyport_proto::wire::{ApplyRequest, Edit, Manifest, ObjectRef, edit::Op};

fuzz_target!(|data: &[u8]| {
    let requests = match data.split_first() {
        Some((0, bytes)) => vec![bytes.to_vec()],
        _ => match std::str::from_utf8(data) {
            Ok(text) => requests(text),
            Err(_) => return,
        },
    };
    let mut cluster = Cluster::default();
    let mut compiler = Compiler::new(&cluster);
    let mut revision = Revision(0);
    for bytes in requests {
        let Ok(request) = ApplyRequest::decode(&bytes[..]) else {
            continue;
        };
        let Ok(edits) = api::edits(request.edits) else {
            continue;
        };
        let Ok(outcome) = transaction::apply(&cluster, edits, revision.next()) else {
            continue;
        };
        let Some(committed) = outcome.committed else {
            continue;
        };
        revision = revision.next();
        cluster = outcome.cluster;
        transaction::consistent(&cluster).expect("what is accepted is consistent");
        let changed: Vec<_> = committed.events.iter().map(Event::key).cloned().collect();
        compiler.update(&cluster, &changed);
        let incremental: BTreeMap<_, _> = compiler
            .policies()
            .map(|(name, policy)| (name.to_owned(), policy.clone()))
            .collect();
        assert_eq!(incremental, compile::full(&cluster));
    }
});

/// The requests that a text stands for, encoded.
fn requests(text: &str) -> Vec<Vec<u8>> {
    let mut requests = Vec::new();
    let mut request = ApplyRequest::default();
    for part in text.split("\n@") {
        let (head, body) = part.split_once('\n').unwrap_or((part, ""));
        let manifest = || Manifest {
            text: body.to_owned(),
            source: "fuzz".to_owned(),
        };
        let op = match head.trim_start_matches('@').split(' ').collect::<Vec<_>>()[..] {
            ["commit"] => {
                requests.push(std::mem::take(&mut request).encode_to_vec());
                continue;
            }
            ["delete"] => Op::DeleteManifest(manifest()),
            ["ref", kind, namespace, name] => Op::Delete(ObjectRef {
                kind: kind.parse().unwrap_or(0),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Op::Put(manifest()),
        };
        request.edits.push(Edit { op: Some(op) });
    }
    requests.push(request.encode_to_vec());
    requests
}
