//! Owns the connection to the API server, from a kubeconfig file or the pod's service account, and
//! the watches over it.

pub mod outages;
pub mod pace;
pub mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// Time for a TCP and TLS connection to the API server. Requests waiting for authorization wait
/// for this at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig { path: PathBuf, reason: String },
    #[error(
        "no --kubeconfig given, and this is no pod with a service account ({reason}): give --kubeconfig PATH outside a cluster"
    )]
    InCluster { reason: String },
    #[error("cannot make a client for the API server {url}: {reason}")]
    Client { url: String, reason: String },
}

/// Longest silence on a connection: a watch is sent a bookmark every minute. An API server that is
/// gone without a word is noticed after this time.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Reads the configuration and makes a client; connects only when it is first used.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    let mut config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().map_err(|error| ClientError::InCluster { reason: one_line(&error) })?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // A connection that was not used for a while has no answer to be late.
    config.reset_reader_on_write = true;
    // Watches have their own back-off, and an authorization that fails must fail at once.
    config.default_retry = false;
    let url = config.cluster_url.to_string();
    Client::try_from(config).map_err(|error| ClientError::Client { url, reason: one_line(&error) })
}

async fn from_file(path: &Path) -> Result<Config, ClientError> {
    let wrong = |reason: String| ClientError::Kubeconfig { path: path.to_owned(), reason };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|error| {
        wrong(match &error {
            KubeconfigError::ReadConfig(cause, _) => cause.to_string(),
            KubeconfigError::Parse(cause) => {
                one_line(cause.as_ref()).trim_start_matches("error: ").to_owned()
            }
            _ => one_line(&error),
        })
    })?;
    if kubeconfig.clusters.is_empty() {
        return Err(wrong("it names no cluster".to_owned()));
    }
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| wrong(one_line(&error)))
}

/// An error and its causes in one line; a parser's picture of the place is left out.
pub fn one_line(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let full = error.to_string();
        let line = full.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
        // A refusal of the API server comes with all its fields after its text.
        let line = line.split(" (Status {").next().unwrap_or_default();
        // Many errors already hold their cause's text.
        if !text.contains(line) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(line);
        }
        next = error.source();
    }
    text
}
