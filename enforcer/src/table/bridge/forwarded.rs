//! The rules for frames from one port to another. Each chain first drops the frames that br_netfilter does not show to
//! policy. The rules after that look at the packet inside, whether the frame has a tag or not.

use sallyport_nft::{
    bridge::{BridgeMatch, End},
    command::{Family, Match, Rule, Verdict},
};

use super::{
    OTHER_TYPE, OTHER_TYPE_INSIDE, OTHER_TYPE_OR_TAG,
    rules::{
        ADVERTISEMENT, LINK_LOCAL, NEVER_JUDGED, OF_HOSTS, SOLICITATION, UNLISTED, on, port, to,
    },
    sets::{ISOLATED, KNOWN, PORT_ADDRESSES, PORT_RANGES, UnknownPorts, name},
};

/// The treatment of frames with one 802.1Q tag that have IPv4, IPv6 or ARP inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tags {
    /// The frames are dropped: no policy judges them, or their sender must not send tags.
    Dropped,
    /// The frames are treated as those without a tag, since policy judges them.
    Judged,
}

/// The rules for frames from one workload to another that policy can judge. A known port claims no link-local address,
/// by an advertisement or as the source of a solicitation, because the address may be that of the other workload's
/// router.
pub(super) fn among() -> Vec<Rule> {
    let mut rules = judgeable(Tags::Dropped, Some(&OF_HOSTS), &[]);
    let claims = [
        on(port(End::Source, true, KNOWN), to(LINK_LOCAL))
            .and(Match::Bridge(BridgeMatch::Icmpv6(&ADVERTISEMENT)))
            .and(Match::Bridge(BridgeMatch::TargetLinkLocal)),
        on(port(End::Source, true, KNOWN), to(LINK_LOCAL))
            .and(Match::Bridge(BridgeMatch::LinkLocal(End::Source)))
            .and(Match::Bridge(BridgeMatch::Icmpv6(&SOLICITATION))),
    ];
    // The claims come after the rules for frames that are never judged.
    rules.splice(2..2, claims);
    rules
}

/// The rules for frames that policy can judge. Of neighbour discovery some types pass, or all. `also` are other
/// link-local packets that pass.
pub(super) fn judgeable(
    tags: Tags,
    discovery: Option<&'static [u8]>,
    also: &[BridgeMatch],
) -> Vec<Rule> {
    let arp = BridgeMatch::Protocol(libc::ETH_P_ARP as u16);
    let is_v6 = BridgeMatch::Protocol(libc::ETH_P_IPV6 as u16);
    let discovery = match discovery {
        Some(kinds) => on(BridgeMatch::Icmpv6(kinds), Verdict::Accept),
        None => on(is_v6, Verdict::Accept).and(Match::NeighbourDiscovery),
    };
    let never_judged: &[BridgeMatch] = match tags {
        Tags::Dropped => &[OTHER_TYPE],
        Tags::Judged => &[OTHER_TYPE_OR_TAG, OTHER_TYPE_INSIDE],
    };
    let never_judged = never_judged.iter().cloned();
    let never_judged = never_judged.map(|condition| on(condition, to(NEVER_JUDGED)));
    let mut rules: Vec<Rule> = never_judged.collect();
    rules.extend([on(arp, Verdict::Accept), discovery]);
    let also = also.iter().cloned();
    rules.extend(also.map(|condition| on(condition, Verdict::Accept)));
    for end in [End::Source, End::Destination] {
        rules.push(on(BridgeMatch::LinkLocal(end), to(LINK_LOCAL)));
    }
    rules
}

/// The rules for packets to a workload that is isolated for ingress. Their destination is the workload's own address or
/// one that the workload may use. No policy judges other destinations.
pub(super) fn destination(unknown: Option<&UnknownPorts>) -> Vec<Rule> {
    let isolated = || port(End::Destination, true, ISOLATED);
    let mut rules = Vec::new();
    for set in [PORT_ADDRESSES, PORT_RANGES] {
        rules.extend(Family::BOTH.map(|family| {
            let own = BridgeMatch::PortAddress(End::Destination, family, name(set, family));
            on(isolated(), Verdict::Accept).and(Match::Bridge(own))
        }));
    }
    rules.push(on(isolated(), to(UNLISTED)));
    if unknown.is_some_and(|unknown| unknown.isolated) {
        rules.push(on(port(End::Destination, true, KNOWN), Verdict::Accept));
        rules.push(on(BridgeMatch::GroupAddressed, to(UNLISTED)));
        for family in Family::BOTH {
            for set in ["addresses", "workloads"] {
                let condition = Match::Destination(family, name(set, family));
                rules.push(Rule::when(condition, Verdict::Accept));
            }
        }
        rules.push(Rule::always(to(UNLISTED)));
    }
    rules
}
