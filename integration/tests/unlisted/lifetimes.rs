//! The table of family bridge through the life of a node: a lease that runs out, an enforcer that dies, others who take the table
//! away, policies that come and go.

use std::{thread, time::Duration};

use sallyport_integration::{
    deployment::{Deployment, delete, put},
    frames::{Kind, Party},
    kernel_tests::Outcome,
};

use crate::{bed, expect, table::SETUPS};

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
                | Kind::Solicitation
                | Kind::SolicitationLinkLocal
                | Kind::AdvertisesOwn
                | Kind::AdvertisesAnother
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
    Ok(())
}

/// The table outlives its enforcer. Who takes it away then is undone by the next one.
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
    // The kernel takes the owner off a moment after it died.
    for _ in 0..100 {
        if deployment.nft(0, &["delete", "table", "bridge", "sallyport"])? {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err("the table cannot be taken away".into())
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
    let addresses = crate::addresses(2);
    let host = bed.deployment.bed.add_pod(0, "client", &addresses)?;
    let (mac, router) = bed.deployment.bed.macs_of("client")?;
    bed.parties.insert("client", Party::new(host, mac, router));
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
