//! Commands as netlink messages in one nf_tables batch. rustables builds tables and chains. Sets, elements and rules
//! are encoded here and spliced into the same batch, because rustables cannot express them in full.
//!
//! Formats: `linux/netfilter/nf_tables.h`; byte layout of netlink: `man 7 netlink`, `linux/netlink.h`.

#![expect(
    clippy::cast_possible_truncation,
    reason = "constants and lengths of netlink: `int` in the kernel's headers, 8 to 32 bits in a message"
)]

use rustables::{
    Batch, Chain, ChainPolicy, ChainType, Hook, HookClass, MsgType, ProtocolFamily, Table,
    sys::{
        self, NFT_MSG_DELCHAIN, NFT_MSG_DELRULE, NFT_MSG_DELSET, NFT_MSG_DELSETELEM,
        NFT_MSG_NEWRULE, NFT_MSG_NEWSET, NFT_MSG_NEWSETELEM,
    },
};

use crate::{
    command::{self, Base, Command, Element, Rule, SetKind, TableFamily, TableName},
    encode::{attributes::Attributes, expressions::Expressions},
};
use sets::{Anonymous, comment_userdata, element, range_elements};

pub mod attributes;
mod expressions;
mod sets;
mod spelling;

pub(crate) use sets::SetDescription;
pub use spelling::{spell, spelling};

/// Length of a netlink header with the nfgenmsg that follows it.
const HEADER: usize = 20;

/// The most bytes of elements in one message. An attribute's length has 16 bits, and of a longer attribute the kernel
/// would see a part. More elements go into several messages.
const ELEMENTS_MAX: usize = 60_000;

/// `NFT_TABLE_F_PERSIST`, of Linux 6.9. The headers that many systems build with are older.
pub const TABLE_PERSISTS: u32 = 0x4;

/// `NFT_TABLE_F_OWNER` and [`TABLE_PERSISTS`]. When the owner dies only `NFT_TABLE_F_PERSIST` is left.
pub const TABLE_OWNED: u32 = 0x2 | TABLE_PERSISTS;

/// A batch as the kernel takes it.
#[derive(Debug)]
pub struct Encoded {
    /// The messages, from batch begin to batch end.
    pub bytes: Vec<u8>,
    /// The command that each message belongs to. Message `i` has sequence number `i + 1`; batch begin has 0. See
    /// [`number_from`](Self::number_from).
    pub origins: Vec<usize>,
}

impl Encoded {
    /// The sequence number of the message that asks for an acknowledgement. The message is that of the last command,
    /// before the batch's end.
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

/// Encodes commands to a table as one batch. With a generation, the kernel takes the batch only if its ruleset is still
/// of that generation.
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
    /// The offset at which the last message begins.
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

    /// Has the last command ask for the batch's only acknowledgement. One for each command would overflow the socket,
    /// and kernels before 6.10 give none for the end.
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

    /// Takes one message over from a rustables batch, without the batch's begin, its end and its request for an
    /// acknowledgement.
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
            // NFTNL_UDATA_SET_KEYBYTEORDER, four bytes. nft lists names backwards where the set does not have the order
            // of the host.
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
            // A deletion names an element by its key alone.
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

    /// Adds a rule before another, or after all others.
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
