//! Applies the web configuration file to connections and requests: TLS, passwords, the rate limit and
//! headers. The file is followed while serving.
//!
//! ```text
//! file ─► config ─┬─► tls ──► ServerConfig (per connection)
//!                 └─► auth (turns), rate limit, headers ─► Gate (per request)
//! ```

mod auth;
mod config;
mod tls;
mod turns;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use parking_lot::Mutex;
use podgauge_common::contents::Contents;
use podgauge_common::http::bucket::{self, Buckets};
use podgauge_common::http::serve::Tls;
use podgauge_common::http::tls::FileError;
use podgauge_common::http::{Response, respond};
use rustls::ServerConfig;
use tokio::sync::watch;

use self::auth::{Judgements, Users, Verdict};
use self::config::{RateLimit, TlsServer, WebConfig};

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
    #[error("{0}: TLS cannot be switched on or off while serving; restart the exporter for that")]
    Switched(PathBuf),
}

/// The configuration in force. Cheap to clone; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Web {
    path: Option<PathBuf>,
    tls: Option<Tls>,
    gate: Arc<ArcSwap<Gate>>,
    judgements: Judgements,
    rate: Arc<Mutex<Rate>>,
}

/// What every request passes.
#[derive(Debug, Default)]
struct Gate {
    users: Option<Users>,
    headers: HeaderMap,
    /// TLS verifies clients' certificates.
    verifies_clients: bool,
}

/// The rate limit in force, and what is left of it.
#[derive(Debug, Default)]
struct Rate {
    limit: RateLimit,
    left: Option<Buckets>,
}

/// The contents by which a change of the files is seen.
#[derive(Debug)]
pub(crate) struct Followed {
    contents: Contents,
    /// The warnings logged of the configuration in force.
    warnings: Vec<String>,
}

/// A configuration that was read.
struct Loaded {
    tls: Option<ServerConfig>,
    gate: Gate,
    rate_limit: RateLimit,
    /// The parts of it that are not available.
    warnings: Vec<String>,
    /// Every file that it was made from.
    contents: Contents,
}

// === impl Web ===

impl Web {
    /// Reads the file, if there is one to read.
    pub(crate) fn open(path: Option<&Path>) -> Result<(Self, Option<Followed>), WebError> {
        let loaded = path.map(load).transpose()?;
        let mut web = Self {
            path: path.map(Path::to_owned),
            tls: None,
            gate: Arc::default(),
            judgements: Judgements::default(),
            rate: Arc::default(),
        };
        let Some(loaded) = loaded else { return Ok((web, None)) };
        web.tls = loaded.tls.map(|tls| Arc::new(ArcSwap::from_pointee(tls)));
        web.gate.store(Arc::new(loaded.gate));
        web.rate.lock().set(loaded.rate_limit, Instant::now());
        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok((web, Some(Followed { contents: loaded.contents, warnings: loaded.warnings })))
    }

    /// For new connections.
    pub(crate) fn tls(&self) -> Option<Tls> {
        self.tls.clone()
    }

    /// `https` or `http`.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whether a client with this many certificates is known for certain: TLS has verified them.
    pub(crate) fn trusts(&self, certificates: usize) -> bool {
        certificates > 0 && self.gate.load().verifies_clients
    }

    /// Puts the files into force again whenever one changes, and at a hang-up. An error is logged
    /// once, and the last good configuration stays. Never returns if there are files.
    pub(crate) async fn follow(self, followed: Option<Followed>, mut hang_ups: watch::Receiver<u64>) {
        let (Some(path), Some(mut followed)) = (&self.path, followed) else { return };
        loop {
            tokio::select! {
                () = followed.contents.change(LOOK_EVERY) => {}
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
                    self.judgements.keep(loaded.gate.users.as_ref());
                    self.gate.store(Arc::new(loaded.gate));
                    self.rate.lock().set(loaded.rate_limit, Instant::now());
                    if loaded.warnings != followed.warnings {
                        loaded.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    }
                    followed = Followed { contents: loaded.contents, warnings: loaded.warnings };
                    tracing::info!("web configuration {}: read again, in force from now on", path.display());
                }
                Err(error) => tracing::error!("keeping the last good web configuration: {error}"),
            }
        }
    }

    /// Answers a request, or says why not. Passwords are asked for on every path, as Prometheus'
    /// exporters do. Requests to probes are not counted for the rate limit: a probe that fails restarts
    /// the exporter.
    pub(crate) async fn answer(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        is_probe: bool,
        answer: impl FnOnce() -> Response,
    ) -> Response {
        let gate = self.gate.load_full();
        let verdict = match &gate.users {
            None => Verdict::Right,
            Some(users) => users.judge(headers, from, &self.judgements).await,
        };
        let mut response = match verdict {
            Verdict::Right if is_probe || self.rate.lock().allows(from, Instant::now()) => answer(),
            Verdict::Right => respond::busy("the rate_limit of the web configuration is reached"),
            Verdict::Wrong => {
                let mut response = respond::text(StatusCode::UNAUTHORIZED, "Unauthorized");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
                response
            }
            Verdict::Busy => respond::busy("too many passwords of this address are being checked"),
        };
        for (name, value) in &gate.headers {
            response.headers_mut().insert(name, value.clone());
        }
        response
    }
}

// === impl WebError ===

impl WebError {
    /// With the name of the configuration, where the text names no file.
    fn in_file(self, path: &Path) -> Self {
        match self {
            Self::Tls(_) | Self::Certificate(FileError::Inline { .. }) => {
                Self::File { path: path.to_owned(), reason: self.to_string() }
            }
            other => other,
        }
    }
}

// === impl Rate ===

impl Rate {
    /// Puts a limit into force. The same limit goes on as it was.
    fn set(&mut self, limit: RateLimit, now: Instant) {
        if limit != self.limit {
            // Go's limiter refuses everything with a burst of 0: a key that was left out would stop all scrapes.
            let each = (1.0 / limit.interval.as_secs_f64(), limit.burst.max(1).into());
            let limited = !limit.interval.is_zero();
            self.left = limited.then(|| Buckets::new(bucket::Rate { all: each, each }, now));
            self.limit = limit;
        }
    }

    fn allows(&mut self, from: IpAddr, now: Instant) -> bool {
        self.left.as_mut().is_none_or(|left| left.take(from, now))
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
            files.extend(tls.files());
        }
        // What is read after this look and differs from it is seen as a change.
        let contents = Contents::of(files);
        let again = read()?;
        if again != text {
            text = again;
            continue;
        }
        let http2 = config.http_server_config.http2;
        let verifies_clients = config.tls_server_config.as_ref().is_some_and(TlsServer::verifies_clients);
        let tls = config.tls_server_config.as_ref().map(|tls| tls::server_config(tls, http2));
        let tls = tls.transpose().map_err(|error| error.in_file(path))?;
        let (tls, warnings) = tls.map_or((None, Vec::new()), |tls| (Some(tls.config), tls.warnings));
        let headers = config
            .http_server_config
            .header_map()
            .map_err(|reason| WebError::File { path: path.to_owned(), reason })?;
        let gate = Gate { users: Users::new(config.basic_auth_users), headers, verifies_clients };
        return Ok(Loaded { tls, gate, rate_limit: config.rate_limit, warnings, contents });
    }
}
