//! Reads the counters file, from a file or a ConfigMap, and follows it: SIGHUP and every change of
//! its content give a new set; one that cannot be used leaves the last good set in force.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use podgauge_common::cluster::{self, ClientError};
use tokio::sync::{mpsc, watch};

use crate::counters::{self, Counters, CountersError, MetricNames};

/// Time between two looks at a file. Projected volumes change by a symlink that no watch of the
/// file sees.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Time between two looks at a ConfigMap. A watch would need more rights than `get` on this one.
const ASK_EVERY: Duration = Duration::from_secs(10);
/// Time for one answer of the API server.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The key of the ConfigMap that holds the file.
const KEY: &str = "metrics";

/// `-m`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigMapName {
    namespace: String,
    name: String,
}

/// Where the counters file comes from.
#[derive(Debug)]
pub(crate) enum Source {
    /// `-f`; `None`: the default file, or the built-in one.
    File(Option<PathBuf>),
    ConfigMap {
        name: ConfigMapName,
        api: Box<Api<ConfigMap>>,
    },
}

/// A counters file as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CountersText {
    /// For messages.
    pub(crate) name: String,
    pub(crate) text: String,
    /// It is not UTF-8, and was taken for Latin-1.
    pub(crate) is_latin_1: bool,
}

/// Why there is no counters file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error(transparent)]
    Counters(#[from] CountersError),
    #[error("ConfigMap {name}: {source}")]
    Client { name: ConfigMapName, source: ClientError },
    #[error("ConfigMap {name}: {reason}")]
    ConfigMap { name: ConfigMapName, reason: String },
    #[error(
        "{name} asks for no field any more; the last good counters stay until it does, or until a restart"
    )]
    Emptied { name: String },
}

// === impl ConfigMapName ===

impl FromStr for ConfigMapName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim().split_once(':') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains(':') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!(
                "--configmap-data {text:?} is not the name of a ConfigMap: write it NAMESPACE:NAME"
            )),
        }
    }
}

impl std::fmt::Display for ConfigMapName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl Source ===

impl Source {
    /// The ConfigMap, reached with this kubeconfig or the pod's service account.
    pub(crate) async fn config_map(
        name: ConfigMapName,
        kubeconfig: Option<PathBuf>,
    ) -> Result<Self, SourceError> {
        let client: Client = cluster::connect(kubeconfig.as_deref())
            .await
            .map_err(|source| SourceError::Client { name: name.clone(), source })?;
        Ok(Self::ConfigMap { api: Box::new(Api::namespaced(client, &name.namespace)), name })
    }

    /// Reads the text as it is now.
    pub(crate) async fn read(&self) -> Result<CountersText, SourceError> {
        match self {
            Self::File(path) => Ok(counters::read(path.as_deref())?),
            Self::ConfigMap { name, api } => {
                let bytes = read_config_map(name, api)
                    .await
                    .map_err(|reason| SourceError::ConfigMap { name: name.clone(), reason })?;
                Ok(counters::text_of(format!("ConfigMap {name}, key {KEY}"), bytes)?)
            }
        }
    }

    fn every(&self) -> Duration {
        match self {
            Self::File(_) => LOOK_EVERY,
            Self::ConfigMap { .. } => ASK_EVERY,
        }
    }

    /// Whether neither `-f` nor `-m` says which fields are served.
    pub(crate) fn is_default(&self) -> bool {
        matches!(self, Self::File(None))
    }

    /// Sends a new set whenever the text is another one and good, or at a hang-up. What is wrong is
    /// logged once. Ends when the receiver is gone.
    pub(crate) async fn follow(
        self,
        mut known: CountersText,
        names: MetricNames,
        mut hang_ups: watch::Receiver<u64>,
        sets: mpsc::Sender<(CountersText, Counters)>,
    ) {
        let mut said: Option<String> = None;
        loop {
            let hung_up = tokio::select! {
                () = tokio::time::sleep(self.every()) => false,
                changed = hang_ups.changed() => changed.is_ok(),
                () = sets.closed() => return,
            };
            let read = match self.read().await {
                Ok(text) if text == known && !hung_up => {
                    // As it was before the trouble: that set is still in force.
                    said = None;
                    continue;
                }
                Ok(text) => match counters::parse(&text.text, &text.name) {
                    // An editor empties a file before it writes it.
                    Ok(counters) if counters.is_empty() => Err(SourceError::Emptied { name: text.name }),
                    Ok(counters) => Ok((text, counters.named(names, self.is_default()))),
                    Err(error) => Err(error.into()),
                },
                Err(error) => Err(error),
            };
            match read {
                Ok((text, counters)) => {
                    said = None;
                    known = text.clone();
                    if sets.send((text, counters)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if hung_up || said.as_ref() != Some(&error) {
                        tracing::error!("keeping the last good counters: {error}");
                    }
                    said = Some(error);
                }
            }
        }
    }
}

/// The bytes of the key. Bytes that are not UTF-8 are in `binaryData`.
async fn read_config_map(name: &ConfigMapName, api: &Api<ConfigMap>) -> Result<Vec<u8>, String> {
    let object = match tokio::time::timeout(ANSWER_LIMIT, api.get_opt(&name.name)).await {
        Ok(Ok(Some(object))) => object,
        Ok(Ok(None)) => return Err("there is none of this name in this namespace".to_owned()),
        Ok(Err(kube::Error::Api(status))) => {
            return Err(format!("the API server refuses: {}", status.message));
        }
        Ok(Err(error)) => return Err(cluster::one_line(&error)),
        Err(_) => return Err(format!("the API server does not answer within {ANSWER_LIMIT:?}")),
    };
    let (mut data, mut binary) = (object.data.unwrap_or_default(), object.binary_data.unwrap_or_default());
    let text = data.remove(KEY).map(String::into_bytes);
    text.or_else(|| binary.remove(KEY).map(|bytes| bytes.0)).ok_or_else(|| {
        let keys: Vec<&String> = data.keys().chain(binary.keys()).collect();
        format!("it has no key {KEY:?}, only {keys:?}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_config_maps() {
        let name: ConfigMapName = "gpu:metrics-map".parse().unwrap();
        assert_eq!(name.to_string(), "gpu/metrics-map");
        for wrong in ["", "x", ":x", "x:", "a:b:c"] {
            assert!(wrong.parse::<ConfigMapName>().unwrap_err().contains("NAMESPACE:NAME"), "{wrong}");
        }
    }
}
