//! The connection to the control plane: addresses, deadlines, pages. Never prints, never decides what to ask.

use std::{error::Error, time::Duration};

use sallyport_controlplane::duration;
use sallyport_proto::wire::{
    ApplyRequest, ApplyResponse, BackupHeader, BackupRequest, GetRequest, HistoryRequest,
    HistoryResponse, Kind, ListRequest, ListResponse, Object, ObjectRef, RollbackRequest,
    StatusRequest, StatusResponse, WaitEnforcedRequest, WaitEnforcedResponse, WatchRequest,
    WatchResponse, policy_service_client::PolicyServiceClient,
};
use tonic::{
    Code, Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::failure::Failure;

/// Where the control plane listens unless told otherwise.
pub(crate) const DEFAULT_SERVER: &str = "http://127.0.0.1:7443";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer than the server we wait for the end of a wait.
const WAIT_GRACE: Duration = Duration::from_secs(5);
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(10);
const SILENCE_TIMEOUT: Duration = Duration::from_secs(35);
const MAX_MESSAGE: usize = 64 << 20;

/// The value of `--server`: `http://HOST:PORT`, `HOST:PORT` or `unix:///PATH`.
pub(crate) fn parse_server(text: &str) -> Result<String, String> {
    const FORMS: &str = "use http://HOST:PORT or unix:///PATH";
    let url = match text.split_once("://") {
        Some(("http", rest)) if !rest.is_empty() => text.to_owned(),
        Some(("unix", path)) if path.starts_with('/') => text.to_owned(),
        Some(("https", _)) => return Err(format!("TLS is not supported yet; {FORMS}")),
        Some(_) => return Err(FORMS.to_owned()),
        // `SALLYPORT_SERVER=` is how a shell unsets for one command.
        None if text.is_empty() => DEFAULT_SERVER.to_owned(),
        None => format!("http://{text}"),
    };
    let url = url.trim_end_matches('/').to_owned();
    match Endpoint::from_shared(url.clone()) {
        Ok(_) => Ok(url),
        Err(_) => Err(FORMS.to_owned()),
    }
}

/// A connection.
pub(crate) struct Client {
    service: PolicyServiceClient<Channel>,
    server: String,
}

/// All objects of one kind.
pub(crate) struct Listing {
    /// The objects, by namespace and name.
    pub(crate) objects: Vec<Object>,
    /// The revision at which they were read.
    pub(crate) revision: u64,
}

impl Client {
    /// Connects, or says within a few seconds why not.
    pub(crate) async fn connect(server: &str) -> Result<Client, Failure> {
        let unreachable = |cause: String| Failure::Unreachable {
            server: server.to_owned(),
            cause,
        };
        let endpoint = Endpoint::from_shared(server.to_owned())
            .map_err(|error| Failure::Usage(format!("--server {server}: {error}")))?
            .connect_timeout(CONNECT_TIMEOUT);
        // The endpoint's own timeout covers TCP only, not a resolver that hangs.
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect())
            .await
            .map_err(|_| {
                unreachable(format!(
                    "no answer within {}",
                    duration::rough(CONNECT_TIMEOUT)
                ))
            })?
            .map_err(|error| unreachable(innermost(&error)))?;
        Ok(Client {
            service: PolicyServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            server: server.to_owned(),
        })
    }

    /// Carries out a transaction.
    pub(crate) async fn apply(&mut self, request: ApplyRequest) -> Result<ApplyResponse, Failure> {
        match self.service.apply(within(CALL_TIMEOUT, request)).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(match self.failure(&status) {
                Failure::Lost { server, cause } => Failure::Lost {
                    server,
                    cause: format!("{cause}. The change may have been carried out all the same"),
                },
                failure => failure,
            }),
        }
    }

    /// One object.
    pub(crate) async fn get(&mut self, reference: ObjectRef) -> Result<Object, Failure> {
        let request = GetRequest {
            r#ref: Some(reference),
        };
        let response = self.service.get(within(CALL_TIMEOUT, request)).await;
        let response = response.map_err(|status| self.failure(&status))?;
        response.into_inner().object.ok_or_else(|| {
            Failure::Refused("the control plane answered without an object".to_owned())
        })
    }

    /// All objects of a kind, page by page; of all namespaces when `namespace` is empty.
    pub(crate) async fn list(&mut self, kind: Kind, namespace: &str) -> Result<Listing, Failure> {
        let mut listing = Listing {
            objects: Vec::new(),
            revision: 0,
        };
        let mut page_token = String::new();
        loop {
            let page = self.page(kind, namespace, 0, page_token).await?;
            if listing.objects.is_empty() {
                listing.revision = page.revision;
            }
            listing.objects.extend(page.objects);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(listing);
            }
        }
    }

    /// The current revision, at the cost of one object.
    pub(crate) async fn revision(&mut self) -> Result<u64, Failure> {
        Ok(self
            .page(Kind::Namespace, "", 1, String::new())
            .await?
            .revision)
    }

    async fn page(
        &mut self,
        kind: Kind,
        namespace: &str,
        page_size: u32,
        page_token: String,
    ) -> Result<ListResponse, Failure> {
        let request = ListRequest {
            kind: kind.into(),
            namespace: namespace.to_owned(),
            page_size,
            page_token,
        };
        let response = self.service.list(within(CALL_TIMEOUT, request)).await;
        Ok(response
            .map_err(|status| self.failure(&status))?
            .into_inner())
    }

    /// Every transaction after a revision.
    pub(crate) async fn watch(&mut self, after_revision: u64) -> Result<Watch, Failure> {
        let request = WatchRequest {
            after_revision,
            bookmark_interval_ms: millis(BOOKMARK_INTERVAL),
        };
        let response = self.service.watch(request).await;
        Ok(Watch {
            stream: response
                .map_err(|status| self.failure(&status))?
                .into_inner(),
            server: self.server.clone(),
        })
    }

    /// Waits for the nodes. The answer may be that they lag; no answer is a failure.
    pub(crate) async fn wait_enforced(
        &mut self,
        revision: u64,
        timeout: Duration,
    ) -> Result<WaitEnforcedResponse, Failure> {
        let request = WaitEnforcedRequest {
            revision,
            // On the wire 0 means the default; here it means: do not wait.
            timeout_ms: millis(timeout).max(1),
        };
        let request = within(timeout.saturating_add(WAIT_GRACE), request);
        match self.service.wait_enforced(request).await {
            Ok(response) => Ok(response.into_inner()),
            Err(status) if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled) => {
                let waited = duration::rough(timeout);
                Err(Failure::TimedOut(format!("timed out after {waited}")))
            }
            Err(status) => Err(self.failure(&status)),
        }
    }

    /// The recent transactions.
    pub(crate) async fn history(
        &mut self,
        request: HistoryRequest,
    ) -> Result<HistoryResponse, Failure> {
        let response = self.service.history(within(CALL_TIMEOUT, request)).await;
        Ok(response
            .map_err(|status| self.failure(&status))?
            .into_inner())
    }

    /// Goes back to a revision.
    pub(crate) async fn rollback(
        &mut self,
        request: RollbackRequest,
    ) -> Result<ApplyResponse, Failure> {
        let response = self.service.rollback(within(CALL_TIMEOUT, request)).await;
        Ok(response
            .map_err(|status| self.failure(&status))?
            .into_inner())
    }

    /// All that a control plane has to have, at one revision.
    pub(crate) async fn backup(&mut self) -> Result<(BackupHeader, Vec<Object>), Failure> {
        let response = self.service.backup(BackupRequest {}).await;
        let mut stream = response
            .map_err(|status| self.failure(&status))?
            .into_inner();
        let (mut header, mut objects) = (None, Vec::new());
        while let Some(part) = stream
            .message()
            .await
            .map_err(|status| self.failure(&status))?
        {
            header = header.or(part.header);
            objects.extend(part.objects);
        }
        match header {
            Some(header) if header.objects == objects.len() as u64 => Ok((header, objects)),
            _ => Err(Failure::Lost {
                server: self.server.clone(),
                cause: "the backup ended early".to_owned(),
            }),
        }
    }

    /// The state of all.
    pub(crate) async fn status(&mut self) -> Result<StatusResponse, Failure> {
        let response = self
            .service
            .status(within(CALL_TIMEOUT, StatusRequest {}))
            .await;
        Ok(response
            .map_err(|status| self.failure(&status))?
            .into_inner())
    }

    fn failure(&self, status: &Status) -> Failure {
        Failure::from_status(&self.server, status)
    }
}

/// A stream of transactions.
pub(crate) struct Watch {
    stream: Streaming<WatchResponse>,
    server: String,
}

impl Watch {
    /// The next transaction or bookmark; `None` when the server ends the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<WatchResponse>, Failure> {
        match tokio::time::timeout(SILENCE_TIMEOUT, self.stream.message()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => Err(Failure::from_status(&self.server, &status)),
            Err(_) => Err(Failure::Lost {
                server: self.server.clone(),
                cause: format!("silent for {}", duration::rough(SILENCE_TIMEOUT)),
            }),
        }
    }
}

fn within<T>(timeout: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    crate::failure::plain(&innermost.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_urls_or_nearly() {
        let parse = |text| parse_server(text).expect(text);
        assert_eq!(parse(DEFAULT_SERVER), DEFAULT_SERVER);
        assert_eq!(parse(""), DEFAULT_SERVER);
        assert_eq!(parse("10.0.0.1:7443"), "http://10.0.0.1:7443");
        assert_eq!(parse("http://[::1]:7443/"), "http://[::1]:7443");
        assert_eq!(
            parse("unix:///run/sallyport/api.sock"),
            "unix:///run/sallyport/api.sock"
        );
        for text in ["http://", "unix://relative", "ftp://x", "http://a b"] {
            let error = parse_server(text).expect_err(text);
            assert!(
                error.contains("use http://HOST:PORT or unix:///PATH"),
                "{error}"
            );
        }
        let error = parse_server("https://x:7443").expect_err("no TLS");
        assert!(error.starts_with("TLS is not supported yet"), "{error}");
    }
}
