//! Streams between nodes and the control plane. A stream loses nothing and keeps its order, until it breaks: then each
//! way loses what has not arrived by some moment, and each end learns of it when it does. So messages of a stream that
//! its node gave up may arrive after those of the next one.

use rand::{RngExt, rngs::StdRng};

use crate::{
    Time, milliseconds,
    schedule::{Event, Schedule},
};

/// Counts streams.
pub(crate) type StreamId = usize;

/// One way of a stream.
#[derive(Clone, Copy, Debug, Default)]
struct Way {
    /// When the last message arrives.
    last: Time,
    /// When it was cut: what arrives later is lost.
    cut: Option<Time>,
}

/// A stream.
#[derive(Clone, Copy, Debug)]
struct Stream {
    node: usize,
    to_control: Way,
    to_node: Way,
}

/// Every stream that there ever was.
#[derive(Debug)]
pub(crate) struct Network {
    streams: Vec<Stream>,
    /// How likely a message is slow, in percent.
    slow: u32,
}

impl Network {
    /// A network in which so many messages in a hundred are slow.
    pub(crate) fn new(slow: u32) -> Network {
        Network {
            streams: Vec::new(),
            slow,
        }
    }

    /// A new stream of a node.
    pub(crate) fn open(&mut self, node: usize) -> StreamId {
        self.streams.push(Stream {
            node,
            to_control: Way::default(),
            to_node: Way::default(),
        });
        self.streams.len() - 1
    }

    /// The node of a stream.
    pub(crate) fn node(&self, stream: StreamId) -> usize {
        self.streams[stream].node
    }

    /// From now on no message is slow.
    pub(crate) fn calm(&mut self) {
        self.slow = 0;
    }

    /// The time that a message takes.
    pub(crate) fn latency(&self, rng: &mut StdRng) -> Time {
        if rng.random_range(0..100) < self.slow {
            let most = if rng.random_bool(0.2) { 600 } else { 60 };
            return rng.random_range(1..milliseconds(most));
        }
        rng.random_range(50..milliseconds(2))
    }

    /// Sends a message to a node.
    pub(crate) fn send_to_node(
        &mut self,
        stream: StreamId,
        bytes: Vec<u8>,
        schedule: &mut Schedule,
        rng: &mut StdRng,
    ) {
        let latency = self.latency(rng);
        let way = &mut self.streams[stream].to_node;
        if let Some(time) = way.send(schedule.now, latency) {
            schedule.at(time, 0, Event::ToNode(stream, bytes));
        }
    }

    /// Sends a message to the control plane.
    pub(crate) fn send_to_control(
        &mut self,
        stream: StreamId,
        bytes: Vec<u8>,
        schedule: &mut Schedule,
        rng: &mut StdRng,
    ) {
        let latency = self.latency(rng);
        let way = &mut self.streams[stream].to_control;
        if let Some(time) = way.send(schedule.now, latency) {
            schedule.at(time, 0, Event::ToControl(stream, bytes));
        }
    }

    /// Whether what arrives at a node now is not lost.
    pub(crate) fn reaches_node(&self, stream: StreamId, now: Time) -> bool {
        self.streams[stream].to_node.reaches(now)
    }

    /// Whether what arrives at the control plane now is not lost.
    pub(crate) fn reaches_control(&self, stream: StreamId, now: Time) -> bool {
        self.streams[stream].to_control.reaches(now)
    }

    /// Every stream breaks, and what is under way is lost.
    pub(crate) fn cut_all(&mut self, now: Time) {
        for stream in &mut self.streams {
            stream.to_node.cut(now);
            stream.to_control.cut(now);
        }
    }

    /// The stream breaks. Messages under way to either end may arrive for so long.
    pub(crate) fn cut(&mut self, stream: StreamId, to_node: Time, to_control: Time) {
        self.streams[stream].to_node.cut(to_node);
        self.streams[stream].to_control.cut(to_control);
    }
}

impl Way {
    /// When a message that is sent now arrives.
    fn send(&mut self, now: Time, latency: Time) -> Option<Time> {
        if self.cut.is_some() {
            return None;
        }
        self.last = self.last.max(now + latency);
        Some(self.last)
    }

    fn reaches(&self, now: Time) -> bool {
        self.cut.is_none_or(|cut| now <= cut)
    }

    fn cut(&mut self, at: Time) {
        self.cut = Some(self.cut.map_or(at, |cut| cut.min(at)));
    }
}
