//! A control plane for one test, a client for it, and manifests in few words.

use sallyport_controlplane::{
    config::Config,
    model::Established,
    server::{self, Handle},
};
use sallyport_proto::wire::{
    ApplyRequest, ApplyResponse, Edit, GetRequest, Kind, ListRequest, Manifest, NodeStatus, Object,
    ObjectRef, StatusRequest, StatusResponse, WaitEnforcedRequest, WaitEnforcedResponse,
    change::Action, edit::Op, node_status::State, policy_service_client::PolicyServiceClient,
};
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

/// A control plane of its own, with a client.
pub(crate) struct World {
    pub(crate) directory: TempDir,
    pub(crate) server: Option<Handle>,
    pub(crate) client: PolicyServiceClient<Channel>,
}

impl World {
    pub(crate) async fn new() -> World {
        World::with_history(10_000).await
    }

    pub(crate) async fn with_history(history: u32) -> World {
        World::with(|config| config.history = history).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> World {
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config::local(directory.path());
        change(&mut config);
        let server = server::start(config).await.unwrap();
        let client = client(&server).await;
        World {
            directory,
            server: Some(server),
            client,
        }
    }

    pub(crate) fn url(&self) -> String {
        url(self.server.as_ref().unwrap())
    }

    /// Stops it and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.restart_under(Established::default()).await;
    }

    /// Stops it and starts it with another default for established connections.
    pub(crate) async fn restart_under(&mut self, established: Established) {
        self.server.take().unwrap().stop().await.unwrap();
        let config = Config {
            established,
            ..Config::local(self.directory.path())
        };
        let server = server::start(config).await.unwrap();
        self.client = client(&server).await;
        self.server = Some(server);
    }

    pub(crate) async fn try_apply(&self, edits: Vec<Edit>) -> Result<ApplyResponse, Status> {
        let request = ApplyRequest {
            edits,
            expected_revision: None,
            dry_run: false,
            ..ApplyRequest::default()
        };
        Ok(self.client.clone().apply(request).await?.into_inner())
    }

    /// Applies manifests, and returns the revision.
    pub(crate) async fn apply(&self, text: &str) -> u64 {
        self.try_apply(vec![put(text)])
            .await
            .unwrap_or_else(|status| panic!("{text}: {status}"))
            .revision
    }

    /// Deletes one object, and returns the revision.
    pub(crate) async fn delete(&self, kind: Kind, namespace: &str, name: &str) -> u64 {
        self.try_apply(vec![delete(kind, namespace, name)])
            .await
            .unwrap()
            .revision
    }

    pub(crate) async fn refused(&self, edits: Vec<Edit>) -> (Code, String) {
        let status = self
            .try_apply(edits)
            .await
            .expect_err("it is to be refused");
        (status.code(), status.message().to_owned())
    }

    pub(crate) async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Object, Status> {
        let request = GetRequest {
            r#ref: Some(reference(kind, namespace, name)),
        };
        Ok(self
            .client
            .clone()
            .get(request)
            .await?
            .into_inner()
            .object
            .unwrap())
    }

    pub(crate) async fn names(&self, kind: Kind) -> Vec<String> {
        let request = ListRequest {
            kind: kind.into(),
            ..ListRequest::default()
        };
        let objects = self
            .client
            .clone()
            .list(request)
            .await
            .unwrap()
            .into_inner()
            .objects;
        objects
            .into_iter()
            .map(|object| object.r#ref.unwrap().name)
            .collect()
    }

    pub(crate) async fn status(&self) -> StatusResponse {
        self.client
            .clone()
            .status(StatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    pub(crate) async fn node(&self, name: &str) -> NodeStatus {
        let status = self.status().await;
        status
            .nodes
            .into_iter()
            .find(|node| node.name == name)
            .expect("the node is known")
    }

    /// A node's state and the first revision that it lacks.
    pub(crate) async fn stands(&self, name: &str) -> (State, u64) {
        let node = self.node(name).await;
        (node.state(), node.pending_revision)
    }

    /// Returns when a node stands so.
    pub(crate) async fn until(&self, name: &str, expected: (State, u64)) {
        for _ in 0..500 {
            if self.stands(name).await == expected {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("{expected:?} never came: {:?}", self.node(name).await);
    }

    pub(crate) async fn wait(&self, revision: u64, timeout_ms: u32) -> WaitEnforcedResponse {
        let request = WaitEnforcedRequest {
            revision,
            timeout_ms,
        };
        self.client
            .clone()
            .wait_enforced(request)
            .await
            .unwrap()
            .into_inner()
    }

    /// Whether a revision is enforced, at once.
    pub(crate) async fn enforced(&self, revision: u64) -> bool {
        self.wait(revision, 1).await.enforced
    }
}

pub(crate) fn url(server: &Handle) -> String {
    format!("http://{}", server.address)
}

async fn client(server: &Handle) -> PolicyServiceClient<Channel> {
    let client = PolicyServiceClient::connect(url(server)).await.unwrap();
    client
        .max_encoding_message_size(usize::MAX)
        .max_decoding_message_size(usize::MAX)
}

pub(crate) fn put(text: &str) -> Edit {
    Edit {
        op: Some(Op::Put(manifest(text))),
    }
}

pub(crate) fn delete_manifest(text: &str) -> Edit {
    Edit {
        op: Some(Op::DeleteManifest(manifest(text))),
    }
}

pub(crate) fn delete(kind: Kind, namespace: &str, name: &str) -> Edit {
    Edit {
        op: Some(Op::Delete(reference(kind, namespace, name))),
    }
}

pub(crate) fn manifest(text: &str) -> Manifest {
    Manifest {
        text: text.to_owned(),
        source: "t.yaml".to_owned(),
    }
}

pub(crate) fn reference(kind: Kind, namespace: &str, name: &str) -> ObjectRef {
    ObjectRef {
        kind: kind.into(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

pub(crate) fn actions(response: &ApplyResponse) -> Vec<(String, Action)> {
    let one = |change: &sallyport_proto::wire::Change| {
        (change.r#ref.as_ref().unwrap().name.clone(), change.action())
    };
    response.changes.iter().map(one).collect()
}

pub(crate) fn namespace(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: '{name}'}}\n")
}

pub(crate) fn node(name: &str) -> String {
    format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: '{name}'}}\n")
}

pub(crate) fn pod(namespace: &str, name: &str, node: &str, address: &str, label: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: '{name}', namespace: '{namespace}', labels: {{app: {label}}}}}\n\
         spec: {{nodeName: '{node}', containers: [{{name: c}}]}}\n\
         status: {{podIP: '{address}', podIPs: [{{ip: '{address}'}}]}}\n"
    )
}

/// Isolates `app=<selects>` of namespace `a`, and lets `app=<allows>` in.
pub(crate) fn policy(name: &str, selects: &str, allows: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: '{name}', namespace: a}}\n\
         spec: {{podSelector: {{matchLabels: {{app: {selects}}}}}, policyTypes: [Ingress], \
         ingress: [{{from: [{{podSelector: {{matchLabels: {{app: {allows}}}}}}}]}}]}}\n"
    )
}
