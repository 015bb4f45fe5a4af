//! Puts the cluster, and edits it, by the API as operators do. Measures nothing.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sallyport_proto::wire::{self, policy_service_client::PolicyServiceClient};
use tonic::transport::{Channel, Endpoint};

use crate::cluster::Size;

/// The most objects of one transaction.
const OBJECTS: usize = 2_000;

/// The time that a revision may take to be enforced.
const PATIENCE: Duration = Duration::from_secs(300);

/// The API.
#[derive(Clone)]
pub(crate) struct Api(PolicyServiceClient<Channel>);

/// A manifest, to be put.
pub(crate) fn put(text: String) -> wire::Edit {
    edit(wire::edit::Op::Put(manifest(text)))
}

/// A manifest, whose objects are to be deleted.
pub(crate) fn delete(text: String) -> wire::Edit {
    edit(wire::edit::Op::DeleteManifest(manifest(text)))
}

fn manifest(text: String) -> wire::Manifest {
    wire::Manifest {
        text,
        source: "fanout".into(),
    }
}

fn edit(op: wire::edit::Op) -> wire::Edit {
    wire::Edit { op: Some(op) }
}

impl Api {
    pub(crate) async fn connect(url: &str) -> Result<Api> {
        let channel = Endpoint::from_shared(url.to_owned())?
            .tcp_nodelay(true)
            .connect()
            .await?;
        let client = PolicyServiceClient::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Ok(Api(client))
    }

    /// Puts the whole cluster, in transactions of bounded size. Returns the last revision.
    pub(crate) async fn load(&mut self, size: Size) -> Result<u64> {
        let (started, mut done, mut revision) = (Instant::now(), 0, 0);
        let mut documents = size.documents().peekable();
        while documents.peek().is_some() {
            let chunk: Vec<_> = documents.by_ref().take(OBJECTS).collect();
            done += chunk.len();
            revision = self.apply(put(chunk.join("---\n"))).await?;
            if done % (10 * OBJECTS) == 0 {
                eprintln!(
                    "  {done} documents in {:.1} s",
                    started.elapsed().as_secs_f64()
                );
            }
        }
        Ok(revision)
    }

    /// Carries an edit out. Returns its revision.
    pub(crate) async fn apply(&mut self, edit: wire::Edit) -> Result<u64> {
        let request = wire::ApplyRequest {
            edits: vec![edit],
            ..Default::default()
        };
        Ok(self.0.apply(request).await?.into_inner().revision)
    }

    /// Waits until every node enforces a revision.
    pub(crate) async fn wait_enforced(&mut self, revision: u64) -> Result<()> {
        let timeout_ms = PATIENCE.as_millis() as u32;
        let request = wire::WaitEnforcedRequest {
            revision,
            timeout_ms,
        };
        let response = self.0.wait_enforced(request).await?.into_inner();
        if !response.enforced {
            let one = response.lagging.first().context("somebody lags")?;
            bail!(
                "revision {revision}: {} nodes lag after {PATIENCE:?}, {} since it is in state {} ({})",
                response.lagging.len(),
                one.name,
                one.state,
                one.reason
            );
        }
        Ok(())
    }
}
