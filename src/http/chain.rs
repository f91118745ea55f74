//! What a provider sees in the server's certificate: its names, its times, and the order of its chain.

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

use super::Tls;
use crate::pem::CertificateChain;

/// A certificate with its intermediates.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// The host names and addresses that the certificate is for.
    pub names: Vec<String>,
    /// Who signed the certificate.
    pub issuer: String,
    /// The first moment at which the certificate is valid.
    pub not_before: Timestamp,
    /// The last moment at which each certificate of the chain is valid.
    pub not_after: Timestamp,
    /// Whether the certificate is signed by its own key, so that no provider trusts it.
    pub is_self_signed: bool,
    /// The number of intermediates.
    pub intermediates: usize,
    /// The number, from 1, of the first certificate that the next one did not sign.
    pub broken_after: Option<usize>,
}

impl Tls {
    /// Reads the chain of the certificate's file.
    ///
    /// # Errors
    ///
    /// When the file holds no certificate that can be parsed.
    pub fn chain(&self) -> Result<Chain, String> {
        let chain = CertificateChain::try_from(self.certificate.clone())?;
        let parsed: Result<Vec<_>, _> = chain.certificates().iter().map(parse).collect();
        let path = self.certificate.display();
        let broken = || format!("{path} holds a certificate that cannot be parsed; copy it whole");
        let parsed = parsed.map_err(|_| broken())?;
        Chain::of(&parsed).ok_or_else(broken)
    }
}

fn parse(der: &CertificateDer<'_>) -> Result<Certificate, x509_cert::der::Error> {
    Certificate::from_der(der)
}

impl Chain {
    /// The chain of `certificates`; `None` when there are none, or one has an impossible time.
    fn of(certificates: &[Certificate]) -> Option<Self> {
        let first = &certificates.first()?.tbs_certificate;
        let times = certificates.iter().map(|certificate| {
            let validity = certificate.tbs_certificate.validity;
            timestamp(validity.not_after)
        });
        let not_after = times.collect::<Option<Vec<_>>>()?.into_iter().min()?;
        let broken = certificates
            .array_windows()
            .position(|[one, next]| one.tbs_certificate.issuer != next.tbs_certificate.subject);
        Some(Self {
            names: names(first),
            issuer: first.issuer.to_string(),
            not_before: timestamp(first.validity.not_before)?,
            not_after,
            is_self_signed: first.issuer == first.subject,
            intermediates: certificates.len() - 1,
            broken_after: broken.map(|place| place + 1),
        })
    }
}

fn timestamp(time: x509_cert::time::Time) -> Option<Timestamp> {
    let seconds = i64::try_from(time.to_unix_duration().as_secs()).ok()?;
    Timestamp::from_second(seconds).ok()
}

fn names(certificate: &x509_cert::TbsCertificate) -> Vec<String> {
    let names = certificate.get::<SubjectAltName>().ok().flatten();
    let names = names.map(|(_, names)| names.0).unwrap_or_default();
    let name = |name: &GeneralName| match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(address) => ip_address(address.as_bytes()),
        _ => None,
    };
    names.iter().filter_map(name).collect()
}

fn ip_address(bytes: &[u8]) -> Option<String> {
    match bytes.len() {
        4 => Some(std::net::Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).to_string()),
        _ => Some(std::net::Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).to_string()),
    }
}
