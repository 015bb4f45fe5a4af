//! Commands as netlink messages in one nf_tables batch. Tables and chains are built by rustables; sets, elements and
//! rules, which it cannot express in full, are encoded here and spliced into the same batch.
//!
//! Formats: `linux/netfilter/nf_tables.h`; byte layout of netlink: `man 7 netlink`, `linux/netlink.h`.

#![expect(
    clippy::cast_possible_truncation,
    reason = "constants and lengths of netlink: `int` in the kernel's headers, 8 to 32 bits in a message"
)]

use std::{net::IpAddr, time::Duration};

use rustables::{
    Batch, Chain, ChainPolicy, ChainType, Hook, HookClass, MsgType, ProtocolFamily, Table,
    sys::{
        self, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM,
        NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM,
    },
};

use crate::{
    command::{
        self, Base, Command, Element, Family, Rule, SetKind, TableFamily, TableName, Verdict,
    },
    encode::{attributes::Attributes, expressions::Expressions},
};

pub mod attributes;
mod expressions;
mod spelling;

pub use spelling::{spell, spelling};

/// Length of a netlink header with the nfgenmsg that follows it.
const HEADER: usize = 20;

/// An attribute's length has 16 bits; past that the kernel would see a part of it. Elements go into several messages.
const ELEMENTS_MAX: usize = 60_000;

/// `NFT_TABLE_F_PERSIST`, of Linux 6.9: later than the headers that many build with.
pub const TABLE_PERSISTS: u32 = 0x4;

/// `NFT_TABLE_F_OWNER` and [`TABLE_PERSISTS`]. When the owner dies the latter is left.
pub const TABLE_OWNED: u32 = 0x2 | TABLE_PERSISTS;

/// A batch as the kernel takes it.
#[derive(Debug)]
pub struct Encoded {
    /// The messages, from batch begin to batch end.
    pub bytes: Vec<u8>,
    /// The command that each message is of. Message `i` has sequence number `i + 1`; batch begin has 0. See
    /// [`number_from`](Self::number_from).
    pub origins: Vec<usize>,
}

impl Encoded {
    /// The sequence number of the message that asks for an acknowledgement: that of the last command, after which the batch's end
    /// comes.
    pub fn acknowledged(&self) -> u32 {
        self.origins.len() as u32
    }

    /// Adds a number to each sequence number, so that those of a socket's batches and requests differ.
    pub fn number_from(&mut self, first: u32) {
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
        let mut at = 0;
        while at < self.bytes.len() {
            let length = word(&self.bytes[at..at + 4]) as usize;
            let number = &mut self.bytes[at + 8..at + 12];
            let moved = word(number).wrapping_add(first);
            number.copy_from_slice(&moved.to_ne_bytes());
            at += length;
        }
    }
}

/// Encodes commands to a table as one batch. With a generation, the kernel takes it only if its ruleset is still
/// of that.
pub fn batch(table: TableName, commands: &[Command], generation: Option<u32>) -> Encoded {
    let mut encoder = Encoder {
        table,
        bytes: Vec::new(),
        origins: Vec::new(),
        set_id: 0,
        command: 0,
        last: 0,
    };
    encoder.begin(generation);
    for (index, command) in commands.iter().enumerate() {
        encoder.command(index, command);
    }
    encoder.end();
    Encoded {
        bytes: encoder.bytes,
        origins: encoder.origins,
    }
}

/// An upper bound of what a command adds to a batch, in bytes.
pub fn size_bound(command: &Command) -> usize {
    match command {
        Command::AddElements(name, _, elements) | Command::DeleteElements(name, _, elements) => {
            elements.len() * 320 + (1 + elements.len() / 100) * (80 + name.len())
        }
        Command::AddRule(chain, rule) | Command::InsertRule(chain, rule, _) => {
            let ports: usize = rule
                .matches
                .iter()
                .map(|condition| match condition {
                    command::Match::ServerPortMap(ports) => ports.len() * 360 + 512,
                    command::Match::ProtocolOrError(_) => 512,
                    _ => 128,
                })
                .sum();
            1024 + chain.len() + ports
        }
        _ => 1024,
    }
}

struct Encoder {
    table: TableName,
    bytes: Vec<u8>,
    origins: Vec<usize>,
    /// Ids of sets that are named and referred to in one batch.
    set_id: u32,
    command: usize,
    /// Where the last message begins.
    last: usize,
}

impl Encoder {
    fn begin(&mut self, generation: Option<u32>) {
        let subsystem = sys::NFNL_SUBSYS_NFTABLES as u16;
        let mut body = Attributes::default();
        if let Some(generation) = generation {
            body.u32(sys::NFNL_BATCH_GENID as u16, generation);
        }
        self.raw(
            sys::NFNL_MSG_BATCH_BEGIN as u16,
            0,
            0,
            subsystem,
            0,
            &body.bytes,
        );
    }

    /// The last command asks for the batch's only acknowledgement: one for each would overflow the socket, and kernels
    /// before 6.10 give none for the end.
    fn end(&mut self) {
        if !self.origins.is_empty() {
            let flags = &mut self.bytes[self.last + 6..self.last + 8];
            let asks = u16::from_ne_bytes([flags[0], flags[1]]) | libc::NLM_F_ACK as u16;
            flags.copy_from_slice(&asks.to_ne_bytes());
        }
        let seq = self.origins.len() as u32 + 1;
        let subsystem = sys::NFNL_SUBSYS_NFTABLES as u16;
        self.raw(sys::NFNL_MSG_BATCH_END as u16, 0, 0, subsystem, seq, &[]);
    }

    fn raw(&mut self, kind: u16, flags: u16, family: u8, resource: u16, seq: u32, body: &[u8]) {
        let length = (HEADER + body.len()) as u32;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&seq.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
        self.bytes.extend_from_slice(body);
    }

    fn message(&mut self, kind: u32, flags: i32, body: &Attributes) {
        self.origins.push(self.command);
        self.last = self.bytes.len();
        let seq = self.origins.len() as u32;
        let kind = (sys::NFNL_SUBSYS_NFTABLES as u16) << 8 | kind as u16;
        self.raw(
            kind,
            flags.cast_unsigned() as u16,
            self.table.family.number(),
            0,
            seq,
            &body.bytes,
        );
    }

    /// Takes one message over from a rustables batch: without its begin, its end and its wish for an acknowledgement.
    fn splice(&mut self, add: impl FnOnce(&mut Batch)) {
        let mut batch = Batch::new();
        add(&mut batch);
        let whole = batch.finalize();
        let mut message = whole[HEADER..whole.len() - HEADER].to_vec();
        self.origins.push(self.command);
        let seq = self.origins.len() as u32;
        let flags = u16::from_ne_bytes([message[6], message[7]]) & !(libc::NLM_F_ACK as u16);
        message[6..8].copy_from_slice(&flags.to_ne_bytes());
        message[8..12].copy_from_slice(&seq.to_ne_bytes());
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&message);
    }

    fn command(&mut self, index: usize, command: &Command) {
        self.command = index;
        match command {
            Command::AddTable { owned } => {
                let table = if *owned {
                    self.table().with_flags(TABLE_OWNED)
                } else {
                    self.table()
                };
                self.splice(|batch| batch.add(&table, MsgType::Add));
            }
            Command::DeleteTable => {
                let table = self.table();
                self.splice(|batch| batch.add(&table, MsgType::Del));
            }
            Command::AddSet {
                name,
                kind,
                comment,
            } => self.add_set(name, *kind, comment),
            Command::DeleteSet(name) => self.named(
                NFT_MSG_DELSET,
                sys::NFTA_SET_TABLE,
                sys::NFTA_SET_NAME,
                name,
            ),
            Command::FlushSet(name) => self.named(
                NFT_MSG_DELSETELEM,
                sys::NFTA_SET_ELEM_LIST_TABLE,
                sys::NFTA_SET_ELEM_LIST_SET,
                name,
            ),
            Command::AddChain {
                name,
                base,
                comment,
            } => {
                let mut chain = Chain::new(&self.table())
                    .with_name(name)
                    .with_userdata(comment_userdata(0, comment));
                if let Some(Base { hook, priority }) = *base {
                    let class = match hook {
                        command::Hook::Prerouting => HookClass::PreRouting,
                        command::Hook::Forward => HookClass::Forward,
                    };
                    chain = chain
                        .with_hook(Hook::new(class, priority))
                        .with_type(ChainType::Filter)
                        .with_policy(ChainPolicy::Accept);
                }
                self.splice(|batch| batch.add(&chain, MsgType::Add));
            }
            Command::FlushChain(name) => {
                self.named(
                    NFT_MSG_DELRULE,
                    sys::NFTA_RULE_TABLE,
                    sys::NFTA_RULE_CHAIN,
                    name,
                );
            }
            Command::DeleteChain(name) => {
                self.named(
                    NFT_MSG_DELCHAIN,
                    sys::NFTA_CHAIN_TABLE,
                    sys::NFTA_CHAIN_NAME,
                    name,
                );
            }
            Command::AddRule(chain, rule) => self.add_rule(chain, rule, None),
            Command::InsertRule(chain, rule, before) => self.add_rule(chain, rule, Some(*before)),
            Command::DeleteRule(chain, handle) => {
                let mut body = Attributes::default();
                body.text(sys::NFTA_RULE_TABLE, self.table.name)
                    .text(sys::NFTA_RULE_CHAIN, chain)
                    .u64(sys::NFTA_RULE_HANDLE, *handle);
                self.message(NFT_MSG_DELRULE, 0, &body);
            }
            Command::AddElements(set, kind, elements) => {
                self.elements(NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, set, *kind, elements);
            }
            Command::DeleteElements(set, kind, elements) => {
                self.elements(NFT_MSG_DELSETELEM, 0, set, *kind, elements);
            }
        }
    }

    fn table(&self) -> Table {
        let family = match self.table.family {
            TableFamily::Inet => ProtocolFamily::Inet,
            TableFamily::Bridge => ProtocolFamily::Bridge,
        };
        Table::new(family).with_name(self.table.name)
    }

    fn named(&mut self, kind: u32, table: u16, attribute: u16, name: &str) {
        let mut body = Attributes::default();
        body.text(table, self.table.name).text(attribute, name);
        self.message(kind, 0, &body);
    }

    fn add_set(&mut self, name: &str, kind: SetKind, comment: &str) {
        self.set_id += 1;
        let description = SetDescription::of(kind);
        let mut body = description.attributes(self.table.name, name, self.set_id);
        let mut userdata = Vec::new();
        if matches!(kind, SetKind::Interfaces | SetKind::InterfaceVerdicts) {
            // NFTNL_UDATA_SET_KEYBYTEORDER, four bytes: nft lists names backwards that are not said to be in the order of the host.
            userdata.extend([0, 4]);
            userdata.extend(1u32.to_ne_bytes());
        }
        userdata.extend(comment_userdata(7, comment)); // NFTNL_UDATA_SET_COMMENT
        body.bytes(sys::NFTA_SET_USERDATA, &userdata);
        self.message(NFT_MSG_NEWSET, libc::NLM_F_CREATE, &body);
    }

    fn elements(&mut self, kind: u32, flags: i32, set: &str, of: SetKind, elements: &[Element]) {
        let mut encoded = Vec::new();
        if matches!(of, SetKind::Ranges(_)) {
            for element in elements {
                if let Element::Range(first, last) = *element {
                    range_elements(&mut encoded, first, last);
                }
            }
        } else {
            // What is deleted is named by its key alone.
            let whole = kind == NFT_MSG_NEWSETELEM;
            encoded.extend(elements.iter().map(|one| element(one, whole)));
        }
        self.element_messages(kind, flags, set, None, &encoded);
    }

    fn element_messages(
        &mut self,
        kind: u32,
        flags: i32,
        set: &str,
        id: Option<u32>,
        elements: &[Attributes],
    ) {
        let mut rest = elements;
        while !rest.is_empty() {
            let (mut list, mut taken) = (Attributes::default(), 0);
            for element in rest {
                if list.bytes.len() + element.bytes.len() > ELEMENTS_MAX {
                    break;
                }
                list.nest(sys::NFTA_LIST_ELEM, element);
                taken += 1;
            }
            rest = &rest[taken..];
            let mut body = Attributes::default();
            body.text(sys::NFTA_SET_ELEM_LIST_TABLE, self.table.name)
                .text(sys::NFTA_SET_ELEM_LIST_SET, set);
            if let Some(id) = id {
                body.u32(sys::NFTA_SET_ELEM_LIST_SET_ID, id);
            }
            body.nest(sys::NFTA_SET_ELEM_LIST_ELEMENTS, &list);
            self.message(kind, flags, &body);
        }
    }

    /// Adds a rule before another, or behind all.
    fn add_rule(&mut self, chain: &str, rule: &Rule, before: Option<u64>) {
        let mut expressions = Expressions::of(self.table.family);
        for condition in &rule.matches {
            expressions.condition(condition, &mut |anonymous| self.anonymous(anonymous));
        }
        if rule.counter {
            expressions.counter();
        }
        if let Some(verdict) = &rule.verdict {
            expressions.verdict(verdict);
        }
        let mut body = Attributes::default();
        body.text(sys::NFTA_RULE_TABLE, self.table.name)
            .text(sys::NFTA_RULE_CHAIN, chain)
            .nest(sys::NFTA_RULE_EXPRESSIONS, &expressions.list);
        if let Some(comment) = &rule.comment {
            body.bytes(sys::NFTA_RULE_USERDATA, &comment_userdata(0, comment));
        }
        let place = match before {
            Some(handle) => {
                body.u64(sys::NFTA_RULE_POSITION, handle);
                0
            }
            None => libc::NLM_F_APPEND,
        };
        self.message(NFT_MSG_NEWRULE, libc::NLM_F_CREATE | place, &body);
    }

    /// Adds an anonymous constant set for the rule being encoded, and returns its name and id for the rule's lookup.
    fn anonymous(&mut self, set: Anonymous) -> (&'static str, u32) {
        self.set_id += 1;
        let id = self.set_id;
        let (name, description, elements) = set.describe();
        self.message(
            NFT_MSG_NEWSET,
            libc::NLM_F_CREATE,
            &description.attributes(self.table.name, name, id),
        );
        self.element_messages(
            NFT_MSG_NEWSETELEM,
            libc::NLM_F_CREATE,
            name,
            Some(id),
            &elements,
        );
        (name, id)
    }
}

/// A set that belongs to one rule and never changes.
enum Anonymous<'a> {
    /// Single numbers of one byte.
    Bytes { datatype: u32, values: &'a [u8] },
    /// EtherTypes.
    EtherTypes(&'a [u16]),
    /// Ports and verdicts.
    Ports(&'a [(u16, u16, Verdict)]),
}

impl Anonymous<'_> {
    fn describe(&self) -> (&'static str, SetDescription, Vec<Attributes>) {
        let fixed = sys::NFT_SET_ANONYMOUS | sys::NFT_SET_CONSTANT;
        match self {
            Anonymous::Bytes { datatype, values } => (
                "__set%d",
                SetDescription {
                    flags: fixed,
                    datatype: *datatype,
                    length: 1,
                    concatenated: None,
                },
                values.iter().map(|value| key_element(&[*value])).collect(),
            ),
            Anonymous::EtherTypes(types) => (
                "__set%d",
                SetDescription {
                    flags: fixed,
                    datatype: 10, // TYPE_ETHERTYPE of nft
                    length: 2,
                    concatenated: None,
                },
                types
                    .iter()
                    .map(|value| key_element(&value.to_be_bytes()))
                    .collect(),
            ),
            Anonymous::Ports(ports) => {
                let ranges = ports.iter().any(|(first, last, _)| first != last);
                let interval = if ranges { sys::NFT_SET_INTERVAL } else { 0 };
                let description = SetDescription {
                    flags: fixed | sys::NFT_SET_MAP | interval,
                    datatype: 13, // TYPE_INET_SERVICE of nft
                    length: 2,
                    concatenated: None,
                };
                ("__map%d", description, port_elements(ports, ranges))
            }
        }
    }
}

fn port_elements(ports: &[(u16, u16, Verdict)], ranges: bool) -> Vec<Attributes> {
    let mut elements = Vec::new();
    if ranges && ports.first().is_some_and(|&(first, ..)| first > 0) {
        elements.push(end_element(&0u16.to_be_bytes()));
    }
    for (i, (first, last, verdict)) in ports.iter().enumerate() {
        let mut element = key_element(&first.to_be_bytes());
        element.nest(sys::NFTA_SET_ELEM_DATA, &verdict_data(verdict));
        elements.push(element);
        let next = ports.get(i + 1).map(|&(first, ..)| u32::from(first));
        let end = u32::from(*last) + 1;
        // The next range ends this one where it starts right behind it.
        if ranges && end <= u32::from(u16::MAX) && next != Some(end) {
            elements.push(end_element(&(end as u16).to_be_bytes()));
        }
    }
    elements
}

/// What the kernel, and nft when it lists, must know of a set.
pub(super) struct SetDescription {
    pub(super) flags: u32,
    /// The key's type, in nft's numbers (`enum datatypes` of its source); the kernel keeps it for nft.
    pub(super) datatype: u32,
    pub(super) length: u32,
    /// The lengths of two concatenated fields.
    concatenated: Option<[u32; 2]>,
}

impl SetDescription {
    pub(super) fn of(kind: SetKind) -> SetDescription {
        let address = |family| match family {
            Family::V4 => (7, 4),
            Family::V6 => (8, 16),
        };
        let (flags, (datatype, length), concatenated) = match kind {
            SetKind::Addresses(family) => (0, address(family), None),
            SetKind::Ranges(family) => (sys::NFT_SET_INTERVAL, address(family), None),
            SetKind::Verdicts(family) => (sys::NFT_SET_MAP, address(family), None),
            SetKind::Pairs(family) => {
                let (datatype, length) = address(family);
                let pair = (datatype << 6 | datatype, 2 * length);
                (NFT_SET_CONCAT, pair, Some([length; 2]))
            }
            SetKind::Interfaces => (0, IFNAME, None),
            SetKind::InterfaceVerdicts => (sys::NFT_SET_MAP, IFNAME, None),
            SetKind::InterfaceAddresses(family) => {
                let ((name, name_length), (datatype, length)) = (IFNAME, address(family));
                let pair = (name << 6 | datatype, name_length + length);
                (NFT_SET_CONCAT, pair, Some([name_length, length]))
            }
            SetKind::InterfaceRanges(family) => {
                let single = SetDescription::of(SetKind::InterfaceAddresses(family));
                return SetDescription {
                    flags: single.flags | sys::NFT_SET_INTERVAL,
                    ..single
                };
            }
            SetKind::Numbers => (0, (19, 4), None),
            SetKind::Families => (sys::NFT_SET_TIMEOUT, (2, 1), None), // TYPE_NFPROTO of nft
        };
        SetDescription {
            flags,
            datatype,
            length,
            concatenated,
        }
    }

    fn attributes(&self, table: &str, name: &str, id: u32) -> Attributes {
        let mut body = Attributes::default();
        body.text(sys::NFTA_SET_TABLE, table)
            .text(sys::NFTA_SET_NAME, name)
            .u32(sys::NFTA_SET_FLAGS, self.flags)
            .u32(sys::NFTA_SET_KEY_TYPE, self.datatype)
            .u32(sys::NFTA_SET_KEY_LEN, self.length);
        if self.flags & sys::NFT_SET_MAP != 0 {
            body.u32(sys::NFTA_SET_DATA_TYPE, sys::NFT_DATA_VERDICT);
        }
        if let Some(lengths) = self.concatenated {
            let mut fields = Attributes::default();
            for length in lengths {
                let mut field = Attributes::default();
                field.u32(1, length); // NFTA_SET_FIELD_LEN
                fields.nest(sys::NFTA_LIST_ELEM, &field);
            }
            let mut description = Attributes::default();
            description.nest(2, &fields); // NFTA_SET_DESC_CONCAT
            body.nest(sys::NFTA_SET_DESC, &description);
        }
        body.u32(sys::NFTA_SET_ID, id);
        body
    }
}

/// The name of an interface as a key: its type in nft's numbers (TYPE_IFNAME), and its length.
const IFNAME: (u32, u32) = (41, libc::IFNAMSIZ as u32);

/// `NFT_SET_CONCAT`, Linux 5.6.
const NFT_SET_CONCAT: u32 = 0x80;

fn element(element: &Element, whole: bool) -> Attributes {
    match element {
        Element::Verdict(address, ..) if !whole => key_element(&octets(*address)),
        Element::Number(number, _) if !whole => key_element(&number.to_be_bytes()),
        Element::Family(family, _) if !whole => key_element(&[nfproto(*family)]),
        Element::Family(family, lasts) => {
            let mut element = key_element(&[nfproto(*family)]);
            element.u64(sys::NFTA_SET_ELEM_TIMEOUT, millis(*lasts));
            element
        }
        Element::Interface(name) => key_element(&padded(name)),
        Element::InterfaceVerdict(name, _) if !whole => key_element(&padded(name)),
        Element::InterfaceVerdict(name, verdict) => {
            let mut element = key_element(&padded(name));
            element.nest(sys::NFTA_SET_ELEM_DATA, &verdict_data(verdict));
            element
        }
        Element::InterfaceAddress(name, address) => {
            key_element(&[&padded(name)[..], &octets(*address)].concat())
        }
        Element::InterfaceRange(name, first, last) => {
            let key = |address| [&padded(name)[..], &octets(address)].concat();
            let mut value = Attributes::default();
            value.bytes(sys::NFTA_DATA_VALUE, &key(*last));
            let mut element = key_element(&key(*first));
            // Each field is a range of its own here: that of the name has one name (`nft_pipapo_insert` of the kernel).
            element.nest(sys::NFTA_SET_ELEM_KEY_END, &value);
            element
        }
        Element::Address(address) => key_element(&octets(*address)),
        Element::Pair(address) => key_element(&octets(*address).repeat(2)),
        Element::Verdict(address, verdict, comment) => {
            let mut element = key_element(&octets(*address));
            element
                .nest(sys::NFTA_SET_ELEM_DATA, &verdict_data(verdict))
                .bytes(sys::NFTA_SET_ELEM_USERDATA, &comment_userdata(0, comment));
            element
        }
        Element::Number(number, comment) => {
            let mut element = key_element(&number.to_be_bytes());
            element.bytes(sys::NFTA_SET_ELEM_USERDATA, &comment_userdata(0, comment));
            element
        }
        Element::Range(..) => unreachable!("ranges are encoded as two elements, by their set"),
    }
}

/// A range is two elements: where it begins, and what comes behind it. Both have their key as the family writes it.
fn range_elements(elements: &mut Vec<Attributes>, first: IpAddr, last: IpAddr) {
    elements.push(key_element(&octets(first)));
    let behind = match last {
        IpAddr::V4(last) => last
            .to_bits()
            .checked_add(1)
            .map(|n| n.to_be_bytes().to_vec()),
        IpAddr::V6(last) => last
            .to_bits()
            .checked_add(1)
            .map(|n| n.to_be_bytes().to_vec()),
    };
    elements.extend(behind.map(|key| end_element(&key)));
}

fn key_element(key: &[u8]) -> Attributes {
    let mut value = Attributes::default();
    value.bytes(sys::NFTA_DATA_VALUE, key);
    let mut element = Attributes::default();
    element.nest(sys::NFTA_SET_ELEM_KEY, &value);
    element
}

fn end_element(key: &[u8]) -> Attributes {
    let mut element = key_element(key);
    element.u32(sys::NFTA_SET_ELEM_FLAGS, sys::NFT_SET_ELEM_INTERVAL_END);
    element
}

/// A verdict as data of an element or an immediate.
fn verdict_data(verdict: &Verdict) -> Attributes {
    let (code, chain) = match verdict {
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Jump(chain) => (sys::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (sys::NFT_GOTO, Some(chain)),
        Verdict::Return => (sys::NFT_RETURN, None),
        Verdict::Reset => unreachable!("it is an expression, of rules alone"),
    };
    let mut inner = Attributes::default();
    inner.u32(sys::NFTA_VERDICT_CODE, code.cast_unsigned());
    if let Some(chain) = chain {
        inner.text(sys::NFTA_VERDICT_CHAIN, chain);
    }
    let mut data = Attributes::default();
    data.nest(sys::NFTA_DATA_VERDICT, &inner);
    data
}

/// nft's user data with one entry: a comment. (libnftnl `udata.h`: type, length, value with its NUL.)
fn comment_userdata(kind: u8, comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(127);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let mut data = vec![kind, end as u8 + 1];
    data.extend_from_slice(&comment.as_bytes()[..end]);
    data.push(0);
    data
}

/// The name of an interface with all its bytes.
fn padded(name: &str) -> [u8; libc::IFNAMSIZ] {
    let mut padded = [0; libc::IFNAMSIZ];
    padded[..name.len()].copy_from_slice(name.as_bytes());
    padded
}

/// A family as packets have it in nf_tables.
fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => libc::NFPROTO_IPV4 as u8,
        Family::V6 => libc::NFPROTO_IPV6 as u8,
    }
}

/// A timeout as the kernel takes it. It rounds down.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}
