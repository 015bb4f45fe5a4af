//! Requests over the size limit, refused in words that say what to do. The limit itself is kept by tonic, which stops
//! reading where the message's length says that it is too long.

use std::task::{Context, Poll};

use tonic::{
    Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};

/// How tonic words it.
const TOO_LARGE: &str = "decoded message length too large";

/// A service that takes requests up to a limit.
#[derive(Clone, Debug)]
pub(crate) struct Oversize<S> {
    service: S,
    limit: usize,
}

impl<S> Oversize<S> {
    /// Rewords the refusals of a service that has the limit already.
    pub(crate) fn of(service: S, limit: usize) -> Oversize<S> {
        Oversize { service, limit }
    }
}

impl<S: NamedService> NamedService for Oversize<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, E> Service<http::Request<Body>> for Oversize<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = E>,
    S::Future: Send + 'static,
    E: 'static,
{
    type Response = http::Response<Body>;
    type Error = E;
    type Future = BoxFuture<http::Response<Body>, E>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), E>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = self.service.call(request);
        let limit = self.limit;
        Box::pin(async move { Ok(reworded(response.await?, limit)) })
    }
}

fn reworded(response: http::Response<Body>, limit: usize) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.message().contains(TOO_LARGE) => Status::resource_exhausted(format!(
            "the request is larger than {limit} bytes ({} MiB), the limit: nothing was changed; split it into \
             several transactions",
            limit >> 20
        ))
        .into_http(),
        _ => response,
    }
}
