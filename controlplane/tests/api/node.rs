//! A node that is driven by hand: it says what it is told to say, and believes nothing unchecked.

use std::time::Duration;

use prost::Message as _;
use sallyport_proto::{
    Delta, Position,
    policy::NodePolicy,
    wire::{
        self, Ack, Hello, Nack, SyncRequest, SyncResponse, node_service_client::NodeServiceClient,
        sync_request::Message,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

/// A node with a stream.
pub(crate) struct FakeNode {
    name: String,
    /// What is in its kernel.
    pub(crate) has: Option<(Position, NodePolicy)>,
    outbound: mpsc::UnboundedSender<SyncRequest>,
    inbound: Streaming<SyncResponse>,
}

/// An update as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) base: Option<Position>,
    pub(crate) target: Position,
    pub(crate) parts: usize,
    delta: Delta,
}

impl FakeNode {
    /// Connects and says Hello.
    pub(crate) async fn connect(
        url: String,
        name: &str,
        has: Option<(Position, NodePolicy)>,
    ) -> FakeNode {
        let (outbound, requests) = mpsc::unbounded_channel();
        let hello = Hello {
            node_name: name.to_owned(),
            position: has.as_ref().map(|(position, _)| (*position).into()),
            version: "test".to_owned(),
        };
        outbound
            .send(SyncRequest {
                message: Some(Message::Hello(hello)),
            })
            .unwrap();
        let mut client = NodeServiceClient::connect(url).await.unwrap();
        let inbound = client
            .sync(UnboundedReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        FakeNode {
            name: name.to_owned(),
            has,
            outbound,
            inbound,
        }
    }

    /// The same node on a new stream; the old one stays open.
    pub(crate) async fn reconnect(&self, url: String) -> FakeNode {
        FakeNode::connect(url, &self.name, self.has.clone()).await
    }

    /// The next update, all its parts.
    pub(crate) async fn receive(&mut self) -> Received {
        let (mut changes, mut parts) = (Vec::new(), 0);
        loop {
            let part = timeout(Duration::from_secs(10), self.inbound.message()).await;
            let part = part
                .expect("an update comes")
                .expect("not an error")
                .expect("not the end");
            assert!(
                part.encoded_len() <= 1 << 20,
                "a part of {} bytes",
                part.encoded_len()
            );
            parts += 1;
            changes.extend(part.changes);
            if part.last {
                let position = |position: &wire::Position| Position::try_from(position).unwrap();
                return Received {
                    base: part.base.as_ref().map(position),
                    target: position(&part.target.unwrap()),
                    parts,
                    delta: Delta::try_from(&changes[..]).unwrap(),
                };
            }
        }
    }

    /// Puts an update into the kernel, strictly, without saying so.
    pub(crate) fn carry_out(&mut self, update: &Received) {
        let old = match (&update.base, self.has.take()) {
            (None, _) => NodePolicy::default(),
            (Some(base), Some((position, policy))) if position == *base => policy,
            (Some(base), has) => panic!("an update from {base}, and the node has {has:?}"),
        };
        let policy = old.applied(&update.delta, update.target.digest).unwrap();
        self.has = Some((update.target, policy));
    }

    pub(crate) fn ack(&self, position: Position) {
        let ack = Ack {
            position: Some(position.into()),
        };
        self.outbound
            .send(SyncRequest {
                message: Some(Message::Ack(ack)),
            })
            .unwrap();
    }

    pub(crate) fn nack(&self, target: Position, reason: &str, want_snapshot: bool) {
        let nack = Nack {
            target: Some(target.into()),
            position: self.has.as_ref().map(|(position, _)| (*position).into()),
            reason: reason.to_owned(),
            want_snapshot,
        };
        self.outbound
            .send(SyncRequest {
                message: Some(Message::Nack(nack)),
            })
            .unwrap();
    }

    /// Receives an update, carries it out, and says so.
    pub(crate) async fn follow(&mut self) -> Received {
        let update = self.receive().await;
        self.carry_out(&update);
        self.ack(update.target);
        update
    }

    /// Nothing comes for a while.
    pub(crate) async fn hears_nothing(&mut self) {
        let heard = timeout(Duration::from_millis(200), self.inbound.message()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    /// The stream ends with an error.
    pub(crate) async fn ends(&mut self) -> Status {
        loop {
            let message = timeout(Duration::from_secs(10), self.inbound.message()).await;
            match message.expect("the stream ends") {
                Ok(Some(_)) => {}
                Ok(None) => panic!("ended without a reason"),
                Err(status) => return status,
            }
        }
    }
}
