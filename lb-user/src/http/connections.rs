//! Accepts a bounded number of connections, each with timeouts.
//!
//! No connection waits for a slot. If all slots are taken, or all of one address, the server closes the connection that
//! has been idle for longest. If none is idle, it accepts a few further connections for health checks only: after a
//! failed check, another machine would replace a healthy manager.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Ipv6Addr, TcpListener},
    os::fd::AsFd,
    sync::Arc,
    time::Duration,
};

use axum::{
    BoxError, Router,
    body::{Body, Bytes, HttpBody},
    http::{Method, Request, Response, StatusCode},
    response::IntoResponse,
};
use hyper::{
    server::conn::http1,
    service::{Service, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt::TcpUserTimeout};
use tokio::{io::Interest, net::TcpStream, time::sleep};
use tracing::{debug, error};

use super::{
    error::HttpError,
    events, health,
    slots::{ConnectionSlot, ConnectionSlots, Stage},
};

/// The time for a client to send a request's header, and to receive the response. A kept-alive connection without a
/// request is closed after it.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The same while at least half of the slots are taken.
const SHORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the server checks whether a client that has shut down its side listens to events.
const CLOSE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The longest header of a request, in bytes.
const HEADER_LIMIT: usize = 16 * 1024;

/// Serves connections, each in a task of its own, until this future is dropped.
pub async fn serve(listener: TcpListener, app: Router) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!("register the HTTP socket with the runtime: {error}"),
    };
    let slots = ConnectionSlots::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let (app, slots) = (app.clone(), slots.clone());
                let slot = slots.acquire(client_network(from.ip()));
                let task = tokio::spawn({
                    let slot = slot.clone();
                    async move {
                        if let Err(error) = serve_client(stream, app, &slot).await {
                            debug!("the HTTP connection of {from} ended early: {error}");
                        }
                        slots.release(&slot);
                    }
                });
                slot.set_task(task.abort_handle());
            }
            // For example because no descriptor is free; other connections may close theirs.
            Err(error) => {
                debug!("accept an HTTP connection: {error}");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The network of one client: an IPv4 address, or the /64 of an IPv6 address.
fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX)).into(),
    }
}

async fn serve_client(
    stream: TcpStream,
    app: Router,
    slot: &Arc<ConnectionSlot>,
) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let timeout = u32::try_from(TIMEOUT.as_millis())?;
    setsockopt(&stream, TcpUserTimeout, &timeout)?;
    let watched = std::net::TcpStream::from(stream.as_fd().try_clone_to_owned()?);
    let watched = TcpStream::from_std(watched)?;
    let service = service_fn(|request| handle(app.clone(), slot.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(match slot.needs_short_timeout() {
            true => SHORT_TIMEOUT,
            false => TIMEOUT,
        })
        .max_buf_size(HEADER_LIMIT)
        // Health checks shut down their side after the request.
        .half_close(true)
        .keep_alive(!slot.is_for_probes())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        served = connection => served?,
        () = listener_closed(watched, slot) => {}
    }
    Ok(())
}

/// Waits until a client that listens to events has shut down its side or closed the connection. Its slot is then free
/// for another client.
async fn listener_closed(client: TcpStream, slot: &ConnectionSlot) {
    while let Ok(ready) = client.ready(Interest::READABLE).await {
        if ready.is_read_closed() {
            break;
        }
        // The server reads the data; this only clears the readiness, to wait for the next change.
        let none = || Err::<(), _>(io::ErrorKind::WouldBlock.into());
        _ = client.try_io(Interest::READABLE, none);
    }
    while !slot.is_streaming() {
        sleep(CLOSE_CHECK_INTERVAL).await;
    }
}

async fn handle<B>(
    app: Router,
    slot: Arc<ConnectionSlot>,
    request: Request<B>,
) -> Result<Response<Body>, Infallible>
where
    B: HttpBody<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let path = request.uri().path();
    if slot.is_for_probes() && !health::is_probe(path) {
        let full = "too many connections: the server answers only health checks now";
        return Ok(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, full).into_response());
    }
    let may_listen = request.method() == Method::GET && path.ends_with(events::ROUTE);
    slot.set_stage(Stage::Serving);
    let Ok(response) = TowerToHyperService::new(app).call(request).await;
    // There may be nothing at this path, or too many listeners.
    let listens = may_listen && response.status() == StatusCode::OK;
    slot.set_stage(match listens {
        true => Stage::Streaming,
        false => Stage::Idle,
    });
    Ok(response)
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        time::timeout,
    };

    use super::*;

    async fn start() -> std::net::SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/metrics", get(|| async { "many" }));
        tokio::spawn(serve(listener, app));
        address
    }

    async fn connect(address: std::net::SocketAddr, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    async fn response_of(stream: &mut TcpStream) -> String {
        let mut answer = String::new();
        let all = stream.read_to_string(&mut answer);
        // A reset connection counts as no answer.
        match timeout(Duration::from_secs(5), all).await {
            Ok(_) => answer,
            Err(_) => panic!("no answer and no end: {answer:?}"),
        }
    }

    #[tokio::test]
    async fn a_client_that_shuts_down_its_side_is_answered() {
        let address = start().await;
        for request in [
            "GET /healthz HTTP/1.0\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n",
        ] {
            let mut stream = connect(address, request).await;
            stream.shutdown().await.unwrap();
            let answer = response_of(&mut stream).await;
            assert!(answer.ends_with("\r\n\r\nok"), "{request:?}: {answer:?}");
        }
        let mut stream = connect(address, "GET /healthz HT").await;
        stream.shutdown().await.unwrap();
        assert!(!response_of(&mut stream).await.contains("200"));
    }

    #[tokio::test]
    async fn any_number_of_half_sent_requests_delays_no_other_client() {
        let address = start().await;
        let mut held = Vec::new();
        for _ in 0..200 {
            held.push(connect(address, "GET /metrics HTTP/1.1\r\nHo").await);
            if held.len() % 20 == 0 {
                for path in ["/healthz", "/metrics"] {
                    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
                    let answer = response_of(&mut connect(address, &request).await).await;
                    assert!(answer.starts_with("HTTP/1.0 200"), "{path}: {answer:?}");
                }
            }
        }
    }

    #[tokio::test]
    async fn any_number_of_answered_clients_delays_no_other_client() {
        let address = start().await;
        let mut held = Vec::new();
        for number in 1..=200 {
            let request = "GET /events/stream HTTP/1.1\r\nHost: localhost\r\n\r\n";
            let mut stream = connect(address, request).await;
            // 404.
            stream.read_u8().await.unwrap();
            held.push(stream);
            if number % 20 == 0 {
                let mut other = connect(address, "GET /metrics HTTP/1.0\r\n\r\n").await;
                let answer = response_of(&mut other).await;
                assert!(answer.starts_with("HTTP/1.0 200"), "{number}: {answer:?}");
            }
        }
    }

    #[tokio::test]
    async fn only_a_listener_keeps_its_slot_for_as_long_as_it_likes() {
        let app = Router::new().route("/api/v1/events/stream", get(|| async { "data:" }));
        let slots = ConnectionSlots::default();
        for (method, path, streams) in [
            (Method::GET, "/api/v1/events/stream", true),
            (Method::HEAD, "/api/v1/events/stream", false),
            (Method::GET, "/events/stream", false),
        ] {
            let slot = slots.acquire(Ipv6Addr::LOCALHOST.into());
            let request = Request::builder().method(method).uri(path);
            let request = request.body(Body::empty()).unwrap();
            handle(app.clone(), slot.clone(), request).await.unwrap();
            assert_eq!(slot.is_streaming(), streams, "{path}");
        }
    }
}
