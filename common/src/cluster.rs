//! Connects to the API server, from a kubeconfig file or the pod's service account, and watches it.

pub mod outages;
pub mod pace;
pub mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
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
    #[error(
        "NO_PROXY cannot be read: {reason}; write hosts, addresses and networks with commas between them"
    )]
    NoProxy { reason: String },
    #[error("cannot make a client for the API server {url}: {reason}")]
    Client { url: String, reason: String },
}

/// Longest silence on a connection: a watch is sent a bookmark every minute. An API server that is
/// gone without a word is noticed after this time.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Reads the configuration and makes a client; connects only when it is first used. With a kubeconfig
/// the API server is reached through the proxy that it names, or `HTTPS_PROXY` does; a pod reaches it
/// directly.
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
    let own_proxy = own_proxy(&kubeconfig);
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| match error {
            KubeconfigError::ParseNoProxy(cause) => ClientError::NoProxy { reason: one_line(&cause) },
            error => wrong(one_line(&error)),
        })?;
    // kube compares NO_PROXY with the host of the proxy.
    config.proxy_url = match own_proxy {
        Some(proxy) => Some(proxy.parse().map_err(|_| wrong(format!("proxy-url {proxy:?} is not a URL")))?),
        None => proxy_of(&config.cluster_url, |name| std::env::var(name).ok()),
    };
    Ok(config)
}

/// The proxy that the kubeconfig names for the cluster in use. It needs no `NO_PROXY`.
fn own_proxy(kubeconfig: &Kubeconfig) -> Option<String> {
    let current = kubeconfig.current_context.as_deref()?;
    let context = kubeconfig.contexts.iter().find(|context| context.name == current)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|cluster| cluster.name == context.cluster)?;
    cluster.cluster.as_ref()?.proxy_url.clone().filter(|proxy| !proxy.is_empty())
}

/// The proxy that the environment has for a host, as Go's programs read it.
fn proxy_of(server: &http::Uri, variable: impl Fn(&str) -> Option<String>) -> Option<http::Uri> {
    let set =
        |names: [&str; 2]| names.into_iter().find_map(|name| variable(name).filter(|it| !it.is_empty()));
    let proxy = set(["HTTPS_PROXY", "https_proxy"])?;
    let none = set(["NO_PROXY", "no_proxy"]).unwrap_or_default();
    // The matcher compares `*` with names alone.
    if none.split(',').any(|part| part.trim() == "*") {
        return None;
    }
    let proxy = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
    Matcher::builder().https(proxy.as_str()).no(none.as_str()).build().intercept(server)?;
    proxy.parse().ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(server: &str, variables: &[(&str, &str)]) -> Option<String> {
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        proxy_of(&server.parse().unwrap(), variable).map(|uri| uri.to_string())
    }

    #[test]
    fn no_proxy_is_judged_by_the_api_servers_host() {
        let https = ("HTTPS_PROXY", "http://proxy.corp:3128");
        let server = "https://api.cluster.corp:6443";
        assert_eq!(proxy(server, &[]), None);
        assert_eq!(proxy(server, &[https]).as_deref(), Some("http://proxy.corp:3128/"));
        for no in ["api.cluster.corp", ".cluster.corp", "a, cluster.corp,", "*"] {
            assert_eq!(proxy(server, &[https, ("NO_PROXY", no)]), None, "{no}");
        }
        // The proxy's own host is not the question.
        let aside = [https, ("NO_PROXY", "proxy.corp,10.0.0.0/8")];
        assert_eq!(proxy(server, &aside).as_deref(), Some("http://proxy.corp:3128/"));
        assert_eq!(proxy("https://10.1.2.3:6443", &aside), None);
        assert_eq!(proxy("https://10.1.2.3:6443", &[https, ("no_proxy", "a, *")]), None);
        // Plain HTTP is not HTTPS_PROXY's.
        assert_eq!(proxy("http://127.0.0.1:8001", &[https]), None);
    }

    #[test]
    fn proxies_are_written_with_and_without_scheme_user_and_value() {
        let server = "https://api:6443";
        let of = |value: &'static str| proxy(server, &[("https_proxy", value)]);
        assert_eq!(of("http://user:secret@proxy:1").as_deref(), Some("http://user:secret@proxy:1/"));
        assert_eq!(of("user:secret@proxy:3128").as_deref(), Some("http://user:secret@proxy:3128/"));
        assert_eq!(of(""), None);
    }
}
