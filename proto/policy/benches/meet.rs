//! The cost of a meet by the size of the policy and by the size of the change.

#[path = "shared/policies.rs"]
mod policies;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policies::policy;
use sallyport_policy::UnknownAddresses;

fn meet(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("meet");
    for (endpoints, changed) in [(10, 1), (10, 10), (1_000, 1), (1_000, 10), (1_000, 1_000)] {
        let old = policy(endpoints, 0);
        // A version shares with the one before it all that did not change.
        let mut new = old.clone();
        let made = policy(endpoints, changed);
        for (id, peers) in made.groups() {
            if old.groups().get(id) != Some(peers) {
                new.set_group(*id, peers.clone());
            }
        }
        let id = BenchmarkId::new(
            format!("{endpoints} endpoints"),
            format!("{changed} changed"),
        );
        group.bench_function(id, |bencher| {
            bencher.iter(|| black_box(&old).meet(black_box(&new), &UnknownAddresses::drop()));
        });
    }
    group.finish();
}

criterion_group!(benches, meet);
criterion_main!(benches);
