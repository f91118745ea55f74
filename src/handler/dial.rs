//! How a broker is reached: TCP, and TLS over it. The clients' own TLS is left out of them, so that
//! there is one way of it here, with one set of settings.

use std::{io, sync::Arc};

use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, ToSocketAddrs},
};
use tokio_rustls::TlsConnector;

use super::{BuildError, broker};
use crate::{cleartext::CleartextWarning, client_tls::ClientTls, secret::Secret};

/// The way to one broker.
#[derive(Clone)]
pub(super) struct Dial {
    /// A name, or an IP address without brackets.
    pub(super) host: String,
    /// The port.
    pub(super) port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// A connection, with TLS or without.
pub(super) type Stream = Box<dyn Duplex>;

/// What can be read and written.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> Duplex for S {}

/// How a protocol writes its addresses: a scheme and the port that it stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schemes {
    /// Without TLS.
    pub(super) plain: (&'static str, u16),
    /// With TLS.
    pub(super) tls: (&'static str, u16),
}

impl Schemes {
    /// Reads the URL of a broker, which has no path: what stands there elsewhere has a setting of its
    /// own here, as `place` says.
    ///
    /// # Errors
    ///
    /// As [`broker::url`].
    pub(super) fn url(self, text: &str, example: &str, place: &str) -> Result<Url, String> {
        let url = broker::url(text, &[self.tls.0, self.plain.0], example)?;
        if !url.path().trim_start_matches('/').is_empty() {
            return Err(format!("the URL has a path; {place}"));
        }
        Ok(url)
    }

    /// The warning about `password` if it is sent to `url` without TLS.
    pub(super) fn cleartext_warning(
        self,
        url: &Url,
        password: Option<&Secret>,
    ) -> Option<CleartextWarning> {
        if password.is_none() || url.scheme() == self.tls.0 {
            return None;
        }
        CleartextWarning::new("url", "its password", url.host_str(), &self.cure())
    }

    /// How to have TLS.
    fn cure(self) -> String {
        format!("begin `url` with \"{}://\"", self.tls.0)
    }
}

impl Dial {
    /// The way to `url`, which is of one of `schemes`, over `tls` if it is the one with TLS.
    ///
    /// # Errors
    ///
    /// When nobody can vouch for the broker, or something was said of TLS and there is none.
    pub(super) fn new(url: &Url, schemes: Schemes, tls: &ClientTls) -> Result<Self, BuildError> {
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

    /// Connects to one of `addresses`, which are those of the host.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub(super) async fn connect(addresses: impl ToSocketAddrs) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(addresses).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Speaks TLS over `stream`, if the broker is to be spoken to so.
    ///
    /// # Errors
    ///
    /// When the other side does not, or is not who it should be.
    pub(super) async fn secure(&self, stream: TcpStream) -> io::Result<Stream> {
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
