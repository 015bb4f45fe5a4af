//! The cost of the plan of an update by the size of the policy and by the size of the change.

#[path = "../../proto/policy/benches/shared/policies.rs"]
mod policies;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use policies::{MEMBERS, address, group, policy};
use sallyport_enforcer::{
    plan::{self, Installed, Limits},
    table::render::Options,
};
use sallyport_policy::{Epoch, NodePolicy, Position, Revision, UnknownAddresses, Window};

const LIMITS: Limits = Limits { batch: 1 << 20 };

fn updated(old: &Installed, policy: &NodePolicy, revision: u64) -> Installed {
    let position = Position {
        epoch: Epoch(1),
        revision: Revision(revision),
        digest: policy.digest(),
    };
    old.updated(
        Window::alone(position, policy.clone()),
        &UnknownAddresses::drop(),
    )
}

fn update(criterion: &mut Criterion) {
    let options = Options::default();
    let mut benchmarks = criterion.benchmark_group("plan::update");
    for (endpoints, changed) in [(10, 1), (10, 10), (1_000, 1), (1_000, 10), (1_000, 1_000)] {
        let mut policy = policy(endpoints, 0);
        let old = updated(&Installed::default(), &policy, 1);
        for number in 0..changed {
            let first = number * 2 * MEMBERS;
            policy.remove_address(group(number).0, address(11, first));
            policy.add_address(group(number).0, address(11, first + MEMBERS));
        }
        let new = updated(&old, &policy, 2);
        let id = BenchmarkId::new(
            format!("{endpoints} endpoints"),
            format!("{changed} changed"),
        );
        benchmarks.bench_function(id, |bencher| {
            bencher.iter(|| plan::update(black_box(&old), black_box(&new), &options, LIMITS));
        });
    }
    benchmarks.finish();
}

criterion_group!(benches, update);
criterion_main!(benches);
