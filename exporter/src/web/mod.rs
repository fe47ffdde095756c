//! Owns what stands between a connection and the routes: TLS, passwords and headers by the web
//! configuration file, followed while serving.
//!
//! ```text
//! file ─► config ─┬─► tls ──► ServerConfig (per connection)
//!                 └─► auth, headers ─► Gate (per request)
//! ```

mod auth;
mod config;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use podgauge_common::contents::Contents;
use podgauge_common::http::serve::Tls;
use podgauge_common::http::tls::FileError;
use podgauge_common::http::{Response, respond};
use rustls::ServerConfig;
use tokio::sync::watch;

use self::auth::{Judgements, Users, Verdict};
use self::config::WebConfig;

/// Time between two looks at the files.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Why a web configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    #[error("cannot read web configuration {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}, line {line}: {message}")]
    Line { path: PathBuf, line: u64, message: String },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("tls_server_config: {0}")]
    Tls(String),
    #[error(transparent)]
    Certificate(#[from] FileError),
    #[error("{0}: TLS cannot be switched on or off while serving; start the exporter anew for that")]
    Switched(PathBuf),
}

/// The configuration in force. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Web {
    path: Option<PathBuf>,
    tls: Option<Tls>,
    gate: Arc<ArcSwap<Gate>>,
    judgements: Judgements,
}

/// What every request passes.
#[derive(Debug, Default)]
struct Gate {
    users: Option<Users>,
    headers: HeaderMap,
}

/// A configuration that was read.
struct Loaded {
    tls: Option<ServerConfig>,
    gate: Gate,
    /// Every file that it was made from.
    contents: Contents,
}

// === impl Web ===

impl Web {
    /// Reads the file, if there is one to read.
    pub(crate) fn open(path: Option<&Path>) -> Result<(Self, Option<Contents>), WebError> {
        let (tls, gate, contents) = match path {
            None => (None, Gate::default(), None),
            Some(path) => {
                let loaded = load(path)?;
                (loaded.tls, loaded.gate, Some(loaded.contents))
            }
        };
        let web = Self {
            path: path.map(Path::to_owned),
            tls: tls.map(|tls| Arc::new(ArcSwap::from_pointee(tls))),
            gate: Arc::new(ArcSwap::from_pointee(gate)),
            judgements: Judgements::default(),
        };
        Ok((web, contents))
    }

    /// For new connections.
    pub(crate) fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }

    /// `https` or `http`.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Puts the files into force again whenever one changes, and at a hang-up. What is wrong is
    /// said once, and the last good configuration stays. Never returns if there are files.
    pub(crate) async fn follow(self, contents: Option<Contents>, mut hang_ups: watch::Receiver<u64>) {
        let (Some(path), Some(mut contents)) = (&self.path, contents) else { return };
        loop {
            tokio::select! {
                () = contents.change(LOOK_EVERY) => {}
                Ok(()) = hang_ups.changed() => {}
            }
            let loaded = load(path).and_then(|loaded| {
                if loaded.tls.is_some() == self.tls.is_some() {
                    Ok(loaded)
                } else {
                    Err(WebError::Switched(path.clone()))
                }
            });
            match loaded {
                Ok(loaded) => {
                    if let (Some(serving), Some(tls)) = (&self.tls, loaded.tls) {
                        serving.store(Arc::new(tls));
                    }
                    self.gate.store(Arc::new(loaded.gate));
                    contents = loaded.contents;
                    tracing::info!("web configuration {}: read again, in force from now on", path.display());
                }
                Err(error) => tracing::error!("keeping the last good web configuration: {error}"),
            }
        }
    }

    /// Answers a request, or says why not. Passwords are asked for on every path, as Prometheus'
    /// exporters do.
    pub(crate) async fn answer(&self, headers: &HeaderMap, answer: impl FnOnce() -> Response) -> Response {
        let gate = self.gate.load_full();
        let verdict = match &gate.users {
            None => Verdict::Right,
            Some(users) => users.judge(headers, &self.judgements).await,
        };
        let mut response = match verdict {
            Verdict::Right => answer(),
            Verdict::Wrong => {
                let mut response = respond::text(StatusCode::UNAUTHORIZED, "Unauthorized");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
                response
            }
            Verdict::Busy => respond::text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many passwords are being checked; try again in a moment",
            ),
        };
        for (name, value) in &gate.headers {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }
}

fn load(path: &Path) -> Result<Loaded, WebError> {
    let read =
        || std::fs::read_to_string(path).map_err(|source| WebError::Read { path: path.to_owned(), source });
    let mut text = read()?;
    loop {
        let config = WebConfig::parse(path, &text)?;
        let mut files = vec![path.to_owned()];
        if let Some(tls) = &config.tls_server_config {
            files.extend([tls.cert_file.clone(), tls.key_file.clone()]);
            files.extend(tls.client_ca_file.clone());
        }
        // What is read after this look and differs from it is seen as a change.
        let contents = Contents::of(files);
        let again = read()?;
        if again != text {
            text = again;
            continue;
        }
        let http2 = config.http_server_config.http2;
        let tls = config.tls_server_config.as_ref().map(|tls| tls::server_config(tls, http2)).transpose()?;
        let headers = config
            .http_server_config
            .header_map()
            .map_err(|reason| WebError::File { path: path.to_owned(), reason })?;
        let gate = Gate { users: Users::new(config.basic_auth_users), headers };
        return Ok(Loaded { tls, gate, contents });
    }
}
