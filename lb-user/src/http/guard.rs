//! Keeps foreign web pages out, and tells browsers to be strict with ours.

use std::net::IpAddr;

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::error::Error;

const HEADERS: [(HeaderName, &str); 7] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
         connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        "same-origin",
    ),
    (
        HeaderName::from_static("cross-origin-opener-policy"),
        "same-origin",
    ),
];

/// Answers requests that are meant for this server, with the headers every answer carries.
///
/// On loopback the name asked for must be one of loopback: otherwise a page on the Internet could
/// point its own name at 127.0.0.1 and have the operator's browser read our answers to it.
pub async fn guard(State(on_loopback): State<bool>, request: Request, next: Next) -> Response {
    let mut response = if on_loopback && !is_for_loopback(&request) {
        Error::new(
            StatusCode::MISDIRECTED_REQUEST,
            "this server listens on loopback and answers to localhost and 127.0.0.1 only, so that \
             no foreign web page can read it; behind a proxy, have it send Host: localhost",
        )
        .into_response()
    } else {
        next.run(request).await
    };
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

fn is_for_loopback(request: &Request) -> bool {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let named = hosts.all(|host| host.to_str().is_ok_and(is_loopback));
    // The absolute form of a request names the host once more.
    named
        && request
            .uri()
            .authority()
            .is_none_or(|a| is_loopback(a.as_str()))
}

/// Returns whether `host`, with a port or without, can only mean this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    let address: Option<IpAddr> = address.unwrap_or(name).parse().ok();
    address.is_some_and(|address| address.is_loopback()) || name.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn knows_names_that_can_only_mean_this_machine() {
        for host in [
            "localhost",
            "LocalHost:9998",
            "127.0.0.1:9998",
            "127.1.2.3",
            "[::1]:80",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            ":9998",
            "evil.example",
            "evil.example:9998",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.56.101:9998",
            "localhost@evil.example",
            "localhost:9998:evil",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
