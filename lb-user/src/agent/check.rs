//! The health check of the worker's own service: a periodic TCP connection or HTTP request.

use std::{fmt, net::IpAddr, ops::RangeInclusive, str::FromStr, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use lb_core::counted;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::sockets;

/// The most bytes of a response that are read until its status.
const MAX_HEAD_BYTES: usize = 8 << 10;
const MAX_HEADERS: usize = 64;

/// How an agent checks the worker's own service.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    pub target: CheckTarget,
    /// The HTTP statuses of a good response.
    pub expect_status: RangeInclusive<u16>,
    pub interval: Duration,
    /// The timeout of a whole attempt.
    pub timeout: Duration,
    /// The failed attempts in a row after which the service is unhealthy. One good attempt ends that.
    pub failures: u32,
}

/// The address of the service: `tcp://HOST:PORT` or `http://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckTarget {
    Tcp {
        address: String,
    },
    Http {
        address: String,
        host: String,
        path: String,
    },
}

impl CheckTarget {
    pub fn port(&self) -> u16 {
        let (Self::Tcp { address } | Self::Http { address, .. }) = self;
        let port = address.rsplit_once(':').map(|(_, port)| port.parse());
        // Parsing has checked it.
        port.and_then(Result::ok).unwrap_or(80)
    }

    /// Returns the port, if only this machine reaches the address.
    fn local_port(&self) -> Option<u16> {
        let (Self::Tcp { address } | Self::Http { address, .. }) = self;
        let (host, _) = address.rsplit_once(':')?;
        let host = host.trim_matches(['[', ']']);
        let is_loopback = host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
        (is_loopback || host == "localhost").then(|| self.port())
    }
}

impl fmt::Display for CheckTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address } => write!(f, "tcp://{address}"),
            Self::Http { host, path, .. } => write!(f, "http://{host}{path}"),
        }
    }
}

impl FromStr for CheckTarget {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (scheme, rest) = text
            .split_once("://")
            .context("expected tcp://HOST:PORT or http://HOST[:PORT][/PATH]")?;
        ensure!(
            rest.bytes().all(|byte| byte.is_ascii_graphic()),
            "expected visible ASCII characters only"
        );
        match scheme {
            "tcp" => {
                let address = rest.strip_suffix('/').unwrap_or(rest);
                ensure!(ends_in_port(address), "expected tcp://HOST:PORT");
                Ok(Self::Tcp {
                    address: address.to_owned(),
                })
            }
            "http" => {
                let (host, path) = match rest.find('/') {
                    Some(at) => rest.split_at(at),
                    None => (rest, "/"),
                };
                let address = match ends_in_port(host) {
                    true => host.to_owned(),
                    false => format!("{host}:80"),
                };
                ensure!(ends_in_port(&address), "expected http://HOST[:PORT][/PATH]");
                Ok(Self::Http {
                    address,
                    host: host.to_owned(),
                    path: path.to_owned(),
                })
            }
            "https" => bail!("https is not supported: use http, or tcp for the connection only"),
            _ => bail!(
                "{scheme} is not supported: expected tcp://HOST:PORT or http://HOST[:PORT][/PATH]"
            ),
        }
    }
}

/// Whether an address is a host with a port.
fn ends_in_port(address: &str) -> bool {
    let Some((host, port)) = address.rsplit_once(':') else {
        return false;
    };
    let whole = !host.contains(':') || host.starts_with('[') && host.ends_with(']');
    !host.is_empty() && whole && port.parse::<u16>().is_ok_and(|port| port > 0)
}

/// Parses a status, `200`, or a range, `200-399`.
///
/// # Errors
///
/// Says what was expected.
pub fn parse_status(text: &str) -> Result<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let number = text.trim().parse().ok();
        number.filter(|status| (100..=999).contains(status))
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Ok(first..=last),
        _ => bail!("expected a status, such as 200, or a range, such as 200-399"),
    }
}

impl HealthCheck {
    /// Makes one attempt.
    ///
    /// # Errors
    ///
    /// Says why there is no good response.
    pub async fn run(&self) -> Result<()> {
        timeout(self.timeout, self.attempt())
            .await
            .with_context(|| format!("no answer within {:?}", self.timeout))?
    }

    async fn attempt(&self) -> Result<()> {
        match &self.target {
            CheckTarget::Tcp { address } => {
                TcpStream::connect(address).await.context("connect")?;
                Ok(())
            }
            CheckTarget::Http {
                address,
                host,
                path,
            } => {
                let mut stream = TcpStream::connect(address).await.context("connect")?;
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: memlb-agent/{}\r\n\
                     Accept: */*\r\nConnection: close\r\n\r\n",
                    env!("CARGO_PKG_VERSION")
                );
                stream
                    .write_all(request.as_bytes())
                    .await
                    .context("send the request")?;
                let status = read_status(&mut stream).await?;
                ensure!(
                    self.expect_status.contains(&status),
                    "the service answers with status {status}, not {}",
                    format_statuses(&self.expect_status)
                );
                Ok(())
            }
        }
    }

    /// Warns that only this machine reaches the server.
    fn warn_of_local_server(&self) {
        let (Some(port), Ok(sockets)) = (self.target.local_port(), sockets::tcp()) else {
            return;
        };
        if sockets::is_only_local(&sockets::listeners(&sockets, port)) {
            warn!(
                "the server at port {port} listens on 127.0.0.1 only: it answers this agent, but refuses the \
                 connections of clients; let it listen on 0.0.0.0:{port}"
            );
        }
    }

    /// Checks periodically; publishes the first result and every change.
    pub(super) async fn run_periodically(self, healthy: watch::Sender<Option<bool>>) {
        let mut failures = 0;
        loop {
            let next = Instant::now() + self.interval;
            let before = *healthy.borrow();
            match self.run().await {
                Ok(()) => {
                    failures = 0;
                    match before {
                        Some(false) => info!("the service answers"),
                        None => self.warn_of_local_server(),
                        Some(true) => {}
                    }
                    publish(&healthy, true);
                }
                Err(error) => {
                    failures += 1;
                    // Before the first good response, one failure is enough.
                    if before != Some(true) || failures >= self.failures {
                        if before != Some(false) {
                            warn!(
                                "the service does not answer ({} in a row): {error:#}",
                                counted(failures, "time")
                            );
                        }
                        publish(&healthy, false);
                    }
                }
            }
            sleep_until(next).await;
        }
    }
}

fn publish(healthy: &watch::Sender<Option<bool>>, now: bool) {
    healthy.send_if_modified(|known| known.replace(now) != Some(now));
}

async fn read_status(stream: &mut TcpStream) -> Result<u16> {
    let mut head = Vec::with_capacity(1024);
    loop {
        let read = stream
            .read_buf(&mut head)
            .await
            .context("read the response")?;
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let parsed = response.parse(&head);
        // The status line is enough, however many headers follow.
        if let Some(status) = response.code {
            return Ok(status);
        }
        parsed.context("the response is not HTTP")?;
        ensure!(
            read > 0,
            "the service ends the connection before its response"
        );
        ensure!(
            head.len() < MAX_HEAD_BYTES,
            "the response has no status line"
        );
    }
}

fn format_statuses(status: &RangeInclusive<u16>) -> String {
    if status.start() == status.end() {
        status.start().to_string()
    } else {
        format!("{}-{}", status.start(), status.end())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::net::TcpListener;

    use super::*;

    fn check(target: &str) -> HealthCheck {
        HealthCheck {
            target: target.parse().unwrap(),
            expect_status: 200..=399,
            interval: Duration::from_millis(10),
            timeout: Duration::from_millis(500),
            failures: 2,
        }
    }

    /// Answers each connection with `answer`; nothing for closing it without.
    async fn serve(answer: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await?;
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await?;
                if request[..read].starts_with(b"GET /health?a=b HTTP/1.1\r\nHost: ") {
                    stream.write_all(answer.as_bytes()).await?;
                }
            }
            #[expect(unreachable_code, reason = "it gives the block its type")]
            Ok::<(), io::Error>(())
        });
        address
    }

    #[test]
    fn targets_are_read() {
        let http = |address: &str, host: &str, path: &str| CheckTarget::Http {
            address: address.to_owned(),
            host: host.to_owned(),
            path: path.to_owned(),
        };
        let tcp = |address: &str| CheckTarget::Tcp {
            address: address.to_owned(),
        };
        for (text, target) in [
            ("tcp://127.0.0.1:8081", tcp("127.0.0.1:8081")),
            ("tcp://localhost:1/", tcp("localhost:1")),
            ("tcp://[::1]:80", tcp("[::1]:80")),
            (
                "http://127.0.0.1:8081/health?x=1",
                http("127.0.0.1:8081", "127.0.0.1:8081", "/health?x=1"),
            ),
            ("http://localhost", http("localhost:80", "localhost", "/")),
            ("http://[::1]/", http("[::1]:80", "[::1]", "/")),
        ] {
            assert_eq!(text.parse::<CheckTarget>().unwrap(), target, "{text}");
        }
        for text in [
            "127.0.0.1:80",
            "tcp://127.0.0.1",
            "tcp://:80",
            "tcp://a:0",
            "tcp://a:99999",
            "udp://a:1",
            "https://a",
            "http://",
            "http:///x",
            "http://a b/",
            "http://a/\r\nX: y",
            "tcp://::1:80",
        ] {
            assert!(text.parse::<CheckTarget>().is_err(), "{text}");
        }
    }

    #[test]
    fn statuses_are_read() {
        assert_eq!(parse_status("204").unwrap(), 204..=204);
        assert_eq!(parse_status("200-399").unwrap(), 200..=399);
        for text in ["", "x", "399-200", "20", "1000", "200-", "-200"] {
            assert!(parse_status(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn good_answers_pass_and_bad_ones_have_a_reason() {
        for (answer, said) in [
            ("HTTP/1.1 200 OK\r\n\r\n", None),
            ("HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", None),
            ("HTTP/1.1 200 OK\r\nIncomplete", None),
            ("HTTP/1.1 503 Busy\r\n\r\n", Some("status 503, not 200-399")),
            ("HTTP/1.1 404 Not Found\r\n\r\n", Some("status 404")),
            ("SSH-2.0-OpenSSH_9\r\n", Some("not HTTP")),
            ("", Some("ends the connection")),
        ] {
            let address = serve(answer).await;
            let result = check(&format!("http://{address}/health?a=b")).run().await;
            match said {
                None => result.unwrap(),
                Some(said) => {
                    let error = format!("{:#}", result.unwrap_err());
                    assert!(error.contains(said), "{answer}: {error}");
                }
            }
            check(&format!("tcp://{address}")).run().await.unwrap();
        }
    }

    #[tokio::test]
    async fn check_times_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let silent = HealthCheck {
            timeout: Duration::from_millis(50),
            ..check(&format!("http://{address}/"))
        };
        let error = format!("{:#}", silent.run().await.unwrap_err());
        assert!(error.contains("no answer within 50ms"), "{error}");
        drop(listener);
        let error = format!(
            "{:#}",
            check(&format!("tcp://{address}")).run().await.unwrap_err()
        );
        assert!(error.contains("connect"), "{error}");
    }

    #[tokio::test]
    async fn changes_are_reported_after_enough_results() {
        let address = serve("HTTP/1.1 200 OK\r\n\r\n").await;
        let (publish, mut published) = watch::channel(None);
        let watching =
            tokio::spawn(check(&format!("http://{address}/health?a=b")).run_periodically(publish));
        published.changed().await.unwrap();
        assert_eq!(*published.borrow_and_update(), Some(true));
        watching.abort();

        // No server from the start: published at once.
        let (publish, mut published) = watch::channel(None);
        let watching = tokio::spawn(check("tcp://127.0.0.1:1").run_periodically(publish));
        published.changed().await.unwrap();
        assert_eq!(*published.borrow_and_update(), Some(false));
        watching.abort();

        // Once healthy, unhealthy only after the configured number of failures.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (publish, mut published) = watch::channel(None);
        let patient = HealthCheck {
            failures: 5,
            ..check(&format!("tcp://{address}"))
        };
        let begun = Instant::now();
        let watching = tokio::spawn(patient.run_periodically(publish));
        published.changed().await.unwrap();
        drop(listener);
        published.changed().await.unwrap();
        assert_eq!(*published.borrow_and_update(), Some(false));
        assert!(begun.elapsed() >= Duration::from_millis(40));
        watching.abort();
    }
}
