//! The process of the simulated enforcers: executes the commands on standard input, one a line, and answers each on
//! standard output. Decides nothing about measurements.

use std::{io::BufRead as _, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use prost::Message as _;
use sallyport_proto::wire::node_service_client::NodeServiceClient;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

use crate::{
    board::{Board, Counts},
    node::Node,
};

/// The bytes before a message of gRPC: a flag and a length, in an HTTP/2 frame with a header of nine bytes.
const FRAME: usize = 5 + 9;

/// The pause before a stream that could not be opened is tried again.
const RETRY: Duration = Duration::from_millis(200);

/// The time that acknowledgements may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// A command for the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Open every node's stream, all at once.
    Connect,
    /// Break every node's connection.
    Disconnect,
    /// Answer once every node has acknowledged a revision.
    Await(u64),
    /// Tell what was heard.
    Count,
    /// Open as many plain connections as there are nodes; answer messages of so many bytes with one byte.
    Raw(SocketAddr, usize),
    /// Close those.
    EndRaw,
}

/// The answer of the process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done,
    Counts(Counts),
}

/// The nodes of this process.
struct Fleet {
    server: Endpoint,
    nodes: Vec<Arc<tokio::sync::Mutex<Node>>>,
    board: Arc<Board>,
}

/// Runs until standard input ends.
pub(crate) fn run(server: String, first: usize, count: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let fleet = Fleet {
        server: Endpoint::from_shared(server)?.tcp_nodelay(true),
        nodes: (first..first + count)
            .map(|number| {
                let node = Node::new(crate::cluster::node_name(number));
                Arc::new(tokio::sync::Mutex::new(node))
            })
            .collect(),
        board: Arc::new(Board::new(count)),
    };
    let (mut streams, mut raw) = (JoinSet::new(), JoinSet::new());
    for line in std::io::stdin().lock().lines() {
        let command: Command = serde_json::from_str(&line?).context("a command")?;
        let answer = runtime.block_on(fleet.execute(command, &mut streams, &mut raw))?;
        println!("{}", serde_json::to_string(&answer)?);
    }
    Ok(())
}

impl Fleet {
    async fn execute(
        &self,
        command: Command,
        streams: &mut JoinSet<()>,
        raw: &mut JoinSet<()>,
    ) -> Result<Answer> {
        match command {
            Command::Connect => {
                for (index, node) in self.nodes.iter().enumerate() {
                    let (node, board) = (node.clone(), self.board.clone());
                    streams.spawn(session(self.server.clone(), index, node, board));
                }
            }
            Command::Disconnect => streams.shutdown().await,
            Command::Await(revision) => timeout(PATIENCE, self.board.all_acked(revision))
                .await
                .with_context(|| format!("not all acknowledged revision {revision}"))?,
            Command::Count => return Ok(Answer::Counts(self.board.counts())),
            Command::Raw(address, bytes) => {
                for _ in &self.nodes {
                    let stream = TcpStream::connect(address).await?;
                    stream.set_nodelay(true)?;
                    raw.spawn(async move {
                        // The exchange ends when the other side closes.
                        let _ = answer_each(stream, bytes).await;
                    });
                }
            }
            Command::EndRaw => raw.shutdown().await,
        }
        Ok(Answer::Done)
    }
}

/// Keeps a node's stream up.
async fn session(
    server: Endpoint,
    index: usize,
    node: Arc<tokio::sync::Mutex<Node>>,
    board: Arc<Board>,
) {
    let mut node = node.lock().await;
    loop {
        if let Err(error) = converse(&server, index, &mut node, &board).await {
            // One says why; thousands would say the same.
            if board.lost_stream() == 1 {
                eprintln!("a stream ended: {error:#}");
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn converse(server: &Endpoint, index: usize, node: &mut Node, board: &Board) -> Result<()> {
    let channel = server.connect().await?;
    let (requests, outbound) = mpsc::channel(1);
    let mut inbound = NodeServiceClient::new(channel)
        .sync(ReceiverStream::new(outbound))
        .await?
        .into_inner();
    requests.send(node.hello()).await?;
    while let Some(part) = inbound.message().await? {
        board.count_message(part.encoded_len() + FRAME);
        if let Some(answer) = node.receive(part)? {
            requests.send(answer).await?;
            board.acked(index, node.revision());
        }
    }
    anyhow::bail!("the control plane ended the stream")
}

async fn answer_each(mut stream: TcpStream, bytes: usize) -> std::io::Result<()> {
    let mut message = vec![0; bytes];
    loop {
        stream.read_exact(&mut message).await?;
        stream.write_all(&[1]).await?;
    }
}
