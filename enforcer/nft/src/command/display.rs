//! Commands and their parts in nft's syntax.

use std::fmt;

use super::{Command, Element, Family, Match, Rule, SetKind, TableName, Tuple, Verdict};

/// Displays an iterator's items with a separator.
fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(", ")
}

/// Displays a range of ports as nft does.
fn ports(first: u16, last: u16) -> String {
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Drop => f.write_str("drop"),
            Verdict::Accept => f.write_str("accept"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Reset => f.write_str("reject with tcp reset"),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Address(address) => write!(f, "{address}"),
            Element::Range(first, last) if first == last => write!(f, "{first}"),
            Element::Range(first, last) => write!(f, "{first}-{last}"),
            Element::Pair(address) => write!(f, "{address} . {address}"),
            Element::Verdict(address, verdict, comment) => {
                write!(f, "{address} comment \"{comment}\" : {verdict}")
            }
            Element::Number(number, comment) => write!(f, "{number} comment \"{comment}\""),
            Element::Family(family, lasts) => {
                write!(f, "{} timeout {}ms", family.protocol(), lasts.as_millis())
            }
            Element::Interface(name) => write!(f, "\"{name}\""),
            Element::InterfaceAddress(name, address) => write!(f, "\"{name}\" . {address}"),
            Element::InterfaceVerdict(name, verdict) => write!(f, "\"{name}\" : {verdict}"),
            Element::InterfaceRange(name, first, last) => {
                write!(f, "\"{name}\" . {}", Element::Range(*first, *last))
            }
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tuple = |tuple: &Tuple| match tuple {
            Tuple::Original => "ct original",
            Tuple::Reply => "ct reply",
        };
        match self {
            Match::NoConnection => f.write_str("ct state invalid,untracked"),
            Match::Established => f.write_str("ct state established,related"),
            Match::New => f.write_str("ct state == new"),
            Match::NotUdp => f.write_str("meta l4proto != udp"),
            Match::DirectionOriginal => f.write_str("ct direction original"),
            Match::DirectionReply => f.write_str("ct direction reply"),
            Match::NoTcpBeginning => f.write_str("tcp flags & (fin | syn | rst | ack) != syn"),
            Match::NoSctpBeginning => f.write_str("meta l4proto sctp @th,96,8 != 1"),
            Match::NeighbourDiscovery => f.write_str(
                "icmpv6 type { mld-listener-query, mld-listener-report, mld-listener-done, nd-router-solicit, \
                 nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert, nd-redirect, mld2-listener-report }",
            ),
            Match::TupleSource(of, family, set) => {
                write!(f, "{} {} saddr @{set}", tuple(of), family.keyword())
            }
            Match::TupleRange(of, first, last) => {
                let family = Family::of(*first).keyword();
                let range = Element::Range(*first, *last);
                write!(f, "{} {family} saddr {range}", tuple(of))
            }
            Match::TupleSources(family, set) => {
                let family = family.keyword();
                write!(f, "ct original {family} saddr . ct reply {family} saddr @{set}")
            }
            Match::TupleSourceTwice(of, family, set) => {
                let source = format!("{} {} saddr", tuple(of), family.keyword());
                write!(f, "{source} . {source} @{set}")
            }
            Match::SourceTwice(family, set) => {
                write!(f, "{0} saddr . {0} saddr @{set}", family.keyword())
            }
            Match::DestinationTwice(family, set) => {
                write!(f, "{0} daddr . {0} daddr @{set}", family.keyword())
            }
            Match::Family(set) => write!(f, "meta nfproto @{set}"),
            Match::Source(family, set) => write!(f, "{} saddr @{set}", family.keyword()),
            Match::Destination(family, set) => write!(f, "{} daddr @{set}", family.keyword()),
            Match::InputInterface(name) => write!(f, "iifname \"{name}\""),
            Match::InputIn(set) => write!(f, "iifname @{set}"),
            Match::OutputIn(set) => write!(f, "oifname @{set}"),
            Match::InputSource(family, set) => {
                write!(f, "iifname . {} saddr @{set}", family.keyword())
            }
            Match::OutputInterface(name) => write!(f, "oifname \"{name}\""),
            Match::ByBridge => f.write_str("meta iifkind \"bridge\""),
            Match::ReversePath => f.write_str("fib saddr . iif oif exists"),
            Match::Protocol(number) => write!(f, "ct protocol {number}"),
            Match::PacketProtocol(number) => write!(f, "meta l4proto {number}"),
            Match::ProtocolWithoutPorts => f.write_str("ct protocol != { 6, 17, 132 }"),
            Match::ProtocolOrError(number) => write!(f, "meta l4proto {{ 1, {number}, 58 }}"),
            Match::TupleSourceMap(of, family, map) => {
                write!(f, "{} {} saddr vmap @{map}", tuple(of), family.keyword())
            }
            Match::SourceMap(family, map) => write!(f, "{} saddr vmap @{map}", family.keyword()),
            Match::DestinationMap(family, map) => {
                write!(f, "{} daddr vmap @{map}", family.keyword())
            }
            Match::ServerPort(first, last) => write!(f, "ct reply proto-src {}", ports(*first, *last)),
            Match::ServerPortMap(map) => {
                let map = map
                    .iter()
                    .map(|(first, last, verdict)| format!("{} : {verdict}", ports(*first, *last)));
                write!(f, "ct reply proto-src vmap {{ {} }}", join(map))
            }
            Match::Bridge(condition) => condition.fmt(f),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.matches.iter().map(Match::to_string).collect();
        words.extend(self.counter.then(|| "counter".to_owned()));
        words.extend(self.verdict.as_ref().map(Verdict::to_string));
        words.extend(
            self.comment
                .as_ref()
                .map(|text| format!("comment \"{text}\"")),
        );
        f.write_str(&words.join(" "))
    }
}

impl fmt::Display for SetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetKind::Addresses(family) => write!(f, "type {};", family.datatype()),
            SetKind::Ranges(family) => write!(f, "type {}; flags interval;", family.datatype()),
            SetKind::Pairs(family) => write!(f, "type {0} . {0};", family.datatype()),
            SetKind::Verdicts(family) => write!(f, "type {} : verdict;", family.datatype()),
            SetKind::Numbers => f.write_str("type mark;"),
            SetKind::Families => f.write_str("type nf_proto; flags timeout;"),
            SetKind::Interfaces => f.write_str("type ifname;"),
            SetKind::InterfaceAddresses(family) => {
                write!(f, "type ifname . {};", family.datatype())
            }
            SetKind::InterfaceVerdicts => f.write_str("type ifname : verdict;"),
            SetKind::InterfaceRanges(family) => {
                write!(f, "type ifname . {}; flags interval;", family.datatype())
            }
        }
    }
}

impl Command {
    /// The nft command for a table.
    pub fn of(&self, table: TableName) -> impl fmt::Display + '_ {
        fmt::from_fn(move |f| self.spell(table, f))
    }

    fn spell(&self, t: TableName, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::AddTable { owned: true } => {
                write!(f, "add table {t} {{ flags owner, persist; }}")
            }
            Command::AddTable { owned: false } => write!(f, "add table {t}"),
            Command::DeleteTable => write!(f, "delete table {t}"),
            Command::AddSet {
                name,
                kind,
                comment,
            } => {
                let what = if kind.is_map() { "map" } else { "set" };
                write!(
                    f,
                    "add {what} {t} {name} {{ {kind} comment \"{comment}\"; }}"
                )
            }
            Command::DeleteSet(name) => write!(f, "delete set {t} {name}"),
            Command::FlushSet(name) => write!(f, "flush set {t} {name}"),
            Command::AddChain {
                name,
                base,
                comment,
            } => {
                let hook = match base {
                    Some(base) => format!("type filter {base}; policy accept; "),
                    None => String::new(),
                };
                write!(f, "add chain {t} {name} {{ {hook}comment \"{comment}\"; }}")
            }
            Command::FlushChain(name) => write!(f, "flush chain {t} {name}"),
            Command::DeleteChain(name) => write!(f, "delete chain {t} {name}"),
            Command::AddRule(chain, rule) => write!(f, "add rule {t} {chain} {rule}"),
            Command::InsertRule(chain, rule, before) => {
                write!(f, "insert rule {t} {chain} handle {before} {rule}")
            }
            Command::DeleteRule(chain, handle) => {
                write!(f, "delete rule {t} {chain} handle {handle}")
            }
            Command::AddElements(set, _, elements) => {
                write!(f, "add element {t} {set} {{ {} }}", join(elements))
            }
            Command::DeleteElements(set, _, elements) => {
                write!(f, "delete element {t} {set} {{ {} }}", join(elements))
            }
        }
    }
}
