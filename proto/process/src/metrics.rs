//! The metrics endpoint, for both programs: Prometheus' text format, or OpenMetrics for who asks for it by `Accept`. A
//! client that sends no request is cut off, and no more than some are served at once.

mod format;

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::text::{encode_eof, encode_registry},
    metrics::info::Info,
    registry::Registry,
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};

use crate::accept::{Acceptor, Counts};

/// Connections at once. Who comes after waits in the kernel's queue.
const CONNECTIONS: usize = 32;

/// The time that a connection may be without a whole request.
const PATIENCE: Duration = Duration::from_secs(10);

/// The time that a connection may be open. One that reads its answer byte by byte holds a place no longer.
const LONGEST: Duration = Duration::from_secs(300);

/// A registry as OpenMetrics text, with `sallyport_build_info`.
pub fn encode(all: &Registry, program: &'static str, version: &'static str) -> String {
    let mut build = Registry::with_prefix("sallyport");
    build.register(
        "build",
        "The program and its version",
        Info::new([("program", program), ("version", version)]),
    );
    let mut text = String::new();
    encode_registry(&mut text, all)
        .and_then(|()| encode_registry(&mut text, &build))
        .and_then(|()| encode_eof(&mut text))
        .expect("a text takes what is written");
    text
}

/// Serves `/metrics` for ever: OpenMetrics text as `render` makes it, in the form that is asked for.
pub async fn serve(listener: TcpListener, render: impl Fn() -> String + Send + Sync + 'static) {
    let render = Arc::new(render);
    let acceptor = Acceptor::new(Arc::<Counts>::default());
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = places.clone().acquire_owned().await;
        let (stream, counted) = acceptor.accept(&listener).await;
        let render = render.clone();
        let service = service_fn(move |request| {
            let render = render.clone();
            async move { Ok::<_, Infallible>(answer(&request, &*render)) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .serve_connection(TokioIo::new(stream), service);
        tokio::spawn(async move {
            // How it ends is the client's affair.
            let _ = timeout(LONGEST, connection).await;
            drop((place, counted));
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    render: &(impl Fn() -> String + ?Sized),
) -> Response<Full<Bytes>> {
    let (status, kind, text) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => {
            let accepted = request.headers().get_all(ACCEPT).iter();
            let open = accepted
                .filter_map(|value| value.to_str().ok())
                .any(format::asks_for_openmetrics);
            let text = render();
            match open {
                true => (StatusCode::OK, format::OPENMETRICS, text),
                false => (StatusCode::OK, format::TEXT, format::text(&text)),
            }
        }
        (_, "/metrics") => (
            StatusCode::METHOD_NOT_ALLOWED,
            "text/plain",
            "use GET\n".to_owned(),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            "text/plain",
            "metrics are at /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::builder()
        .status(status)
        .header(CONTENT_TYPE, kind);
    if status == StatusCode::METHOD_NOT_ALLOWED {
        response = response.header(ALLOW, "GET, HEAD");
    }
    let body = Full::new(Bytes::from(text));
    response.body(body).expect("these headers are valid")
}
