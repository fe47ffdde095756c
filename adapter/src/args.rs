//! Owns the command line.

pub mod exporters;
pub mod serving;
mod unused;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory as _, Parser};
use podgauge_common::duration::parse_go_duration;
use podgauge_common::logging;
use serving::Serving;

use crate::explain;
use crate::metric::MetricFlag;

use self::exporters::{ExporterAccess, Scheme};

/// Serves the GPU use of pods to HorizontalPodAutoscalers as custom metrics.
#[derive(Debug, Clone, Parser)]
#[command(name = "podgauge-adapter", version, about)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(group(ArgGroup::new("source").args(["exporter_url", "exporter_service"]).required(true).multiple(true)))]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,

    /// An exporter to scrape. With NODE its samples count only for pods of that node; without it
    /// the exporter is believed for every node. Repeatable
    #[arg(long, value_name = "[NODE=]URL", value_parser = parse_exporter_url)]
    pub exporter_url: Vec<ExporterUrl>,
    /// Scrape every endpoint of this Service, each for the pods of its own node. Repeatable
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_service)]
    pub exporter_service: Vec<ServiceName>,
    #[command(flatten)]
    pub exporter_access: ExporterAccess,
    /// Time between two scrapes of an exporter
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_go_duration)]
    pub scrape_interval: Duration,
    /// Most series to keep of all exporters together; a container on a device counts as four at
    /// least. Exporters share them evenly, and one that needs less leaves the rest to the others
    #[arg(long, value_name = "N", default_value_t = 200_000, value_parser = parse_max_series)]
    pub max_series: usize,
    /// Time that an answer is the mean over
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_go_duration)]
    pub window: Duration,
    /// How long a pod's last value is answered when its exporter has nothing new
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_go_duration)]
    pub staleness: Duration,
    /// A further family of the exporters to serve under its own name, for example
    /// DCGM_FI_DEV_GPU_TEMP; or, of any metric, another time that its values are means over, and
    /// what becomes of several devices' values. Repeatable
    #[arg(long, value_name = "NAME[,window=DURATION][,aggregation=mean|max]", value_parser = MetricFlag::parse)]
    pub metric: Vec<MetricFlag>,

    /// Address to listen on; all of them unless given
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// Port to listen on, always with TLS
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    #[command(flatten)]
    pub serving: Serving,

    /// How to reach the API server; the pod's service account unless given
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,

    /// text or json
    #[arg(long, value_name = "FORMAT", default_value_t = logging::Format::Text)]
    pub log_format: logging::Format,
    /// Log more
    #[arg(long)]
    pub debug: bool,
}

/// What else the program does.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    Explain(explain::Args),
}

/// An exporter named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExporterUrl {
    /// The node whose pods it may speak of; `None`: any.
    pub node: Option<String>,
    pub url: http::Uri,
}

/// A Service or another thing in a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl Args {
    /// What clap cannot say: how values must fit together. The error exits with 2.
    pub fn check(&self) -> Result<(), clap::Error> {
        let wrong = |message: String| Err(Self::command().error(ErrorKind::ValueValidation, message));
        if self.scrape_interval < Duration::from_millis(100) {
            return wrong("--scrape-interval must be at least 100ms".to_owned());
        }
        if self.window < 2 * self.scrape_interval {
            return wrong(format!(
                "--window {:?} is shorter than two scrapes of --scrape-interval {:?}: it would never hold a value",
                self.window, self.scrape_interval
            ));
        }
        if let Some(short) = self
            .metric
            .iter()
            .find(|metric| metric.window.is_some_and(|window| window < 2 * self.scrape_interval))
        {
            return wrong(format!(
                "--metric {}: its window is shorter than two scrapes of --scrape-interval {:?}: it would never hold a value",
                short.name, self.scrape_interval
            ));
        }
        if self.staleness < self.scrape_interval {
            return wrong(format!(
                "--staleness {:?} is shorter than --scrape-interval {:?}: values would end before the next scrape",
                self.staleness, self.scrape_interval
            ));
        }
        if let Err(message) = self.serving.check() {
            return wrong(message);
        }
        let services = !self.exporter_service.is_empty();
        let https = services && self.exporter_access.exporter_scheme == Scheme::Https
            || self.exporter_url.iter().any(|exporter| exporter.url.scheme_str() == Some("https"));
        self.exporter_access.check(https, services).or_else(wrong)
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn parse_exporter_url(text: &str) -> Result<ExporterUrl, String> {
    let scheme = text.find("://").ok_or_else(|| format!("{text:?} has no http://"))?;
    let (node, url) = match text[..scheme].split_once('=') {
        Some((node, _)) => (Some(node), &text[node.len() + 1..]),
        None => (None, text),
    };
    if node == Some("") {
        return Err(format!("{text:?} has no node name before ="));
    }
    let url: http::Uri = url.parse().map_err(|error| format!("{url:?} is not a URL: {error}"))?;
    let Some(scheme @ ("http" | "https")) = url.scheme_str() else {
        return Err(format!("{url} cannot be scraped: only http:// and https:// are supported"));
    };
    let authority = url.authority().ok_or_else(|| format!("{url} has no host"))?.clone();
    if authority.as_str().contains('@') {
        return Err("a user or password in a URL is not supported".to_owned());
    }
    let path = match url.path_and_query().map(http::uri::PathAndQuery::as_str) {
        None | Some("" | "/") => "/metrics",
        Some(path) => path,
    };
    let url = http::Uri::builder()
        .scheme(scheme)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|error| error.to_string())?;
    Ok(ExporterUrl { node: node.map(str::to_owned), url })
}

/// Fewer would not be enough for a single node.
fn parse_max_series(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1000..=100_000_000) => Ok(count),
        _ => Err("a number from 1000 to 100000000".to_owned()),
    }
}

fn parse_service(text: &str) -> Result<ServiceName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(ServiceName { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err(format!("{text:?} is not a namespace and a name: write it NAMESPACE/NAME")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("podgauge-adapter").chain(args.iter().copied()))
    }

    #[test]
    fn exporters_with_and_without_a_node() {
        let url = parse_exporter_url("gpu-7=http://10.0.0.7:9400").unwrap();
        assert_eq!(url.node.as_deref(), Some("gpu-7"));
        assert_eq!(url.url.to_string(), "http://10.0.0.7:9400/metrics");
        let url = parse_exporter_url("http://exporter:9400/page?x=1").unwrap();
        assert_eq!((url.node, url.url.to_string().as_str()), (None, "http://exporter:9400/page?x=1"));
        assert_eq!(parse_exporter_url("https://a").unwrap().url.to_string(), "https://a/metrics");
        for wrong in ["10.0.0.7:9400", "ftp://a/", "=http://a/", "http://u:p@a/", "http:///x"] {
            assert!(parse_exporter_url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_source_is_required_and_tls_files_come_in_pairs() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--exporter-service", "podgauge/exporter"]).is_ok());
        assert!(parse(&["--exporter-url", "http://a", "--tls-cert-file", "/a"]).is_err());
        assert!(parse(&["--exporter-service", "exporter"]).is_err());
        assert!(parse(&["--exporter-url", "https://a"]).unwrap().check().is_err());
        let trusting = ["--exporter-url", "https://a", "--exporter-ca-file", "/ca"];
        assert!(parse(&trusting).unwrap().check().is_ok());
        assert!(parse(&["--exporter-url", "http://a", "--exporter-username", "ann"]).is_err());
    }

    #[test]
    fn times_must_fit_together() {
        let with = |args: &[&str]| parse(&[&["--exporter-url", "http://a"], args].concat()).unwrap().check();
        assert!(with(&[]).is_ok());
        assert!(with(&["--window", "3s"]).is_err());
        assert!(with(&["--staleness", "1s"]).is_err());
        assert!(with(&["--metric", "gpu_utilization,window=3s"]).is_err());
        assert!(with(&["--metric", "gpu_utilization,window=4s"]).is_ok());
        assert!(with(&["--scrape-interval", "1ms"]).is_err());
        assert!(with(&["--scrape-interval", "500ms", "--window", "1s", "--staleness", "500ms"]).is_ok());
    }
}
