//! Access to the services: a node's certificate opens the service of nodes, an operator's the service of operators.
//! Knows no call of a service.

use std::{
    future::ready,
    task::{Context, Poll},
};

use sallyport_identity::Subject;
use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};
use tracing::warn;

use crate::listener::Client;

/// The callers of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Callers {
    /// Every client: the control plane serves without TLS.
    Anyone,
    /// Nodes.
    Nodes,
    /// Operators.
    Operators,
}

impl Callers {
    fn refusal(self, client: Option<&Client>, service: &str) -> Option<Status> {
        let identity = client.and_then(|client| client.identity.as_deref());
        let (needed, is_admitted) = match (self, identity.map(|identity| &identity.subject)) {
            (Callers::Anyone, _) => return None,
            (Callers::Nodes, subject) => ("a node", matches!(subject, Some(Subject::Node(_)))),
            (Callers::Operators, subject) => {
                ("an operator", matches!(subject, Some(Subject::Operator(_))))
            }
        };
        if is_admitted {
            return None;
        }
        let found = identity.map_or_else(
            || "of nobody".to_owned(),
            |identity| format!("of {}", identity.subject),
        );
        Some(Status::permission_denied(format!(
            "{service} needs the certificate of {needed}, and this connection has that {found}"
        )))
    }
}

/// A service that only some may call.
#[derive(Clone, Debug)]
pub(crate) struct Access<S> {
    service: S,
    callers: Callers,
}

impl<S> Access<S> {
    /// Refuses the calls of others before the service sees them.
    pub(crate) fn of(service: S, callers: Callers) -> Access<S> {
        Access { service, callers }
    }
}

impl<S: NamedService> NamedService for Access<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, E> Service<http::Request<Body>> for Access<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = E> + NamedService,
    S::Future: Send + 'static,
    E: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = E;
    type Future = BoxFuture<http::Response<Body>, E>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let client = request.extensions().get::<Client>();
        match self.callers.refusal(client, S::NAME) {
            None => Box::pin(self.service.call(request)),
            Some(status) => {
                let peer = client
                    .and_then(|client| client.address)
                    .map(|peer| peer.to_string());
                let call = request.uri().path();
                warn!(peer, call, cause = status.message(), "refused a call");
                Box::pin(ready(Ok(status.into_http())))
            }
        }
    }
}
