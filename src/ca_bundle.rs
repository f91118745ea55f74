//! The CA bundle that a server's certificate is verified with.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use serde::Deserialize;

use crate::pem;

/// The CA certificates of a PEM file. The file is read together with the settings.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct CaBundle {
    path: PathBuf,
    roots: Arc<RootCertStore>,
}

impl CaBundle {
    /// The path of the file, for clients that read the file themselves.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The certificates of the file.
    pub fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }
}

impl TryFrom<PathBuf> for CaBundle {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        let wrong = |problem: &dyn std::fmt::Display| {
            let path = path.display();
            format!("{path} cannot be read as a PEM file with certificates: {problem}")
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem::read(&path)?) {
            let certificate = certificate.map_err(|error| wrong(&error))?;
            roots.add(certificate).map_err(|error| wrong(&error))?;
        }
        if roots.is_empty() {
            return Err(wrong(&"there is none in it"));
        }
        let roots = Arc::new(roots);
        Ok(Self { path, roots })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused_while_it_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        for (content, why) in [(None, "No such file"), (Some("nothing"), "there is none")] {
            if let Some(content) = content {
                fs::write(&path, content).unwrap();
            }
            let refused = CaBundle::try_from(path.clone()).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&path, made.cert.pem()).unwrap();
        assert!(CaBundle::try_from(path).is_ok());
    }
}
