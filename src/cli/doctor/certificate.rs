//! The server's certificate, as a provider sees it.

use jiff::{SignedDuration, Timestamp};

use super::finding::Finding;
use crate::{
    cli::output::count,
    http::{Chain, Settings},
};

const CHECK: &str = "certificate";

/// A certificate that ends sooner than this should have been renewed.
const SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

pub(super) fn check(server: &Settings, now: Timestamp, findings: &mut Vec<Finding>) {
    let Some(tls) = &server.tls else {
        findings.push(match server.listen.ip().to_canonical().is_loopback() {
            true => Finding::fine(CHECK, "a proxy in front has the certificate"),
            false => Finding::warning(
                CHECK,
                format!("{} is open to other machines without TLS", server.listen),
                "providers want HTTPS: set [server] tls, or keep the port to the proxy in front",
            ),
        });
        return;
    };
    match tls.chain() {
        Ok(chain) => check_chain(&chain, now, findings),
        Err(problem) => findings.push(Finding::of_error(CHECK, &problem)),
    }
}

fn check_chain(chain: &Chain, now: Timestamp, findings: &mut Vec<Finding>) {
    let before = findings.len();
    let (from, to) = (chain.not_before, chain.not_after);
    if now > to {
        let what = format!("the certificate, or an intermediate, has expired on {to}");
        findings.push(Finding::blocker(
            CHECK,
            what,
            "renew it; the file is read again by itself",
        ));
    } else if now < from {
        let what = format!("the certificate is not valid before {from}");
        findings.push(Finding::blocker(
            CHECK,
            what,
            "look at the clock of this machine",
        ));
    } else if to.duration_since(now) < SOON {
        let what = format!("the certificate, or an intermediate, expires on {to}");
        findings.push(Finding::warning(
            CHECK,
            what,
            "renew it; the file is read again by itself",
        ));
    }
    if chain.is_self_signed {
        findings.push(Finding::warning(
            CHECK,
            "the certificate is signed by its own key, and no provider trusts it",
            "get one of a public authority",
        ));
    } else if chain.intermediates == 0 {
        findings.push(Finding::warning(
            CHECK,
            format!(
                "the certificate is alone; no intermediate of {} follows it",
                chain.issuer
            ),
            "append the intermediates to the file: providers do not fetch them",
        ));
    }
    if let Some(number) = chain.broken_after {
        findings.push(Finding::blocker(
            CHECK,
            format!(
                "certificate {} of the file did not sign certificate {number}",
                number + 1
            ),
            "put the server's certificate first, and after each certificate the one that signed it",
        ));
    }
    if chain.names.is_empty() {
        findings.push(Finding::blocker(
            CHECK,
            "the certificate has no host name",
            "get one whose alternative names have the host that providers post to",
        ));
    }
    if findings.len() == before {
        let (names, intermediates) = (chain.names.join(", "), chain.intermediates as u64);
        let intermediates = count(intermediates, "intermediate");
        let what = format!("for {names}, with {intermediates}, until {to}");
        findings.push(Finding::fine(CHECK, what));
    }
}
