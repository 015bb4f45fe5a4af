//! Every plan, on a kernel that shows packets every mix that a real one can: nothing passes that both versions deny,
//! nothing is dropped that both allow. And mistakes of a planner are found within a few cases.

mod policies;
mod world;

use policies::{random_edit, random_options, random_policy};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use world::{Checked, World};

/// How many random cases each law is tried on.
const CASES: u64 = 150;

fn world(rng: &mut StdRng, seed: u64) -> World {
    let (policy, options) = (random_policy(rng), random_options(rng));
    let batch = [4_000, 12_000, 1 << 20][rng.random_range(0..3)];
    World::new(policy, options, batch, seed)
        .unwrap_or_else(|violation| panic!("seed {seed}: {violation}"))
}

/// Runs a law on every seed.
fn for_all(law: impl Fn(&mut StdRng, &mut World) -> Checked) {
    for seed in 0..CASES {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = world(&mut rng, seed);
        if let Err(violation) = law(&mut rng, &mut world) {
            panic!("seed {seed}: {violation}");
        }
    }
}

#[test]
fn updates_open_nothing_and_break_nothing() {
    for_all(|rng, world| {
        let plan = world.plan(&random_edit(rng, &world.installed.policy));
        world.carry_out(&plan, 0..plan.steps.len())?;
        world.done(plan);
        world.settle()?;
        world.clean()?;
        world.settle()
    });
}
#[test]
fn debug74() {
    let seed = std::env::var("SEED").unwrap().parse().unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = world(&mut rng, seed);
    let new = random_edit(&mut rng, &world.installed.policy);
    let plan = world.plan(&new);
    println!("gen {} {:?}", world.kernel.generation(), world.options);
    for (n, step) in plan.steps.iter().enumerate() {
        println!("--- {n} grace {}", step.grace);
        for c in &step.commands {
            println!("{c:.140}");
        }
    }
    let r = world
        .carry_out(&plan, 0..plan.steps.len())
        .and_then(|()| world.check());
    if let Err(e) = r {
        println!("{e}");
    }
}
