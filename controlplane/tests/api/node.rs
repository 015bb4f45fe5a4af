//! A node that is driven by hand: it says what it is told to say, and believes nothing unchecked.

use std::time::Duration;

use prost::Message as _;
use sallyport_policy::{Position, Update, Window};
use sallyport_proto::{
    Assembly,
    wire::{
        self, Ack, Enforcer, Hello, LeaveRequest, Nack, Pong, SyncRequest, SyncResponse,
        node_service_client::NodeServiceClient, sync_request::Message, sync_response,
    },
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Status, Streaming};

/// A node with a stream.
pub(crate) struct FakeNode {
    name: String,
    /// The versions that it holds.
    pub(crate) window: Window,
    outbound: mpsc::UnboundedSender<SyncRequest>,
    inbound: Streaming<SyncResponse>,
}

/// An update as it came.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) update: Update,
    pub(crate) parts: usize,
}

/// The names of the versions of a window.
fn names(window: &Window) -> Vec<wire::Position> {
    window.positions().into_iter().map(Into::into).collect()
}

impl FakeNode {
    /// Connects and says Hello.
    pub(crate) async fn connect(url: String, name: &str, window: Window) -> FakeNode {
        FakeNode::connect_leased(url, name, window, Duration::ZERO).await
    }

    /// The same, of a node that closes by itself when it gets no lease.
    pub(crate) async fn connect_leased(
        url: String,
        name: &str,
        window: Window,
        lease: Duration,
    ) -> FakeNode {
        let node = FakeNode::open(url, name, window).await;
        node.say_hello(lease);
        node
    }

    /// Opens a stream and says nothing yet.
    #[expect(
        clippy::disallowed_methods,
        reason = "a test sends a few messages, and must not wait for a reader"
    )]
    pub(crate) async fn open(url: String, name: &str, window: Window) -> FakeNode {
        let (outbound, requests) = mpsc::unbounded_channel();
        let mut client = NodeServiceClient::connect(url).await.unwrap();
        let inbound = client
            .sync(UnboundedReceiverStream::new(requests))
            .await
            .unwrap()
            .into_inner();
        FakeNode {
            name: name.to_owned(),
            window,
            outbound,
            inbound,
        }
    }

    /// Connects and says Hello as an enforcer that says which one it is.
    pub(crate) async fn enter(
        url: String,
        name: &str,
        window: Window,
        enforcer: &Enforcer,
    ) -> FakeNode {
        let node = FakeNode::open(url, name, window).await;
        node.say(Message::Hello(Hello {
            instance: enforcer.instance.clone(),
            start: enforcer.start,
            process: enforcer.process,
            ..node.hello(Duration::ZERO)
        }));
        node
    }

    pub(crate) fn say_hello(&self, lease: Duration) {
        self.say(Message::Hello(self.hello(lease)));
    }

    fn hello(&self, lease: Duration) -> Hello {
        Hello {
            node_name: self.name.clone(),
            window: names(&self.window),
            version: "test".to_owned(),
            dropped: Some(wire::WorkloadRanges::default()),
            lease_ms: u32::try_from(lease.as_millis()).unwrap(),
            ..Hello::default()
        }
    }

    /// Says that a node stops enforcing.
    pub(crate) async fn leave(url: String, name: &str) -> Result<(), Status> {
        let mut client = NodeServiceClient::connect(url).await.unwrap();
        let node_name = name.to_owned();
        client.leave(LeaveRequest { node_name }).await.map(drop)
    }

    /// The same node on a new stream; the old one stays open.
    pub(crate) async fn reconnect(&self, url: String) -> FakeNode {
        FakeNode::connect(url, &self.name, self.window.clone()).await
    }

    /// The next update, all its parts.
    pub(crate) async fn receive(&mut self) -> Received {
        let (mut assembly, mut parts) = (Assembly::default(), 0);
        loop {
            let response = timeout(Duration::from_secs(10), self.inbound.message()).await;
            let response = response
                .expect("an update comes")
                .expect("not an error")
                .expect("not the end");
            assert!(
                response.encoded_len() <= 1 << 20,
                "a part of {} bytes",
                response.encoded_len()
            );
            let Some(sync_response::Message::Update(part)) = response.message else {
                continue;
            };
            parts += 1;
            if let Some(update) = assembly.take(part).unwrap() {
                return Received { update, parts };
            }
        }
    }

    /// Puts an update into the kernel, strictly, without saying so.
    pub(crate) fn apply(&mut self, received: &Received) {
        self.window = self.window.updated(&received.update).unwrap();
    }

    /// The newest version that it holds.
    pub(crate) fn newest(&self) -> Position {
        self.window.newest().unwrap().position
    }

    /// Says what it holds.
    pub(crate) fn ack(&self) {
        self.say(Message::Ack(Ack {
            window: names(&self.window),
        }));
    }

    pub(crate) fn nack(&self, target: Position, reason: &str, want_snapshot: bool) {
        self.say(Message::Nack(Nack {
            target: Some(target.into()),
            window: names(&self.window),
            reason: reason.to_owned(),
            want_snapshot,
        }));
    }

    pub(crate) fn say(&self, message: Message) {
        let message = Some(message);
        self.outbound.send(SyncRequest { message }).unwrap();
    }

    /// Receives an update, carries it out, and says so.
    pub(crate) async fn follow(&mut self) -> Received {
        let received = self.receive().await;
        self.apply(&received);
        self.ack();
        received
    }

    /// The same, however long it takes for something to come.
    pub(crate) async fn follow_patiently(&mut self) {
        let Ok(Some(response)) = self.inbound.message().await else {
            return std::future::pending().await;
        };
        let Some(sync_response::Message::Update(part)) = response.message else {
            return;
        };
        let update = Assembly::default().take(part).unwrap();
        let update = update.expect("small updates come in one part");
        self.apply(&Received { update, parts: 1 });
        self.ack();
    }

    /// The number of the Ping that comes next.
    pub(crate) async fn pinged(&mut self) -> u64 {
        let response = timeout(Duration::from_secs(10), self.inbound.message()).await;
        match response.expect("a Ping comes").unwrap().unwrap().message {
            Some(sync_response::Message::Ping(ping)) => ping.number,
            other => panic!("{other:?}"),
        }
    }

    /// Answers a Ping.
    pub(crate) fn pong(&self, number: u64) {
        self.say(Message::Pong(Pong { number }));
    }

    /// Answers the Ping that comes next.
    pub(crate) async fn answer_ping(&mut self) {
        let number = self.pinged().await;
        self.pong(number);
    }

    /// The number of the lease that comes next.
    pub(crate) async fn leased(&mut self) -> u64 {
        let response = timeout(Duration::from_secs(10), self.inbound.message()).await;
        let response = response.expect("a lease comes").unwrap().unwrap();
        match response.message {
            Some(sync_response::Message::Lease(grant)) => grant.number,
            other => panic!("{other:?}"),
        }
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
