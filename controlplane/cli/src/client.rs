//! The connection to the control plane: addresses, deadlines, pages. Never prints, never decides what to ask.

use std::{
    error::Error,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use sallyport_identity::{Connector, Credentials, LoadError};
use sallyport_process::duration;
use sallyport_proto::wire::{
    ApplyRequest, ApplyResponse, BackupHeader, BackupRequest, BelieveRequest, GetRequest,
    HistoryRequest, HistoryResponse, Kind, ListRequest, ListResponse, Object, ObjectRef,
    RollbackRequest, StatusRequest, StatusResponse, WaitEnforcedRequest, WaitEnforcedResponse,
    WatchRequest, WatchResponse, policy_service_client::PolicyServiceClient,
};
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::{args::Server, failure::Failure};

/// The default address of the control plane.
pub(crate) const DEFAULT_SERVER: &str = "127.0.0.1:7443";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The time beyond the server's own limit that the client waits for the end of a wait.
const WAIT_GRACE: Duration = Duration::from_secs(5);
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(5);
const MAX_MESSAGE: usize = 64 << 20;
/// The longest path of a Unix socket: `sun_path` has 108 bytes, the last is NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// The value of `--server`: `https://HOST:PORT`, `http://HOST:PORT`, `HOST:PORT` or `unix:///PATH`.
pub(crate) fn parse_server(text: &str) -> Result<String, String> {
    const FORMS: &str = "use https://HOST:PORT, http://HOST:PORT or unix:///PATH";
    let url = match text.split_once("://") {
        Some(("http" | "https", rest)) if !rest.is_empty() => text.to_owned(),
        Some(("unix", path)) if path.starts_with('/') => text.to_owned(),
        Some(_) => return Err(FORMS.to_owned()),
        // `SALLYPORT_SERVER=` is how a shell unsets for one command.
        None if text.is_empty() => DEFAULT_SERVER.to_owned(),
        // Whether it is by TLS is known when all options are.
        None => text.to_owned(),
    };
    let url = url.trim_end_matches('/').to_owned();
    let wrong = match url.strip_prefix("unix://") {
        Some("") | None if url.starts_with("unix:") => Some("the path is a directory"),
        Some(path) if path.len() > MAX_SOCKET_PATH => {
            Some("the path is longer than 107 bytes, the most that a socket can have")
        }
        Some(_) => None,
        None => wrong_authority(&url),
    };
    let whole = match url.contains("://") {
        true => url.clone(),
        false => format!("http://{url}"),
    };
    match (wrong, Endpoint::from_shared(whole)) {
        (Some(wrong), _) => Err(format!("{wrong}; {FORMS}")),
        (None, Ok(_)) => Ok(url),
        (None, Err(_)) => Err(FORMS.to_owned()),
    }
}

/// The reason why a URL can never be that of a control plane.
fn wrong_authority(url: &str) -> Option<&'static str> {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    if rest.contains(['/', '?', '#']) {
        return Some("a path has no place in it");
    }
    if rest.contains('@') {
        return Some("a user has no place in it: a certificate names the user, by --tls");
    }
    let Some((host, port)) = rest
        .rsplit_once(':')
        .filter(|(_, port)| !port.ends_with(']'))
    else {
        return Some("it has no port");
    };
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Some("the port must be between 1 and 65535, inclusive");
    }
    let is_host = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(v6) => v6.parse::<Ipv6Addr>().is_ok(),
        None if host
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.') =>
        {
            host.parse::<Ipv4Addr>().is_ok()
        }
        None => host
            .strip_suffix('.')
            .unwrap_or(host)
            .split('.')
            .all(|label| {
                let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
                !label.is_empty() && label.len() <= 63 && label.bytes().all(known)
            }),
    };
    match is_host {
        true => None,
        false => Some("the host is no name and no address (an IPv6 address stands in brackets)"),
    }
}

/// The value of `--request-timeout`.
pub(crate) fn parse_request_timeout(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("must be greater than 0".to_owned()),
        timeout => Ok(timeout),
    }
}

/// A connection.
pub(crate) struct Client {
    service: PolicyServiceClient<Channel>,
    server: String,
    request_timeout: Duration,
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
    pub(crate) async fn connect(server: &Server) -> Result<Client, Failure> {
        let Server {
            url,
            tls,
            request_timeout,
        } = server;
        let url = &whole_url(url, tls.is_some())?;
        let unreachable = |cause: String| Failure::Unreachable {
            server: url.clone(),
            cause,
        };
        let connect_timeout = CONNECT_TIMEOUT.min(*request_timeout);
        // Pings find a control plane that froze during a wait or a watch, where no answer is due.
        let endpoint = Endpoint::from_shared(url.clone())
            .map_err(|error| Failure::Usage(format!("--server {url}: {error}")))?
            .connect_timeout(connect_timeout)
            .http2_keep_alive_interval(*request_timeout / 2)
            .keep_alive_timeout(*request_timeout);
        // The endpoint's own timeout covers TCP only, not a resolver that hangs.
        let connecting = async {
            match connector(tls.as_deref())? {
                Some(connector) => endpoint.connect_with_connector(connector).await,
                None => endpoint.connect().await,
            }
            .map_err(|error| not_connected(url, &error))
        };
        let channel = tokio::time::timeout(connect_timeout, connecting)
            .await
            .map_err(|_| {
                unreachable(format!(
                    "no answer within {}",
                    duration::rough(connect_timeout)
                ))
            })??;
        Ok(Client {
            service: PolicyServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
            server: url.clone(),
            request_timeout: *request_timeout,
        })
    }

    /// Carries out a transaction.
    pub(crate) async fn apply(&mut self, request: ApplyRequest) -> Result<ApplyResponse, Failure> {
        let patience = Patience::of(&self.server, self.request_timeout);
        let answer = patience.answer(self.service.apply(request)).await;
        answer.map_err(perhaps_carried_out)
    }

    /// One object.
    pub(crate) async fn get(&mut self, reference: ObjectRef) -> Result<Object, Failure> {
        let request = GetRequest {
            r#ref: Some(reference),
        };
        let patience = Patience::of(&self.server, self.request_timeout);
        let response = patience.answer(self.service.get(request)).await?;
        response.object.ok_or_else(|| {
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
        let patience = Patience::of(&self.server, self.request_timeout);
        patience.answer(self.service.list(request)).await
    }

    /// Every transaction after a revision.
    pub(crate) async fn watch(&mut self, after_revision: u64) -> Result<Watch, Failure> {
        let request = WatchRequest {
            after_revision,
            bookmark_interval_ms: millis(BOOKMARK_INTERVAL),
        };
        let patience = Patience::of(&self.server, self.request_timeout);
        Ok(Watch {
            stream: patience.answer(self.service.watch(request)).await?,
            server: self.server.clone(),
            silence: BOOKMARK_INTERVAL + self.request_timeout,
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
        let patience = Patience::of(&self.server, self.request_timeout);
        patience.answer(self.service.history(request)).await
    }

    /// Goes back to a revision.
    pub(crate) async fn rollback(
        &mut self,
        request: RollbackRequest,
    ) -> Result<ApplyResponse, Failure> {
        let patience = Patience::of(&self.server, self.request_timeout);
        let answer = patience.answer(self.service.rollback(request)).await;
        answer.map_err(perhaps_carried_out)
    }

    /// All that a control plane has to have, at one revision.
    pub(crate) async fn backup(&mut self) -> Result<(BackupHeader, Vec<Object>), Failure> {
        let patience = Patience::of(&self.server, self.request_timeout);
        let mut stream = patience
            .answer(self.service.backup(BackupRequest {}))
            .await?;
        let (mut header, mut objects) = (None, Vec::new());
        while let Some(part) = patience.within(stream.message()).await? {
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
        let patience = Patience::of(&self.server, self.request_timeout);
        patience.answer(self.service.status(StatusRequest {})).await
    }

    /// Says which enforcer is a node's.
    pub(crate) async fn believe(&mut self, node: &str, process: u64) -> Result<(), Failure> {
        let request = BelieveRequest {
            node: node.to_owned(),
            process,
        };
        let patience = Patience::of(&self.server, self.request_timeout);
        let answer = patience.answer(self.service.believe(request)).await;
        answer.map(drop)
    }

    fn failure(&self, status: &Status) -> Failure {
        Failure::from_status(&self.server, status)
    }
}

/// A stream of transactions.
pub(crate) struct Watch {
    stream: Streaming<WatchResponse>,
    server: String,
    /// The longest silence: a bookmark comes in time, or the control plane is frozen.
    silence: Duration,
}

impl Watch {
    /// The next transaction or bookmark; `None` when the server ends the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<WatchResponse>, Failure> {
        match tokio::time::timeout(self.silence, self.stream.message()).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(status)) => Err(Failure::from_status(&self.server, &status)),
            Err(_) => Err(Failure::Lost {
                server: self.server.clone(),
                cause: format!("silent for {}", duration::rough(self.silence)),
            }),
        }
    }
}

/// The patience with the answers of a server.
#[derive(Clone, Copy)]
struct Patience<'a> {
    server: &'a str,
    request_timeout: Duration,
}

impl<'a> Patience<'a> {
    fn of(server: &'a str, request_timeout: Duration) -> Patience<'a> {
        Patience {
            server,
            request_timeout,
        }
    }

    /// The answer to a call.
    async fn answer<T>(
        self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failure> {
        self.within(call).await.map(Response::into_inner)
    }

    /// The answer of a call; an error when none comes in time.
    async fn within<T>(self, call: impl Future<Output = Result<T, Status>>) -> Result<T, Failure> {
        let Ok(answer) = tokio::time::timeout(self.request_timeout, call).await else {
            return Err(Failure::Lost {
                server: self.server.to_owned(),
                cause: format!(
                    "nothing came within {}; --request-timeout allows more time",
                    duration::rough(self.request_timeout)
                ),
            });
        };
        answer.map_err(|status| Failure::from_status(self.server, &status))
    }
}

/// The failure of a change, which says so where there was no answer.
fn perhaps_carried_out(failure: Failure) -> Failure {
    match failure {
        Failure::Lost { server, cause } => Failure::Lost {
            server,
            cause: format!("{cause}. The change may have been carried out all the same"),
        },
        failure => failure,
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

/// The URL with its scheme. TLS needs a certificate, and a certificate needs TLS.
fn whole_url(url: &str, tls: bool) -> Result<String, Failure> {
    match (url.split_once("://"), tls) {
        (None, true) => Ok(format!("https://{url}")),
        (None, false) => Ok(format!("http://{url}")),
        (Some(("https", _)), true) => Ok(url.to_owned()),
        (Some(("https", _)), false) => Err(Failure::Usage(format!(
            "--server {url} needs a certificate: give --tls DIR or SALLYPORT_TLS"
        ))),
        (Some(_), true) => Err(Failure::Usage(format!(
            "--server {url} is without TLS, and --tls is given: use https://HOST:PORT, or leave out --tls \
             (SALLYPORT_TLS)"
        ))),
        (Some(_), false) => Ok(url.to_owned()),
    }
}

/// The way to connect by TLS, if there is a certificate.
fn connector(tls: Option<&Path>) -> Result<Option<Connector>, Failure> {
    let unusable = |error: LoadError| Failure::Usage(format!("--tls: {error}"));
    let Some(directory) = tls else {
        return Ok(None);
    };
    let credentials = Credentials::load(directory).map_err(unusable)?;
    credentials.connector().map(Some).map_err(unusable)
}

/// The failure to connect: for a refusal of either end the refusal, which is no network's.
fn not_connected(server: &str, error: &(dyn Error + 'static)) -> Failure {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    let (server, cause) = (
        server.to_owned(),
        crate::failure::plain(&innermost.to_string()),
    );
    let io = innermost.downcast_ref::<io::Error>();
    match io.is_some_and(|io| io.kind() == io::ErrorKind::InvalidData) {
        true => Failure::Untrusted { server, cause },
        false => Failure::Unreachable { server, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_urls_or_nearly() {
        let parse = |text| parse_server(text).expect(text);
        assert_eq!(parse(DEFAULT_SERVER), DEFAULT_SERVER);
        assert_eq!(parse(""), DEFAULT_SERVER);
        assert_eq!(parse("10.0.0.1:7443"), "10.0.0.1:7443");
        assert_eq!(parse("https://x:7443"), "https://x:7443");
        assert_eq!(parse("http://[::1]:7443/"), "http://[::1]:7443");
        assert_eq!(
            parse("unix:///run/sallyport/api.sock"),
            "unix:///run/sallyport/api.sock"
        );
        assert_eq!(parse("node-1.example.:1"), "node-1.example.:1");
        let long = format!("unix:///{}", "x".repeat(107));
        for text in [
            "http://",
            "https://",
            "https://a",
            "unix://relative",
            "unix:///",
            &long,
            "ftp://x",
            "http://a b",
            "http://a",
            "10.0.0.1",
            "http://:7443",
            "http://a:0",
            "http://a:65536",
            "http://a:http",
            "http://me@a:7443",
            "http://a:7443/api",
            "http://a:7443?x",
            "http://10.0.0.256:7443",
            "http://a..b:7443",
            "http://[::g]:7443",
            "http://fd00::1:7443",
            "http://[::1]",
        ] {
            let error = parse_server(text).expect_err(text);
            assert!(
                error.contains("http://HOST:PORT or unix:///PATH"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_certificate_and_the_scheme_must_agree() {
        let whole = |url, tls| whole_url(url, tls).map_err(|failure| failure.to_string());
        assert_eq!(whole("a:1", false), Ok("http://a:1".to_owned()));
        assert_eq!(whole("a:1", true), Ok("https://a:1".to_owned()));
        assert_eq!(whole("https://a:1", true), Ok("https://a:1".to_owned()));
        assert_eq!(whole("unix:///a", false), Ok("unix:///a".to_owned()));
        let error = whole("https://a:1", false).expect_err("no certificate");
        assert!(error.contains("give --tls DIR"), "{error}");
        for url in ["http://a:1", "unix:///a"] {
            let error = whole(url, true).expect_err(url);
            assert!(error.contains("leave out --tls"), "{error}");
        }
    }
}
