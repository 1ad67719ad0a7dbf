//! Refuses requests from foreign web pages, and sets the security headers of responses.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{error::HttpError, health};

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

/// The host names of this server. A page on the Internet could point another name at its address, and read its
/// responses in the operator's browser (DNS rebinding).
#[derive(Debug)]
pub struct AllowedHosts {
    on_loopback: bool,
    /// Those of the configuration, and, unless the server listens on loopback, the machine's own.
    names: Vec<String>,
}

impl AllowedHosts {
    /// Returns the names of a server that listens at `address`; `configured` are those of `manager.http_names`.
    pub fn new(address: IpAddr, configured: &[String]) -> Self {
        let on_loopback = address.is_loopback();
        let own = (!on_loopback).then(|| nix::unistd::gethostname().ok());
        let own = own.flatten().and_then(|name| name.into_string().ok());
        Self {
            on_loopback,
            names: configured.iter().cloned().chain(own).collect(),
        }
    }

    /// Whether `host`, with a port or without, is allowed. Addresses are: a foreign page has a name.
    fn contains(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => host,
        };
        let address = name
            .strip_prefix('[')
            .and_then(|name| name.strip_suffix(']'));
        if let Ok(address) = address.unwrap_or(name).parse::<IpAddr>() {
            return !self.on_loopback || address.is_loopback();
        }
        let name = name.strip_suffix('.').unwrap_or(name);
        let mut names = self.names.iter().map(String::as_str);
        names.any(|it| name.eq_ignore_ascii_case(it)) || name.eq_ignore_ascii_case("localhost")
    }

    fn allow(&self, request: &Request) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let named = hosts.all(|host| host.to_str().is_ok_and(|host| self.contains(host)));
        // A request line in absolute form also has a host.
        let authority = request.uri().authority();
        named && authority.is_none_or(|it| self.contains(it.as_str()))
    }

    fn refusal(&self) -> HttpError {
        let answers = match self.on_loopback {
            true => "listens on loopback and answers to localhost and 127.0.0.1 only",
            false => "answers to addresses, localhost and the machine's own name only",
        };
        let message = format!(
            "this server {answers}, so that no foreign web page can read it: add the name to \
             manager.http_names, or let a proxy in front of the server send Host: localhost"
        );
        HttpError::new(StatusCode::MISDIRECTED_REQUEST, message)
    }
}

/// Refuses requests with another host name, and adds the security headers to responses. Health checks of other machines
/// may use any name, because their responses are not confidential.
pub async fn guard(
    State(names): State<Arc<AllowedHosts>>,
    request: Request,
    next: Next,
) -> Response {
    let is_probe = !names.on_loopback && health::is_probe(request.uri().path());
    let mut response = match is_probe || names.allow(&request) {
        true => next.run(request).await,
        false => names.refusal().into_response(),
    };
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn names(address: Ipv4Addr) -> AllowedHosts {
        AllowedHosts::new(address.into(), &["lb.example.com".to_owned()])
    }

    #[test]
    fn recognizes_names_that_can_only_mean_this_machine() {
        let names = names(Ipv4Addr::LOCALHOST);
        for host in [
            "lb.example.com",
            "LB.example.com.:9998",
            "localhost",
            "LocalHost:9998",
            "127.0.0.1:9998",
            "127.1.2.3",
            "[::1]:80",
        ] {
            assert!(names.contains(host), "{host}");
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
            assert!(!names.contains(host), "{host}");
        }
    }

    #[test]
    fn answers_elsewhere_to_addresses_and_to_known_names() {
        let names = names(Ipv4Addr::new(192, 168, 56, 101));
        let own = nix::unistd::gethostname().unwrap().into_string().unwrap();
        for host in [
            "192.168.56.101:9998",
            "10.0.0.1",
            "[2001:db8::1]:9998",
            "localhost:9998",
            "lb.example.com",
            &own,
            &format!("{}:9998", own.to_uppercase()),
        ] {
            assert!(names.contains(host), "{host}");
        }
        for host in [
            "",
            "evil.example:9998",
            "192.168.56.101.evil.example",
            &format!("{own}.evil.example"),
        ] {
            assert!(!names.contains(host), "{host}");
        }
    }
}
