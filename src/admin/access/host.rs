//! The name by which a request addresses the admin server.
//!
//! A name that an attacker controls can be made to resolve to this server, so that a browser takes the
//! server's answers for those of the attacker's page. Addresses and `localhost` cannot: no other site
//! has them as its name.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderValue, Uri, header};

/// Whether the request addresses the server by an address, as `localhost`, or as one of `hosts`.
/// Requests of HTTP/1.0 need not say; no browser sends them.
pub(super) fn is_known(headers: &HeaderMap, hosts: &[String]) -> bool {
    let is_one_known = |host: &HeaderValue| {
        let name = host.to_str().ok().and_then(without_port);
        name.is_some_and(|name| {
            is_address(name)
                || name.eq_ignore_ascii_case("localhost")
                || hosts.iter().any(|known| known.eq_ignore_ascii_case(name))
        })
    };
    headers.get_all(header::HOST).iter().all(is_one_known)
}

/// Whether `Origin` is the origin of the page that the request addresses.
pub(super) fn is_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let origin = text(header::ORIGIN).and_then(|origin| origin.parse::<Uri>().ok());
    let authority = origin.as_ref().and_then(Uri::authority);
    match (authority, text(header::HOST)) {
        (Some(authority), Some(host)) => authority.as_str().eq_ignore_ascii_case(host),
        _ => false,
    }
}

fn without_port(host: &str) -> Option<&str> {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => port
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then_some(name),
        _ => Some(host),
    }
}

fn is_address(name: &str) -> bool {
    let bracketed = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    match bracketed {
        Some(name) => name.parse::<Ipv6Addr>().is_ok(),
        None => name.parse::<IpAddr>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(host: &'static str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, HeaderValue::from_static(host));
        is_known(&headers, &["ops.example.com".to_owned()])
    }

    #[test]
    fn a_request_addresses_the_server_by_an_address_or_by_a_configured_name() {
        for host in [
            "127.0.0.1:9090",
            "10.1.2.3",
            "[::1]:9090",
            "[::1]",
            "localhost",
            "LOCALHOST:9090",
            "ops.example.com",
            "Ops.example.com:443",
        ] {
            assert!(known(host), "{host}");
        }
        for host in [
            "rebound.example.net:9090",
            "localhost.example.net",
            "ops.example.com.example.net",
            "ops.example.com:80@example.net",
            "",
            "[::1].example.net",
        ] {
            assert!(!known(host), "{host}");
        }
        assert!(is_known(&HeaderMap::new(), &[]), "HTTP/1.0");
    }
}
