//! Batches. Each command changes the next generation of the table, or is refused with the kernel's error number. A
//! refused batch leaves nothing. This module judges no packets.

use std::sync::Arc;

use nix::errno::Errno;
use sallyport_nft::{
    command::{Base, Command, Element, Family, SetKind, Verdict},
    encode::{TABLE_OWNED, TABLE_PERSISTS},
};

use crate::{
    Process, RulesetGeneration,
    compile::{Rule, Target, name_key, nfproto, number},
    elements::{Data, Elements, Key, LiveElement},
    table::{Chain, ChainId, Rules, Set, SetId, Table},
    validate,
};

/// `NFT_NAME_MAXLEN`, less the NUL.
const NAME_MAX: usize = 255;

/// The reversal of one change.
enum Undo {
    Table(Option<u32>, Option<Process>),
    AddedChain(ChainId),
    DeletedChain(ChainId),
    AddedSet(SetId),
    DeletedSet(SetId),
    NewVersion(ChainId),
    Version(ChainId, Rules),
    RuleDied(Arc<Rule>),
    /// The references of a rule were counted (`true`), or counted off.
    References(Arc<Rule>, bool),
    AddedElement(SetId, Key),
    RemovedElement(SetId, Key, LiveElement),
}

/// A batch under way.
struct Batch<'a> {
    table: &'a mut Table,
    next: RulesetGeneration,
    speaker: Process,
    undo: Vec<Undo>,
    /// Whether jumps may nest deeper than before.
    deeper: bool,
}

impl Table {
    /// Commits commands as generation `next`, all or none. Returns whether the commands changed anything. An error
    /// names the command that was refused.
    pub(super) fn commit(
        &mut self,
        commands: &[Command],
        next: RulesetGeneration,
        speaker: Process,
    ) -> Result<bool, (usize, Errno)> {
        let mut batch = Batch {
            table: self,
            next,
            speaker,
            undo: Vec::new(),
            deeper: false,
        };
        batch.all(commands, false)?;
        if batch.deeper && validate::is_too_deep(batch.table) {
            // The kernel does the same: after going back to the start it checks after every command to find the refused
            // one.
            batch.roll_back();
            batch.all(commands, true)?;
        }
        Ok(!batch.undo.is_empty())
    }
}

impl Batch<'_> {
    fn all(&mut self, commands: &[Command], validate: bool) -> Result<(), (usize, Errno)> {
        for (index, command) in commands.iter().enumerate() {
            let mut result = self.command(command);
            let leads = matches!(
                command,
                Command::AddRule(..) | Command::InsertRule(..) | Command::AddElements(..)
            );
            if validate && leads && result.is_ok() && validate::is_too_deep(self.table) {
                result = Err(Errno::EMLINK);
            }
            if let Err(errno) = result {
                self.roll_back();
                return Err((index, errno));
            }
        }
        Ok(())
    }

    fn command(&mut self, command: &Command) -> Result<(), Errno> {
        match command {
            Command::AddTable { owned } => return self.add_table(*owned),
            Command::AddElements(_, _, none) | Command::DeleteElements(_, _, none)
                if none.is_empty() =>
            {
                return Ok(());
            }
            _ => {}
        }
        if name(command).is_some_and(|name| name.len() > NAME_MAX) {
            return Err(Errno::ERANGE);
        }
        self.table.flags.ok_or(Errno::ENOENT)?;
        self.may_touch()?;
        match command {
            Command::AddTable { .. } => unreachable!("it was done above"),
            Command::DeleteTable => self.delete_table(),
            Command::AddSet { name, kind, .. } => self.add_set(name, *kind),
            Command::DeleteSet(name) => {
                let id = self.set(name)?;
                if self.table.set(id).uses > 0 {
                    return Err(Errno::EBUSY);
                }
                self.delete_set(id);
                Ok(())
            }
            Command::FlushSet(name) => {
                let id = self.set(name)?;
                self.flush_set(id);
                Ok(())
            }
            Command::AddChain { name, base, .. } => self.add_chain(name, *base),
            Command::FlushChain(name) => {
                let id = self.chain(name)?;
                self.delete_rules(id);
                Ok(())
            }
            Command::DeleteChain(name) => self.delete_chain(name),
            Command::AddRule(chain, rule) => {
                let id = self.chain(chain)?;
                let rule = Rule::new(rule, self.table, self.next)?;
                self.add_rule(id, Arc::new(rule));
                Ok(())
            }
            Command::InsertRule(chain, rule, before) => {
                let id = self.chain(chain)?;
                let rule = Rule::new(rule, self.table, self.next)?;
                self.insert_rule(id, Arc::new(rule), *before)
            }
            Command::DeleteRule(chain, handle) => {
                let id = self.chain(chain)?;
                self.delete_rule(id, *handle)
            }
            Command::AddElements(name, kind, elements) => {
                let id = self.set(name)?;
                let mut all = elements.iter();
                all.try_for_each(|element| self.add_element(id, *kind, element))
            }
            Command::DeleteElements(name, kind, elements) => {
                let id = self.set(name)?;
                let mut all = elements.iter();
                all.try_for_each(|element| self.delete_element(id, *kind, element))
            }
        }
    }

    /// Refuses a change of a table whose owner is another process.
    fn may_touch(&self) -> Result<(), Errno> {
        match self.table.owner {
            Some(owner) if owner != self.speaker => Err(Errno::EPERM),
            _ => Ok(()),
        }
    }

    fn set(&self, name: &str) -> Result<SetId, Errno> {
        self.table.set_id(name).ok_or(Errno::ENOENT)
    }

    fn chain(&self, name: &str) -> Result<ChainId, Errno> {
        let id = self.table.chain_ids.get(name);
        id.copied().ok_or(Errno::ENOENT)
    }

    fn add_table(&mut self, owned: bool) -> Result<(), Errno> {
        let (flags, owner) = (self.table.flags, self.table.owner);
        let speaker = owned.then_some(self.speaker);
        match flags {
            None => {
                self.table.flags = Some(if owned { TABLE_OWNED } else { 0 });
                self.table.owner = speaker;
            }
            Some(flags) => {
                self.may_touch()?;
                if !owned || owner.is_some() {
                    return Ok(());
                }
                // Only a table that had an owner and lost it can be taken over.
                if flags & TABLE_PERSISTS == 0 {
                    return Err(Errno::EOPNOTSUPP);
                }
                self.table.flags = Some(TABLE_OWNED);
                self.table.owner = speaker;
            }
        }
        self.undo.push(Undo::Table(flags, owner));
        Ok(())
    }

    fn delete_table(&mut self) -> Result<(), Errno> {
        let chains: Vec<ChainId> = self.table.chain_ids.values().copied().collect();
        let sets: Vec<SetId> = self.table.set_ids.values().copied().collect();
        chains.iter().for_each(|&id| self.delete_rules(id));
        sets.into_iter().for_each(|id| self.delete_set(id));
        chains.into_iter().for_each(|id| self.chain_goes(id));
        self.undo
            .push(Undo::Table(self.table.flags, self.table.owner));
        (self.table.flags, self.table.owner) = (None, None);
        Ok(())
    }

    fn add_set(&mut self, name: &str, kind: SetKind) -> Result<(), Errno> {
        if matches!(
            kind,
            SetKind::InterfaceAddresses(_) | SetKind::InterfaceVerdicts
        ) {
            // Only tables of family bridge have sets of these kinds in this model.
            return Err(Errno::EOPNOTSUPP);
        }
        if let Some(id) = self.table.set_id(name) {
            return if self.table.set(id).kind == kind {
                Ok(())
            } else {
                Err(Errno::EEXIST)
            };
        }
        let id = self.table.insert_set(Set {
            name: name.to_owned(),
            kind,
            died: RulesetGeneration::MAX,
            elements: Elements::new(matches!(
                kind,
                SetKind::Ranges(_) | SetKind::InterfaceRanges(_)
            )),
            uses: 0,
            targets: Default::default(),
        });
        self.table.set_ids.insert(name.to_owned(), id);
        self.undo.push(Undo::AddedSet(id));
        Ok(())
    }

    fn flush_set(&mut self, id: SetId) {
        for (first, last) in self.table.set(id).elements.keys() {
            self.remove_element(id, first, last)
                .expect("it was just listed");
        }
    }

    /// Packets with an old rule still look into the set. The elements of a map go with it, those of a set do not.
    fn delete_set(&mut self, id: SetId) {
        if matches!(self.table.set(id).kind, SetKind::Verdicts(_)) {
            self.flush_set(id);
        }
        let next = self.next;
        let set = self.table.set_mut(id);
        set.died = next;
        let name = set.name.clone();
        self.table.set_ids.remove(&name);
        self.undo.push(Undo::DeletedSet(id));
    }

    fn add_chain(&mut self, name: &str, base: Option<Base>) -> Result<(), Errno> {
        if name.is_empty() {
            return Err(Errno::ERANGE);
        }
        if let Ok(id) = self.chain(name) {
            // A hook does not change once it is made. A chain without a hook gets none later.
            return match (base, self.table.chain(id).base) {
                (Some(_), None) => Err(Errno::EOPNOTSUPP),
                (Some(wanted), Some(there)) if wanted != there => Err(Errno::EOPNOTSUPP),
                _ => Ok(()),
            };
        }
        let id = self.table.insert_chain(Chain {
            name: name.to_owned(),
            base,
            born: self.next,
            died: RulesetGeneration::MAX,
            versions: Vec::new(),
            uses: 0,
        });
        self.table.chain_ids.insert(name.to_owned(), id);
        self.undo.push(Undo::AddedChain(id));
        Ok(())
    }

    fn delete_chain(&mut self, name: &str) -> Result<(), Errno> {
        let id = self.chain(name)?;
        // The rules of the chain go with it, but their references count. A chain that leads to itself must be flushed
        // first.
        if self.table.chain(id).uses > 0 {
            return Err(Errno::EBUSY);
        }
        self.delete_rules(id);
        self.chain_goes(id);
        Ok(())
    }

    fn chain_goes(&mut self, id: ChainId) {
        let next = self.next;
        let chain = self.table.chain_mut(id);
        chain.died = next;
        let name = chain.name.clone();
        self.table.chain_ids.remove(&name);
        self.undo.push(Undo::DeletedChain(id));
    }

    fn add_rule(&mut self, id: ChainId, rule: Arc<Rule>) {
        let end = self.table.chain(id).latest().len();
        self.put_rule(id, rule, end);
    }

    fn insert_rule(&mut self, id: ChainId, rule: Arc<Rule>, before: u64) -> Result<(), Errno> {
        let mut rules = self.table.chain(id).latest().iter();
        let at = rules.position(|rule| rule.handle == before);
        self.put_rule(id, rule, at.ok_or(Errno::ENOENT)?);
        Ok(())
    }

    fn put_rule(&mut self, id: ChainId, rule: Arc<Rule>, at: usize) {
        self.table.handles = rule.handle;
        self.deeper |= rule.chains().next().is_some() || rule.sets().next().is_some();
        self.count(&rule, true);
        let mut rules = self.table.chain(id).latest().to_vec();
        rules.insert(at, rule);
        self.set_rules(id, rules);
    }

    fn delete_rules(&mut self, id: ChainId) {
        let rules = self.table.chain(id).latest().to_vec();
        if rules.is_empty() {
            return;
        }
        for rule in rules {
            self.count(&rule, false);
            rule.dies(self.next);
            self.undo.push(Undo::RuleDied(rule));
        }
        self.set_rules(id, Vec::new());
    }

    fn delete_rule(&mut self, id: ChainId, handle: u64) -> Result<(), Errno> {
        let mut rules = self.table.chain(id).latest().to_vec();
        let at = rules.iter().position(|rule| rule.handle == handle);
        let rule = rules.remove(at.ok_or(Errno::ENOENT)?);
        self.count(&rule, false);
        rule.dies(self.next);
        self.undo.push(Undo::RuleDied(rule));
        self.set_rules(id, rules);
        Ok(())
    }

    fn set_rules(&mut self, id: ChainId, rules: Vec<Arc<Rule>>) {
        let (next, rules) = (self.next, Arc::new(rules));
        let versions = &mut self.table.chain_mut(id).versions;
        let undo = match versions.last_mut() {
            Some((from, there)) if *from == next => {
                Undo::Version(id, std::mem::replace(there, rules))
            }
            _ => {
                versions.push((next, rules));
                Undo::NewVersion(id)
            }
        };
        self.undo.push(undo);
    }

    fn count(&mut self, rule: &Arc<Rule>, up: bool) {
        self.table.count(rule, up);
        self.undo.push(Undo::References(rule.clone(), up));
    }

    fn add_element(&mut self, id: SetId, kind: SetKind, element: &Element) -> Result<(), Errno> {
        let (first, last) = self.keys(id, kind, element)?;
        let data = match element {
            Element::Verdict(_, Verdict::Reset, _) => return Err(Errno::EINVAL),
            Element::Verdict(_, verdict, _) => Data::Verdict(self.table.target(verdict)?),
            Element::Number(_, comment) => Data::Comment(comment.clone()),
            _ => Data::None,
        };
        let lasts = match element {
            Element::Family(_, lasts) => Some(*lasts),
            _ => None,
        };
        let chain = target(&data).and_then(Target::chain);
        let now = self.table.clock;
        let elements = &mut self.table.set_mut(id).elements;
        if elements.add(first, last, data, lasts, now, self.next)? {
            self.undo.push(Undo::AddedElement(id, first));
            if let Some(chain) = chain {
                self.deeper = true;
                self.table.leads(id, chain, true);
            }
        }
        Ok(())
    }

    fn delete_element(&mut self, id: SetId, kind: SetKind, element: &Element) -> Result<(), Errno> {
        let (first, last) = self.keys(id, kind, element)?;
        self.remove_element(id, first, last)
    }

    fn remove_element(&mut self, id: SetId, first: Key, last: Key) -> Result<(), Errno> {
        let elements = &mut self.table.set_mut(id).elements;
        let entry = elements.remove(first, last, self.next)?;
        if let Some(chain) = target(&entry.data).and_then(Target::chain) {
            self.table.leads(id, chain, false);
        }
        self.undo.push(Undo::RemovedElement(id, first, entry));
        Ok(())
    }

    /// The keys that an element begins and ends with. The kernel sees only the length of a key. An element of another
    /// kind is refused here even so, because no caller intends it.
    fn keys(&self, id: SetId, kind: SetKind, element: &Element) -> Result<(Key, Key), Errno> {
        if self.table.set(id).kind != kind {
            return Err(Errno::EINVAL);
        }
        let single = |address, family| {
            let key = number(address);
            (Family::of(address) == family).then_some((key, key))
        };
        let keys = match (kind, element) {
            (SetKind::Addresses(family), Element::Address(address))
            | (SetKind::Pairs(family), Element::Pair(address))
            | (SetKind::Verdicts(family), Element::Verdict(address, ..)) => {
                single(*address, family)
            }
            (SetKind::Ranges(family), Element::Range(first, last)) => {
                let fits = Family::of(*first) == family && Family::of(*last) == family;
                (fits && first <= last).then(|| (number(*first), number(*last)))
            }
            (SetKind::InterfaceRanges(family), Element::InterfaceRange(name, first, last)) => {
                let fits = Family::of(*first) == family && Family::of(*last) == family;
                let port = name_key(name).map(|key| key.number);
                let key = |port, address| Key {
                    port,
                    ..number(address)
                };
                let keys = port.map(|port| (key(port, *first), key(port, *last)));
                keys.filter(|_| fits && first <= last)
            }
            (SetKind::Numbers, Element::Number(number, _)) => {
                let key = Key::from(u128::from(*number));
                Some((key, key))
            }
            // To the kernel a timeout of 0 is none.
            (SetKind::Families, Element::Family(_, lasts)) if lasts.is_zero() => None,
            (SetKind::Families, Element::Family(family, _)) => {
                Some((nfproto(*family), nfproto(*family)))
            }
            (SetKind::Interfaces, Element::Interface(name)) => name_key(name).map(|key| (key, key)),
            _ => None,
        };
        keys.ok_or(Errno::EINVAL)
    }

    fn roll_back(&mut self) {
        while let Some(undo) = self.undo.pop() {
            self.table.undo(undo, self.next);
        }
        self.deeper = false;
    }
}

impl Table {
    fn undo(&mut self, undo: Undo, next: RulesetGeneration) {
        match undo {
            Undo::Table(flags, owner) => (self.flags, self.owner) = (flags, owner),
            Undo::AddedChain(id) => {
                // A packet that found an element of the refused batch goes to the chain, and finds no rules.
                let chain = self.chain_mut(id);
                (chain.base, chain.died) = (None, next);
                chain.versions.clear();
                let name = chain.name.clone();
                self.chain_ids.remove(&name);
            }
            Undo::DeletedChain(id) => {
                let chain = self.chain_mut(id);
                chain.died = RulesetGeneration::MAX;
                let name = chain.name.clone();
                self.chain_ids.insert(name, id);
            }
            Undo::AddedSet(id) => {
                let set = self.sets[id].take().expect("it was added");
                self.set_ids.remove(&set.name);
            }
            Undo::DeletedSet(id) => {
                let set = self.set_mut(id);
                set.died = RulesetGeneration::MAX;
                let name = set.name.clone();
                self.set_ids.insert(name, id);
            }
            Undo::NewVersion(id) => {
                self.chain_mut(id).versions.pop();
            }
            Undo::Version(id, rules) => {
                let versions = &mut self.chain_mut(id).versions;
                versions.last_mut().expect("it was replaced").1 = rules;
            }
            Undo::RuleDied(rule) => rule.dies(RulesetGeneration::MAX),
            Undo::References(rule, up) => self.count(&rule, !up),
            Undo::AddedElement(id, key) => {
                let entry = self.set_mut(id).elements.unadd(key, next);
                if let Some(chain) = target(&entry.data).and_then(Target::chain) {
                    self.leads(id, chain, false);
                }
            }
            Undo::RemovedElement(id, key, entry) => {
                if let Some(chain) = target(&entry.data).and_then(Target::chain) {
                    self.leads(id, chain, true);
                }
                self.set_mut(id).elements.unremove(key, entry, next);
            }
        }
    }

    /// Counts the references of a rule, or counts them off.
    fn count(&mut self, rule: &Rule, up: bool) {
        for chain in rule.chains() {
            step(&mut self.chain_mut(chain).uses, up);
        }
        for set in rule.sets() {
            step(&mut self.set_mut(set).uses, up);
        }
    }

    /// Counts that an element of a map leads to a chain, or counts the element off.
    fn leads(&mut self, set: SetId, chain: ChainId, up: bool) {
        step(&mut self.chain_mut(chain).uses, up);
        let targets = &mut self.set_mut(set).targets;
        let count = targets.entry(chain).or_default();
        step(count, up);
        if *count == 0 {
            targets.remove(&chain);
        }
    }
}

fn step(count: &mut usize, up: bool) {
    if up {
        *count += 1;
    } else {
        *count -= 1;
    }
}

fn target(data: &Data) -> Option<Target> {
    match data {
        Data::Verdict(target) => Some(*target),
        Data::None | Data::Comment(_) => None,
    }
}

/// The object that a command names.
fn name(command: &Command) -> Option<&str> {
    match command {
        Command::AddTable { .. } | Command::DeleteTable => None,
        Command::AddSet { name, .. } | Command::AddChain { name, .. } => Some(name),
        Command::DeleteSet(name)
        | Command::FlushSet(name)
        | Command::FlushChain(name)
        | Command::DeleteChain(name)
        | Command::AddRule(name, _)
        | Command::InsertRule(name, ..)
        | Command::DeleteRule(name, _)
        | Command::AddElements(name, ..)
        | Command::DeleteElements(name, ..) => Some(name),
    }
}
