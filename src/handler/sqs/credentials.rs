//! AWS credentials, and the signature of a request with them: Signature Version 4.
//!
//! The TOML refers to keys. Without keys there, the client library looks for credentials where AWS's own tools
//! do, in this order:
//!
//! 1. the environment: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`;
//! 2. the profile `AWS_PROFILE` of `~/.aws/credentials` and `~/.aws/config`;
//! 3. a web identity, by which pods have roles: `AWS_ROLE_ARN`, `AWS_WEB_IDENTITY_TOKEN_FILE`;
//! 4. a container's agent: `AWS_CONTAINER_CREDENTIALS_FULL_URI` or `_RELATIVE_URI`;
//! 5. the metadata of an EC2 instance, version 2.
//!
//! The first source with credentials counts. If a configured source fails, the search ends with its error, so
//! that a handler never acts under another identity by accident. `credential_process` and SSO are not
//! supported: both are for people at a keyboard.
//!
//! Credentials are renewed two minutes before they expire. Credentials that the queue refuses are looked up
//! again.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response, request::Parts};
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider as WebIdentity, Credential,
    ECSCredentialProvider as Container, EnvCredentialProvider as Environment,
    IMDSv2CredentialProvider as Instance, ProfileCredentialProvider as Profile, RequestSigner,
};
use reqsign_core::{
    Context, Error, FileRead, HttpSend, OsEnv, ProvideCredential, ProvideCredentialDyn, Result,
    Signer,
};
use reqwest::{Client, redirect::Policy};

use super::body_of;
use crate::{
    handler::{client, text_or_secret::TextOrSecret, with_causes},
    secret::Secret,
};

/// The time limit of a source for connecting, and for answering. An address without a server, such as
/// that of the metadata outside EC2, must not take a whole attempt.
const REACHED_WITHIN: Duration = Duration::from_secs(1);
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// The most characters of an error that a reason contains: some errors quote a whole page.
const LONGEST_PROBLEM: usize = 300;

/// Keys from the TOML.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// The access key.
    pub(super) id: TextOrSecret,
    /// The secret of the access key.
    pub(super) secret: Secret,
    /// The session token of temporary credentials.
    pub(super) token: Option<Secret>,
}

/// Signs requests to one region's SQS.
#[derive(Debug)]
pub(super) struct Identity {
    region: String,
    source: Arc<Source>,
    context: Context,
    /// Caches credentials until they expire.
    signer: ArcSwap<Signer<Credential>>,
}

/// A signer as one attempt used it.
pub(super) type Used = Arc<Signer<Credential>>;

impl Identity {
    /// The identity with `keys`.
    pub(super) fn fixed(keys: Keys, region: String) -> Self {
        Self::new(Source::Given(keys), Context::new(), region)
    }

    /// The identity that the sources of AWS's tools give.
    ///
    /// # Errors
    ///
    /// When no HTTP client can be built.
    pub(super) fn found(region: String) -> reqwest::Result<Self> {
        let client = Client::builder()
            .user_agent(client::USER_AGENT)
            .redirect(Policy::none())
            .no_proxy()
            .connect_timeout(REACHED_WITHIN)
            .timeout(ANSWERED_WITHIN)
            .build()?;
        let context = Context::new()
            .with_env(OsEnv)
            .with_file_read(Disk)
            .with_http_send(Web(client));
        Ok(Self::new(Source::found(&region), context, region))
    }

    fn new(source: Source, context: Context, region: String) -> Self {
        let source = Arc::new(source);
        let signer = signer(&source, &context, &region);
        Self {
            region,
            source,
            context,
            signer: ArcSwap::from_pointee(signer),
        }
    }

    /// Signs a request, with all of its headers.
    ///
    /// # Errors
    ///
    /// When there are no credentials. The error says why.
    pub(super) async fn sign(&self, request: &mut Parts) -> std::result::Result<Used, String> {
        let signer = self.signer.load_full();
        match signer.sign(request, None).await {
            Ok(()) => Ok(signer),
            Err(error) => Err(format!("there are no credentials: {}", describe(&error))),
        }
    }

    /// Drops the cached credentials of an attempt, unless another attempt has replaced them.
    pub(super) fn forget(&self, used: &Used) {
        let anew = signer(&self.source, &self.context, &self.region);
        self.signer.compare_and_swap(used, Arc::new(anew));
    }
}

fn signer(source: &Arc<Source>, context: &Context, region: &str) -> Signer<Credential> {
    // A private host may have any name; none is a host of S3.
    let requests = RequestSigner::new("sqs", region).with_standard_session_token();
    Signer::new(context.clone(), source.clone(), requests)
}

/// The sources of credentials.
#[derive(Debug)]
enum Source {
    Given(Keys),
    Found(Vec<Place>),
}

/// One source, and its name.
type Place = (
    &'static str,
    Box<dyn ProvideCredentialDyn<Credential = Credential>>,
);

impl Source {
    fn found(region: &str) -> Self {
        // The global endpoint of STS is in one region, and not in every partition.
        let web_identity = WebIdentity::new()
            .with_region(region.to_owned())
            .with_regional_sts_endpoint();
        Self::Found(vec![
            ("the environment", Box::new(Environment::new())),
            ("the profile", Box::new(Profile::new())),
            ("the web identity", Box::new(web_identity)),
            ("the container's agent", Box::new(Container::new())),
            ("the instance's metadata", Box::new(Instance::new())),
        ])
    }
}

impl ProvideCredential for Source {
    type Credential = Credential;

    async fn provide_credential(&self, context: &Context) -> Result<Option<Credential>> {
        let places = match self {
            Self::Given(keys) => return Ok(Some(keys.to_credential())),
            Self::Found(places) => places,
        };
        for (name, place) in places {
            match place.provide_credential_dyn(context).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => {
                    let problem = format!("{name} has none: {}", describe(&error));
                    return Err(Error::credential_invalid(problem));
                }
            }
        }
        let problem = "none are where AWS's tools look; give `access_key_id` and \
                       `secret_access_key`";
        Err(Error::credential_invalid(problem))
    }
}

impl Keys {
    fn to_credential(&self) -> Credential {
        Credential {
            access_key_id: self.id.expose().to_owned(),
            secret_access_key: self.secret.expose().to_owned(),
            session_token: self.token.as_ref().map(|token| token.expose().to_owned()),
            expires_in: None,
        }
    }
}

fn describe(error: &Error) -> String {
    let text = with_causes(error).replace(char::is_control, " ");
    text.chars().take(LONGEST_PROBLEM).collect()
}

/// Reads files for the sources.
#[derive(Debug)]
struct Disk;

impl FileRead for Disk {
    async fn file_read(&self, path: &str) -> Result<Vec<u8>> {
        let read = tokio::fs::read(path).await;
        read.map_err(|error| Error::config_invalid(format!("{path} cannot be read: {error}")))
    }
}

/// Sends requests for the sources.
#[derive(Debug)]
struct Web(Client);

impl HttpSend for Web {
    async fn http_send(&self, request: Request<Bytes>) -> Result<Response<Bytes>> {
        let failed = |error| {
            let problem = client::describe(error);
            Error::unexpected(format!("got no answer: {problem}"))
        };
        let request = request.try_into().map_err(failed)?;
        let mut response = self.0.execute(request).await.map_err(failed)?;
        let mut answer = Response::new(body_of(&mut response).await.map_err(failed)?);
        *answer.status_mut() = response.status();
        Ok(answer)
    }
}
