//! The steps that all conversations of a bed take together, and the observations. `cells` has the expectations.

use std::{
    collections::BTreeMap,
    io, thread,
    time::{Duration, Instant},
};

use sallyport_integration::{
    connections::{self, ConntrackEntry},
    deployment::PATIENCE,
};
use sallyport_testbed::{
    Mode,
    kernel_tests::{Failed, Outcome},
    probe::{Attempt, Conversation, Protocol, Side},
};

use crate::{
    bed::{Bed, FIRST_PORT, Places},
    cells::{Cell, Fate, Loss, side},
    report::table,
};

/// After what a kernel was told it is at rest: an acknowledgement may be late by 200 ms.
const AT_REST: Duration = Duration::from_millis(300);

/// The time within which a message arrives, or never does. A lost segment is sent again after 200 ms: which is counted.
const ARRIVES: Duration = Duration::from_millis(300);

/// A new connection is open within this time.
const CONNECTS: Duration = Duration::from_secs(1);

/// A conversation and what was wrong with it.
pub(crate) struct Talk {
    pub(crate) cell: Cell,
    pub(crate) wrong: Vec<String>,
    conversation: Conversation,
    nodes: Vec<usize>,
    /// The segments that were sent again before the verdict.
    sent_again: u32,
    steps: Vec<Step>,
}

/// The observation after one side had spoken.
struct Step {
    speaker: Side,
    arrived: bool,
    /// The error that the speaker's kernel returned.
    end: Option<io::ErrorKind>,
}

/// Plays every cell, and tells of all of them before it fails for some.
pub(crate) fn play(mode: Mode, places: Places) -> Outcome {
    let mut bed = Bed::make(mode, places)?;
    let mut talks = open(&bed)?;
    require_entries(&bed, &mut talks, "before the loss", |cell| {
        (cell.loss != Loss::Untracked).then_some(Side::Client)
    })?;
    bed.lose()?;
    require_entries(&bed, &mut talks, "after the loss", |cell| {
        cell.loss.is_survived().then_some(Side::Client)
    })?;
    speak_first(&mut talks);
    require_entries(&bed, &mut talks, "after the first word", Cell::begun_by)?;
    bed.isolate()?;
    for talk in &mut talks {
        talk.sent_again = talk.conversation.sent_again();
    }
    for turn in 0..3 {
        take_turns(&mut talks, turn);
    }
    for talk in &mut talks {
        match talk.cell.protocol {
            Protocol::Tcp => judge_connection(talk),
            _ => judge_datagrams(talk),
        }
    }
    connect_again(&mut talks);
    let (text, failed) = table(&talks);
    match failed {
        0 => {
            println!("{mode:?}, {places:?}:\n{text}");
            Ok(())
        }
        _ => Err(format!("{mode:?}, {places:?}: {failed} cells do not hold\n{text}").into()),
    }
}

/// Opens all conversations. Both sides have said something, and are silent now.
fn open(bed: &Bed) -> Result<Vec<Talk>, Failed> {
    let mut talks = Vec::new();
    for pair in &bed.pairs {
        for (number, cell) in Cell::of_pair(pair.loss, pair.policy)
            .into_iter()
            .enumerate()
        {
            let (client, server) = (&pair.client, &pair.server);
            let port = FIRST_PORT + number as u16;
            let opened = Conversation::open(client, server, cell.protocol, port, cell.family);
            let conversation =
                opened.map_err(|error| format!("{}, {}: {error}", cell.title(), cell.variant()))?;
            talks.push(Talk {
                cell,
                wrong: Vec::new(),
                conversation,
                nodes: pair.nodes.clone(),
                sent_again: 0,
                steps: Vec::new(),
            });
        }
    }
    for speaker in [Side::Client, Side::Server] {
        send(&mut talks, "hello ", |_| Some(speaker));
    }
    thread::sleep(AT_REST);
    Ok(talks)
}

/// Sends a word of one side of conversations, and waits until it arrives.
fn send(talks: &mut [Talk], word: &str, who: impl Fn(&Cell) -> Option<Side>) {
    for talk in talks.iter_mut() {
        if let Some(speaker) = who(&talk.cell) {
            talk.conversation.send(speaker, word);
        }
    }
    let deadline = Instant::now() + PATIENCE / 10;
    for talk in talks {
        let Some(speaker) = who(&talk.cell) else {
            continue;
        };
        while !talk.conversation.received(speaker.other()).contains(word) {
            if Instant::now() > deadline {
                talk.wrong
                    .push(format!("the {}'s {word:?} does not arrive", side(speaker)));
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn speak_first(talks: &mut [Talk]) {
    send(talks, "first ", |cell| cell.first);
    thread::sleep(AT_REST);
}

/// Compares conntrack's entries with the expected ones: the client of each, if there is one.
fn require_entries(
    bed: &Bed,
    talks: &mut [Talk],
    when: &str,
    expected: impl Fn(&Cell) -> Option<Side>,
) -> Outcome {
    let mut entries = BTreeMap::new();
    for node in 0..bed.deployment.bed.nodes() {
        entries.insert(
            node,
            connections::entries(bed.deployment.bed.node(node).netns())?,
        );
    }
    for talk in talks {
        let protocol = match talk.cell.protocol {
            Protocol::Tcp => libc::IPPROTO_TCP as u8,
            _ => libc::IPPROTO_UDP as u8,
        };
        let begun_by = |begins: Side| ConntrackEntry {
            protocol,
            from: talk.conversation.address(begins),
            to: talk.conversation.address(begins.other()),
        };
        let expected = expected(&talk.cell);
        for node in &talk.nodes {
            let entries = &entries[node];
            let found: Vec<Side> = [Side::Client, Side::Server]
                .into_iter()
                .filter(|&side| entries.contains(&begun_by(side)))
                .collect();
            if found != Vec::from_iter(expected) {
                let words = |begun: &[Side]| match begun {
                    [] => "no entry".to_owned(),
                    begun => format!(
                        "an entry begun by the {}",
                        begun
                            .iter()
                            .map(|&one| side(one))
                            .collect::<Vec<_>>()
                            .join(" and the ")
                    ),
                };
                let (found, expected) = (words(&found), words(&Vec::from_iter(expected)));
                talk.wrong
                    .push(format!("{when} conntrack has {found}, not {expected}"));
                break;
            }
        }
    }
    Ok(())
}

/// Has one side of each conversation speak, the sides in turn, and notes what comes of it.
fn take_turns(talks: &mut [Talk], turn: usize) {
    let word = ["one ", "two ", "three "][turn];
    let speaker = |cell: &Cell| match turn % 2 {
        0 => cell.then,
        _ => cell.then.other(),
    };
    for talk in talks.iter_mut() {
        talk.conversation.send(speaker(&talk.cell), word);
    }
    thread::sleep(ARRIVES);
    for talk in talks {
        let speaker = speaker(&talk.cell);
        talk.steps.push(Step {
            speaker,
            arrived: talk.conversation.received(speaker.other()).contains(word),
            end: talk.conversation.end(speaker).map(io::Error::kind),
        });
    }
}

fn fate(talk: &mut Talk) -> Fate {
    let steps = &talk.steps;
    let is_reset = |step: &Step| step.end == Some(io::ErrorKind::ConnectionReset);
    if steps.iter().all(|step| step.arrived && step.end.is_none()) {
        return match talk.conversation.sent_again() - talk.sent_again {
            0 => Fate::GoesOn,
            count => Fate::Mixed(format!("goes on, with {count} segments sent again")),
        };
    }
    if steps.iter().all(|step| !step.arrived) {
        if steps.iter().all(is_reset) {
            return Fate::Reset;
        }
        if steps.iter().all(|step| step.end.is_none()) {
            return Fate::Silence;
        }
    }
    Fate::Mixed(seen(steps))
}

fn seen(steps: &[Step]) -> String {
    let words = steps.iter().map(|step| {
        let arrived = match step.arrived {
            true => "arrives",
            false => "does not arrive",
        };
        let end = step
            .end
            .map(|kind| format!(" (error: {kind})"))
            .unwrap_or_default();
        format!("a message of the {} {arrived}{end}", side(step.speaker))
    });
    words.collect::<Vec<_>>().join(", ")
}

fn judge_connection(talk: &mut Talk) {
    let (expected, fate) = (talk.cell.expected(), fate(talk));
    if !expected.is(&fate) {
        talk.wrong
            .push(format!("the connection is {expected}: {fate}"));
    }
}

fn judge_datagrams(talk: &mut Talk) {
    let expected = talk.cell.datagrams();
    let differs = expected
        .iter()
        .zip(&talk.steps)
        .any(|(expected, step)| expected.is_some_and(|expected| expected != step.arrived));
    if differs {
        let expected = expected.map(|one| match one {
            Some(true) => "received",
            Some(false) => "not received",
            None => "either",
        });
        let seen = seen(&talk.steps);
        talk.wrong.push(format!(
            "datagrams are to be {}: {seen}",
            expected.join(", ")
        ));
    }
}

/// Opens a new connection beside each, all of them at once.
fn connect_again(talks: &mut [Talk]) {
    let mut attempts: Vec<(&mut Talk, io::Result<Attempt>)> = talks
        .iter_mut()
        .filter(|talk| talk.cell.protocol == Protocol::Tcp)
        .map(|talk| {
            let attempt = talk.conversation.connect_again();
            (talk, attempt)
        })
        .collect();
    thread::sleep(CONNECTS - Duration::from_millis(50));
    for (talk, attempt) in &mut attempts {
        let seen = match attempt {
            Ok(attempt) => match attempt.is_open() {
                Ok(Some(())) => "is open".to_owned(),
                Ok(None) => "is unanswered".to_owned(),
                Err(error) => format!("is refused: {error}"),
            },
            Err(error) => format!("cannot be begun: {error}"),
        };
        let expected = match talk.cell.connects_again() {
            true => "is open",
            false => "is unanswered",
        };
        if seen != expected {
            talk.wrong
                .push(format!("a new connection {seen}; expected: {expected}"));
        }
    }
}
