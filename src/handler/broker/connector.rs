//! A connector to a broker: TCP, and TLS over it.
//!
//! The TLS of the client libraries is left out of the build, so that all brokers have the same
//! settings of TLS.

use std::{io, sync::Arc};

use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, ToSocketAddrs},
};
use tokio_rustls::TlsConnector;

use super::url;
use crate::{
    cleartext::CleartextWarning, client_tls::ClientTls, handler::BuildError, secret::Secret,
};

/// Connects to one broker.
#[derive(Clone)]
pub(in crate::handler) struct Connector {
    /// A name, or an IP address without brackets.
    pub(in crate::handler) host: String,
    /// The port.
    pub(in crate::handler) port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A connection, with TLS or without.
pub(in crate::handler) type Connection = Box<dyn Duplex>;

/// A stream of bytes in both directions.
pub(in crate::handler) trait Duplex:
    AsyncRead + AsyncWrite + Send + Sync + Unpin
{
}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for S {}

/// The URL schemes of a protocol, each with its default port.
#[derive(Clone, Copy, Debug)]
pub(in crate::handler) struct Schemes {
    /// Without TLS.
    pub(in crate::handler) plain: (&'static str, u16),
    /// With TLS.
    pub(in crate::handler) tls: (&'static str, u16),
}

impl Schemes {
    /// Reads the URL of a broker. The URL has no path: `instead` names the setting that says what
    /// the path of such a URL says elsewhere.
    ///
    /// # Errors
    ///
    /// See [`url::read`].
    pub(in crate::handler) fn url(
        self,
        text: &str,
        example: &str,
        instead: &str,
    ) -> Result<Url, String> {
        let url = url::read(text, &[self.tls.0, self.plain.0], example)?;
        if !url.path().trim_start_matches('/').is_empty() {
            return Err(format!("the URL has a path; {instead}"));
        }
        Ok(url)
    }

    /// The warning about `password` if it is sent to `url` without TLS.
    pub(in crate::handler) fn cleartext_warning(
        self,
        url: &Url,
        password: Option<&Secret>,
    ) -> Option<CleartextWarning> {
        if password.is_none() || url.scheme() == self.tls.0 {
            return None;
        }
        CleartextWarning::new("url", "its password", url.host_str(), &self.cure())
    }

    /// How to get TLS.
    fn cure(self) -> String {
        format!("begin `url` with \"{}://\"", self.tls.0)
    }
}

impl Connector {
    /// A connector to `url`, which has one of `schemes`. It uses `tls` if the scheme asks for TLS.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up, or when `tls` is set and the scheme asks for no TLS.
    pub(in crate::handler) fn new(
        url: &Url,
        schemes: Schemes,
        tls: &ClientTls,
    ) -> Result<Self, BuildError> {
        let is_tls = url.scheme() == schemes.tls.0;
        let (_, port) = if is_tls { schemes.tls } else { schemes.plain };
        let host = url.host_str().unwrap_or_default();
        let host = host.trim_matches(['[', ']']).to_owned();
        let tls = if is_tls {
            let config = tls.config().map_err(BuildError)?;
            Some((Arc::new(config).into(), server_name(&host)?))
        } else {
            tls.require_unset(&schemes.cure()).map_err(BuildError)?;
            None
        };
        Ok(Self {
            host,
            port: url.port().unwrap_or(port),
            tls,
        })
    }

    /// Opens a TCP connection to one of `addresses`, the addresses of the host.
    ///
    /// # Errors
    ///
    /// When no address accepts the connection.
    pub(in crate::handler) async fn connect(
        addresses: impl ToSocketAddrs,
    ) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(addresses).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Starts TLS on `stream`, if this connector uses TLS.
    ///
    /// # Errors
    ///
    /// When the handshake fails, or the certificate of the broker is refused.
    pub(in crate::handler) async fn secure(&self, stream: TcpStream) -> io::Result<Connection> {
        Ok(match &self.tls {
            Some((tls, name)) => Box::new(tls.connect(name.clone(), stream).await?),
            None => Box::new(stream),
        })
    }
}

fn server_name(host: &str) -> Result<ServerName<'static>, BuildError> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| BuildError(format!("there can be no certificate for {host:?}")))
}
