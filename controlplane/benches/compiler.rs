//! The cost of compiling an edit by the size of the cluster and by the number of pods that the edit concerns.

use std::fmt::Write as _;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use sallyport_controlplane::{cluster::Cluster, compile::Compiler, manifest, model::Object};
use sallyport_policy::Revision;

const NODES: usize = 10;

fn objects(text: &str) -> Vec<Object> {
    manifest::parse(text, "bench.yaml").expect("the manifests are valid")
}

/// One namespace for `team` pods each. In each the pods may reach each other at TCP 80.
fn cluster(pods: usize, team: usize) -> Cluster {
    let mut text = String::new();
    for node in 0..NODES {
        write!(
            text,
            "---\napiVersion: sallyport.dev/v1\nkind: Node\nmetadata: {{name: node-{node}}}\n"
        )
        .expect("memory takes it");
    }
    for pod in 0..pods {
        let namespace = pod / team;
        if pod % team == 0 {
            write!(
                text,
                "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: team-{namespace}}}\n{}",
                policy(namespace, 80)
            )
            .expect("memory takes it");
        }
        let (node, high, low) = (pod % NODES, pod >> 8, pod & 0xff);
        write!(
            text,
            "---\napiVersion: sallyport.dev/v1\nkind: Workload\n\
             metadata: {{namespace: team-{namespace}, name: pod-{pod}}}\n\
             spec: {{node: node-{node}, addresses: [10.1.{high}.{low}]}}\n"
        )
        .expect("memory takes it");
    }
    let mut cluster = Cluster::default();
    for object in objects(&text) {
        cluster.put(object, Revision(1));
    }
    cluster
}

fn policy(namespace: usize, port: u16) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{namespace: team-{namespace}, name: own}}\n\
         spec: {{podSelector: {{}}, ingress: [{{from: [{{podSelector: {{}}}}], ports: [{{port: {port}}}]}}]}}\n"
    )
}

fn update(criterion: &mut Criterion) {
    let mut benchmarks = criterion.benchmark_group("Compiler::update");
    for (pods, team) in [
        (100, 10),
        (100, 100),
        (10_000, 10),
        (10_000, 1_000),
        (10_000, 10_000),
    ] {
        let cluster = cluster(pods, team);
        let mut compiler = Compiler::new(&cluster);
        // Each edit moves the policy of one namespace to the other port.
        let states = [81, 80].map(|port| {
            let mut state = cluster.clone();
            let edited = objects(&policy(0, port)).remove(0);
            let key = edited.key.clone();
            state.put(edited, Revision(2));
            (state, [key])
        });
        let mut states = states.iter().cycle();
        let id = BenchmarkId::new(format!("{pods} pods"), format!("{team} concerned"));
        benchmarks.bench_function(id, |bencher| {
            bencher.iter(|| {
                let (state, changed) = states.next().expect("the circle has no end");
                compiler.update(state, changed)
            });
        });
    }
    benchmarks.finish();
}

criterion_group!(benches, update);
criterion_main!(benches);
