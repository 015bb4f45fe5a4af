//! Tests of the guard of workloads' interfaces through the life of a node: a lease that expires, an enforcer that dies,
//! other processes that delete the table, policies that come and go.

use std::{thread, time::Duration};

use sallyport_integration::deployment::{Deployment, delete, put};
use sallyport_testbed::{
    frames::{Kind, Party},
    kernel_tests::Outcome,
};

use crate::{Bed, bed, expect, table::SETUPS};

/// Frames and packets that no policy judges, of each sort.
const UNJUDGED: [Kind; 6] = [
    Kind::Stranger4,
    Kind::LinkLocal,
    Kind::RouterAdvertisement,
    Kind::Multicast4,
    Kind::PriorityTag,
    Kind::StackedTags,
];

/// On a node whose lease ran out nothing passes from port to port but what keeps the link working.
pub(crate) fn closed_by_a_lease() -> Outcome {
    let works = |kind: &Kind| {
        matches!(
            kind,
            Kind::ArpOwn
                | Kind::ArpAnother
                | Kind::ArpStranger
                | Kind::Solicitation
                | Kind::SolicitationLinkLocal
                | Kind::AdvertisesOwn
                | Kind::AdvertisesAnother
                | Kind::AdvertisesStranger
                | Kind::AdvertisesLinkLocal
        )
    };
    for setup in [SETUPS[2], SETUPS[4]] {
        let mut bed = bed(setup, &["--lease", "1s"])?;
        let ends = ["client", "server"];
        expect(
            "with a lease",
            &bed,
            setup,
            ends,
            &[Kind::Own4, Kind::Own6],
            true,
        )?;
        bed.deployment.kill_control_plane();
        thread::sleep(Duration::from_secs(2));
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(|kind| !works(kind)).collect();
        expect("without one", &bed, setup, ends, &kinds, false)?;
    }
    let setup = SETUPS[0];
    let mut bed = bed(setup, &["--lease", "1s"])?;
    let ends = ["client", "server"];
    expect("with a lease", &bed, setup, ends, &OWN, true)?;
    bed.deployment.kill_control_plane();
    thread::sleep(Duration::from_secs(2));
    expect("without one", &bed, setup, ends, &OWN, false)?;
    expect("without one", &bed, setup, ends, &FORGED, false)
}

/// The workload's own addresses.
const OWN: [Kind; 2] = [Kind::Own4, Kind::Own6];

/// Sources that are not the workload's.
const FORGED: [Kind; 4] = [
    Kind::Stranger4,
    Kind::Stranger6,
    Kind::Another4,
    Kind::Another6,
];

/// Routed, the table that outlives its enforcer knows the interfaces of workloads. Without it forged sources arrive.
pub(crate) fn routed_outlives_its_enforcer() -> Outcome {
    let setup = SETUPS[0];
    let mut bed = bed(setup, &[])?;
    let ends = ["client", "server"];
    bed.deployment.kill_enforcer(0);
    expect("killed", &bed, setup, ends, &FORGED, false)?;
    bed.deployment.start_enforcer(0)?;
    expect("started again", &bed, setup, ends, &FORGED, false)?;
    expect("started again", &bed, setup, ends, &OWN, true)?;
    bed.deployment.kill_enforcer(0);
    delete_table(&bed.deployment, "inet")?;
    expect("taken away", &bed, setup, ends, &FORGED, true)
}

/// Routed, a pod that is plugged in later is guarded once the enforcer hears of it: within a second here.
pub(crate) fn a_routed_port_that_comes_later() -> Outcome {
    let setup = SETUPS[0];
    let mut bed = bed(setup, &[])?;
    let ends = ["client", "server"];
    expect("the first", &bed, setup, ends, &FORGED, false)?;
    bed.deployment.bed.remove("client")?;
    plug_again(&mut bed)?;
    thread::sleep(Duration::from_secs(1));
    expect("the second", &bed, setup, ends, &FORGED, false)?;
    expect("the second", &bed, setup, ends, &OWN, true)
}

/// Routed, in standard mode, a workload is guarded from the moment that a policy which selects it counts as enforced.
pub(crate) fn routed_guarded_once_it_is_selected() -> Outcome {
    let setup = SETUPS[1];
    let bed = bed(setup, &[])?;
    let ends = ["free-2", "free-1"];
    let kinds = [Kind::Stranger4, Kind::Stranger6];
    let mut api = bed.deployment.client()?;
    for _ in 0..3 {
        expect("not selected", &bed, setup, ends, &kinds, true)?;
        api.enforce(vec![put(SELECTS)])?;
        expect("selected", &bed, setup, ends, &kinds, false)?;
        api.enforce(vec![delete(SELECTS)])?;
    }
    Ok(())
}

/// The table outlives its enforcer. The next enforcer makes it again if another process deleted it.
pub(crate) fn outlives_its_enforcer() -> Outcome {
    for setup in [SETUPS[2], SETUPS[4]] {
        let mut bed = bed(setup, &[])?;
        let ends = ["client", "server"];
        bed.deployment.kill_enforcer(0);
        expect("killed", &bed, setup, ends, &UNJUDGED, false)?;
        flush(&bed.deployment)?;
        // The control: it is this table that keeps them out.
        let leak = [Kind::LinkLocal, Kind::PriorityTag, Kind::StackedTags];
        expect("taken away", &bed, setup, ends, &leak, true)?;
        bed.deployment.start_enforcer(0)?;
        expect("started again", &bed, setup, ends, &UNJUDGED, false)?;
        expect(
            "started again",
            &bed,
            setup,
            ends,
            &[Kind::Own4, Kind::Own6],
            true,
        )?;
    }
    Ok(())
}

fn flush(deployment: &Deployment) -> Outcome {
    delete_table(deployment, "bridge")
}

fn delete_table(deployment: &Deployment, family: &str) -> Outcome {
    // The kernel removes the owner a moment after its death.
    for _ in 0..100 {
        if deployment.nft(0, &["delete", "table", family, "sallyport"])? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err("the table cannot be deleted".into())
}

const SELECTS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: selects}
spec:
  podSelector: {matchLabels: {app: free-2}}
  ingress: [{from: [{podSelector: {}}]}]
";

/// In standard mode a workload is guarded from the moment that a policy which selects it counts as enforced.
pub(crate) fn guarded_once_it_is_selected() -> Outcome {
    let setup = SETUPS[3];
    let bed = bed(setup, &[])?;
    let ends = ["free-1", "free-2"];
    let kinds = [Kind::LinkLocal, Kind::Multicast4, Kind::PriorityTag];
    let mut api = bed.deployment.client()?;
    for _ in 0..3 {
        expect("not selected", &bed, setup, ends, &kinds, true)?;
        api.enforce(vec![put(SELECTS)])?;
        expect("selected", &bed, setup, ends, &kinds, false)?;
        expect("selected", &bed, setup, ends, &[Kind::Own4], true)?;
        api.enforce(vec![delete(SELECTS)])?;
    }
    Ok(())
}

/// A pod that is plugged in later is guarded from its first frame on, also while nobody runs who could hear of it.
pub(crate) fn a_port_that_comes_later() -> Outcome {
    let setup = SETUPS[4];
    let mut bed = bed(setup, &[])?;
    bed.deployment.kill_enforcer(0);
    bed.deployment.bed.remove("client")?;
    plug_again(&mut bed)?;
    let ends = ["client", "server"];
    expect("a new port", &bed, setup, ends, &UNJUDGED, false)?;
    expect(
        "a new port",
        &bed,
        setup,
        ends,
        &[Kind::Own4, Kind::Own6],
        true,
    )
}

/// Plugs in the pod that was unplugged.
fn plug_again(bed: &mut Bed) -> Outcome {
    let addresses = crate::addresses(2);
    let host = bed.deployment.bed.add_pod(0, "client", &addresses)?;
    let (mac, router) = bed.deployment.bed.macs_of("client")?;
    bed.parties.insert("client", Party::new(host, mac, router));
    Ok(())
}
