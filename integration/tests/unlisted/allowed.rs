//! Sources that a Workload object allows beside the workload's own addresses, `spec.allowedSources`: they pass the
//! checks of sources, from that workload, and are judged by its policies in both directions.

use std::collections::BTreeSet;

use sallyport_integration::deployment::{delete, put};
use sallyport_testbed::{frames::Kind, kernel_tests::Outcome};

use crate::{
    Bed, bed, expect, measure, object,
    table::{SETUPS, Setup, Verdict, read},
};

/// The sources that the sender's object does not list.
const STRANGERS: [Kind; 2] = [Kind::Stranger4, Kind::Stranger6];

/// The same addresses, claimed on the link.
const CLAIMS: [Kind; 2] = [Kind::ArpStranger, Kind::AdvertisesStranger];

/// The networks that these kinds are of.
const NETWORKS: &str = "['192.0.2.0/24', '2001:db8::/32']";

/// Sources that are allowed pass, and nothing else does that did not before.
pub(crate) fn pass() -> Outcome {
    for (column, setup) in SETUPS.into_iter().enumerate() {
        let bed = bed(setup, &[])?;
        allow(&bed, setup, "client", NETWORKS)?;
        let what = format!("{setup:?}");
        let ends = ["client", "server"];
        let arrived = measure(&bed, setup, ends[0], ends[1])?;
        let said = read()?;
        let is_routed = |kind: &Kind| !setup.bridged && CLAIMS.contains(kind);
        let wrong: Vec<String> = Kind::ALL
            .into_iter()
            .zip(said)
            .filter(|(kind, row)| {
                let allowed = [&STRANGERS[..], &CLAIMS].concat();
                let passes = match allowed.contains(kind) && !is_routed(kind) {
                    true => true,
                    false => row.cells[column].selected == Verdict::Passes,
                };
                arrived[kind] != passes
            })
            .map(|(kind, _)| kind.to_string())
            .collect();
        if !wrong.is_empty() {
            return Err(format!("{what}: not as they should be: {}", wrong.join(", ")).into());
        }
        // The client's policies judge them: it may speak to the server alone.
        expect(&what, &bed, setup, ["client", "free-1"], &STRANGERS, false)?;
        // The sources are the client's alone. From others they pass as before, except on a bridge, where the client's
        // policies judge them.
        for (row, kind) in read()?.into_iter().zip(Kind::ALL) {
            if STRANGERS.contains(&kind) {
                let passes = !setup.bridged && row.cells[column].free == Verdict::Passes;
                expect(&what, &bed, setup, ["free-1", "free-2"], &[kind], passes)?;
            }
        }
        // At unknown ports the sources may come from any, and are judged by the client's policies.
        let others = match setup.bridged && !setup.known {
            true => &[][..],
            false => &STRANGERS,
        };
        expect(&what, &bed, setup, ["peer", "server"], others, false)?;
    }
    Ok(())
}

/// A workload that no policy restricts speaks from its other addresses to all who let it.
pub(crate) fn of_an_unrestricted_workload() -> Outcome {
    for setup in SETUPS {
        let bed = bed(setup, &[])?;
        allow(&bed, setup, "free-1", NETWORKS)?;
        let what = format!("{setup:?}");
        expect(&what, &bed, setup, ["free-1", "free-2"], &STRANGERS, true)?;
        expect(&what, &bed, setup, ["free-1", "server"], &STRANGERS, true)?;
        expect(&what, &bed, setup, ["free-1", "client"], &STRANGERS, true)?;
    }
    Ok(())
}

/// The client may speak to the addresses beside the server's own.
const TO_NETWORKS: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: default, name: to-networks}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Egress]
  egress: [{to: [{ipBlock: {cidr: 192.0.2.0/24}}]}]
";

/// A workload's policies judge what comes to its other addresses.
pub(crate) fn are_judged_as_destinations() -> Outcome {
    let kinds = [Kind::Unlisted4];
    for setup in SETUPS {
        let bed = bed(setup, &[])?;
        allow(&bed, setup, "server", NETWORKS)?;
        if !setup.bridged {
            // The node's route to it leads there, and the pod answers for it.
            let [v4, v6] = crate::addresses(3);
            let all = [v4, v6, [192, 0, 2, 9].into()];
            bed.deployment.bed.set_addresses("server", &all)?;
        }
        let mut api = bed.deployment.client()?;
        let what = format!("{setup:?}");
        // Neither may the client send it, nor does the server take it from the free one.
        expect(&what, &bed, setup, ["client", "server"], &kinds, false)?;
        expect(&what, &bed, setup, ["free-1", "server"], &kinds, false)?;
        api.enforce(vec![put(TO_NETWORKS)])?;
        expect(&what, &bed, setup, ["client", "server"], &kinds, true)?;
        expect(&what, &bed, setup, ["free-1", "server"], &kinds, false)?;
    }
    Ok(())
}

/// Sources come and go with the object, and stay over a restart of the enforcer.
pub(crate) fn come_and_go() -> Outcome {
    for setup in [SETUPS[0], SETUPS[2], SETUPS[4]] {
        let mut bed = bed(setup, &[])?;
        let ends = ["client", "server"];
        let what = format!("{setup:?}");
        for _ in 0..2 {
            expect(&what, &bed, setup, ends, &STRANGERS, false)?;
            allow(&bed, setup, "client", NETWORKS)?;
            expect(&what, &bed, setup, ends, &STRANGERS, true)?;
            bed.deployment.kill_enforcer(0);
            expect("killed", &bed, setup, ends, &STRANGERS, true)?;
            bed.deployment.start_enforcer(0)?;
            expect("started again", &bed, setup, ends, &STRANGERS, true)?;
            allow(&bed, setup, "client", "[]")?;
        }
        expect(&what, &bed, setup, ends, &STRANGERS, false)?;
    }
    Ok(())
}

/// An address of a workload is nobody else's, however wide the sources of another one are; and of two the narrower has
/// an address.
pub(crate) fn are_no_ones_who_has_them() -> Outcome {
    let another: BTreeSet<Kind> = [Kind::Another4, Kind::Another6].into();
    let another: Vec<Kind> = another.into_iter().collect();
    for setup in [SETUPS[0], SETUPS[2], SETUPS[3]] {
        let bed = bed(setup, &[])?;
        let what = format!("{setup:?}");
        allow(&bed, setup, "client", "['0.0.0.0/0', '::/0']")?;
        expect(&what, &bed, setup, ["client", "server"], &STRANGERS, true)?;
        expect(&what, &bed, setup, ["client", "server"], &another, false)?;
        allow(&bed, setup, "free-1", NETWORKS)?;
        expect(&what, &bed, setup, ["client", "server"], &STRANGERS, false)?;
        expect(&what, &bed, setup, ["free-1", "server"], &STRANGERS, true)?;
    }
    Ok(())
}

/// The annotation of a pod says the same.
pub(crate) fn by_a_pods_annotation() -> Outcome {
    let setup = SETUPS[4];
    let bed = bed(setup, &[])?;
    let ends = ["client", "server"];
    let mut api = bed.deployment.client()?;
    let pod = |networks: &str| {
        let [v4, v6] = crate::addresses(2);
        format!(
            "
apiVersion: v1
kind: Pod
metadata:
  namespace: default
  name: client
  labels: {{app: client}}
  annotations: {{sallyport.dev/allowed-sources: '{networks}'}}
spec: {{nodeName: node-1, containers: [{{name: c, image: i}}]}}
status: {{phase: Running, podIP: {v4}, podIPs: [{{ip: {v4}}}, {{ip: '{v6}'}}]}}
"
        )
    };
    api.enforce(vec![delete(object(setup, &bed, "client", "[]")?)])?;
    api.enforce(vec![put(pod(""))])?;
    expect("without", &bed, setup, ends, &STRANGERS, false)?;
    api.enforce(vec![put(pod("192.0.2.0/24, 2001:db8::/32"))])?;
    expect("with", &bed, setup, ends, &STRANGERS, true)?;
    expect("with", &bed, setup, ["client", "free-1"], &STRANGERS, false)
}

/// Has a workload's object allow other sources.
fn allow(bed: &Bed, setup: Setup, name: &str, networks: &str) -> Outcome {
    let mut api = bed.deployment.client()?;
    api.enforce(vec![put(object(setup, bed, name, networks)?)])?;
    Ok(())
}
