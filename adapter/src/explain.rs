//! Owns `podgauge-adapter explain`: why pods have the values they have, or none, and what a
//! HorizontalPodAutoscaler would make of them.
//!
//! ```text
//! explain ─► API server ─► …/pods/*/METRIC/explain of an adapter ─► Explanation ─► table or JSON
//! ```
//! It asks on the way that the HPA's requests take, so that an APIService that is not available
//! or a right that lacks shows as well. Who may read a metric may have it explained.

pub mod document;
mod table;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use podgauge_common::cluster::{ClientError, connect, one_line};
use podgauge_common::hpa;

use crate::apiserver::path::GROUP;
use document::Explanation;

/// Says why pods have the values they have, or none, and what an HPA would make of them.
/// Asks the API server, as the HPA does, so that it can be run anywhere: with --kubeconfig, or with
/// the service account of the adapter's pod
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// What has the metric
    #[arg(value_parser = ["pods"])]
    pub resource: String,
    pub namespace: String,
    /// Label selector of the pods, as in the HPA's target; '' for all of the namespace
    pub selector: String,
    pub metric: String,
    /// The HPA's averageValue: adds what it would compute
    #[arg(long, value_name = "QUANTITY", value_parser = parse_target, allow_hyphen_values = true)]
    pub target: Option<String>,
    /// The scale target's replicas; those of the pods that neither end nor ended unless given
    #[arg(long, value_name = "N", requires = "target", value_parser = clap::value_parser!(i32).range(0..))]
    pub current_replicas: Option<i32>,
    /// The HPA's minReplicas; 1 unless given
    #[arg(long, value_name = "N", requires = "target", value_parser = clap::value_parser!(i32).range(0..))]
    pub min: Option<i32>,
    /// The HPA's maxReplicas
    #[arg(long, value_name = "N", requires = "target", value_parser = clap::value_parser!(i32).range(1..))]
    pub max: Option<i32>,
    /// The metric's own selector: which of a pod's devices count
    #[arg(long, value_name = "SELECTOR")]
    pub metric_selector: Option<String>,
    /// table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table", value_parser = ["table", "json"])]
    pub output: String,
    /// How to reach the API server; the pod's service account unless given
    #[arg(long, value_name = "PATH", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Refused(String),
    #[error("the API server cannot be asked: {0}")]
    Unreachable(String),
    #[error("the answer is no explanation ({0}): is the adapter of this version?")]
    NotExplained(serde_json::Error),
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

/// Runs the command: 0 if there is an explanation, 1 if not, with one line that says why.
pub fn run(args: &Args) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let explained = runtime.map_err(ExplainError::from).and_then(|runtime| runtime.block_on(explain(args)));
    match explained {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn explain(args: &Args) -> Result<(), ExplainError> {
    let client = connect(args.kubeconfig.as_deref()).await?;
    let request = http::Request::get(args.path()).body(Vec::new());
    let request = request.map_err(|error| ExplainError::Unreachable(error.to_string()))?;
    let answer = client.request_text(request).await.map_err(|error| match error {
        kube::Error::Api(status) => ExplainError::Refused(status.message.clone()),
        error => ExplainError::Unreachable(one_line(&error)),
    })?;
    let explanation: Explanation = serde_json::from_str(&answer).map_err(ExplainError::NotExplained)?;
    let mut out = std::io::stdout().lock();
    if args.output == "json" {
        let json = serde_json::to_string_pretty(&explanation).map_err(ExplainError::NotExplained)?;
        writeln!(out, "{json}")?;
    } else {
        out.write_all(table::render(&explanation).as_bytes())?;
    }
    Ok(())
}

impl Args {
    /// Path and query of the request.
    fn path(&self) -> String {
        let mut path = format!(
            "/apis/{GROUP}/v1beta2/namespaces/{}/{}/%2A/{}/explain",
            escape(&self.namespace),
            escape(&self.resource),
            escape(&self.metric)
        );
        let number = |number: Option<i32>| number.map(|number| number.to_string());
        let mut separator = '?';
        for (name, value) in [
            ("labelSelector", Some(self.selector.clone()).filter(|selector| !selector.is_empty())),
            ("metricLabelSelector", self.metric_selector.clone()),
            ("target", self.target.clone()),
            ("currentReplicas", number(self.current_replicas)),
            ("minReplicas", number(self.min)),
            ("maxReplicas", number(self.max)),
        ] {
            if let Some(value) = value {
                path.push(separator);
                path.push_str(name);
                path.push('=');
                path.push_str(&escape(&value));
                separator = '&';
            }
        }
        path
    }
}

fn parse_target(text: &str) -> Result<String, String> {
    match hpa::milli(text) {
        Some(milli) if milli > 0 => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no quantity above 0, such as 60 or 500m")),
    }
}

/// Percent-encodes what could mean something in a path or a query.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        use clap::Parser as _;
        let words = ["podgauge-adapter", "explain"].iter().chain(words);
        match args::Args::try_parse_from(words)?.command {
            Some(args::Command::Explain(args)) => Ok(args),
            None => panic!("no command"),
        }
    }

    #[test]
    fn asks_where_the_hpa_asks() {
        let args = parse(&["pods", "demo", "app in (a,b)", "vllm:x", "--target=500m", "--min=1", "--max=3"])
            .unwrap();
        assert_eq!(
            args.path(),
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/demo/pods/%2A/vllm%3Ax/explain\
             ?labelSelector=app%20in%20%28a%2Cb%29&target=500m&minReplicas=1&maxReplicas=3"
        );
        let all = parse(&["pods", "demo", "", "gpu_utilization"]).unwrap();
        assert!(all.path().ends_with("/gpu_utilization/explain"), "{}", all.path());
    }

    #[test]
    fn what_cannot_be_explained_is_refused() {
        for wrong in [
            &["services", "demo", "", "m"][..],
            &["pods", "demo", ""],
            &["pods", "demo", "", "m", "--target=0"],
            &["pods", "demo", "", "m", "--target=many"],
            &["pods", "demo", "", "m", "--max=3"],
            &["pods", "demo", "", "m", "-o", "yaml"],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
