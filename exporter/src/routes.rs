//! Answers each path: `/`, `/metrics`, `/health`, `/ready`.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{HeaderValue, StatusCode, header};
use podgauge_common::exposition::CONTENT_TYPE;
use podgauge_common::http::{Request, Response, gzip, respond};
use podgauge_common::readiness::{Condition, Readiness};

use crate::gpu::account::{self, Unreturned};
use crate::page::{Page, Selection};

const INDEX: &str = "<!DOCTYPE html>\n<html lang=\"en\">\n<head><title>GPU Exporter</title></head>\n<body>\n\
<h1>GPU Exporter</h1>\n<ul>\n<li><a href=\"/metrics\">Metrics</a></li>\n<li><a href=\"/health\">Health</a></li>\n\
<li><a href=\"/ready\">Readiness</a></li>\n</ul>\n</body>\n</html>\n";

/// What requests are answered from.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    pub(crate) page: Arc<ArcSwap<Page>>,
    pub(crate) readiness: Readiness,
    pub(crate) health: Health,
}

/// When the process is no longer well.
#[derive(Debug, Clone)]
pub(crate) struct Health {
    /// `--stuck-limit`.
    pub(crate) stuck_limit: Duration,
    /// With `--health-require-gpus`: what must hold besides.
    pub(crate) gpus: Option<Condition>,
}

impl Routes {
    /// Answers from what is already there: no request reaches NVML or the kubelet.
    pub(crate) fn answer(&self, request: &Request) -> Response {
        match request.uri().path() {
            "/metrics" => self.metrics(request),
            "/health" => match self.health.check() {
                Ok(()) => respond::text(StatusCode::OK, "OK"),
                Err(reason) => respond::text(StatusCode::SERVICE_UNAVAILABLE, reason),
            },
            "/ready" => match self.readiness.check() {
                Ok(()) => respond::text(StatusCode::OK, ready_text(&self.readiness)),
                Err(reasons) => respond::text(StatusCode::SERVICE_UNAVAILABLE, reasons),
            },
            "/" => respond::body(StatusCode::OK, "text/html; charset=utf-8", INDEX),
            path => respond::text(
                StatusCode::NOT_FOUND,
                format_args!("no {path} here; there are /metrics, /health and /ready"),
            ),
        }
    }

    /// Whether a path is asked by kubelets' probes.
    pub(crate) fn is_probe(path: &str) -> bool {
        matches!(path, "/health" | "/ready")
    }

    fn metrics(&self, request: &Request) -> Response {
        let page = self.page.load();
        let wants_gzip = gzip::accepted(request.headers());
        let packed = |page: &Page| match wants_gzip {
            true => (page.compressed(), true),
            false => (page.plain(), false),
        };
        let (body, compressed) = match page.select(request.uri().query().unwrap_or_default()) {
            Ok(None) => packed(&page),
            Ok(Some(Selection::Kept(page))) => packed(&page),
            // A client that asks for something else each time does not make the exporter compress it.
            Ok(Some(Selection::Passing(text))) => (text, false),
            Err(bad) => return respond::text(StatusCode::BAD_REQUEST, bad),
        };
        let mut response = respond::body(StatusCode::OK, CONTENT_TYPE, body);
        let headers = response.headers_mut();
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        if compressed {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }
}

// === impl Health ===

impl Health {
    /// `Err`: why the process had better be started anew. A node without a driver is no reason:
    /// that is what `/ready` is for.
    fn check(&self) -> Result<(), String> {
        if let Some(Unreturned { call, time }) = account::unreturned()
            && time >= self.stuck_limit
        {
            return Err(format!(
                "{call} has not returned for {} s, the limit is {:?} (--stuck-limit)",
                time.as_secs(),
                self.stuck_limit
            ));
        }
        match self.gpus.as_ref().and_then(Condition::reason) {
            Some(reason) => Err(format!("no GPU values (--health-require-gpus): {reason}")),
            None => Ok(()),
        }
    }
}

/// `OK`, and under it what is not as it should be although the exporter serves.
fn ready_text(readiness: &Readiness) -> String {
    match readiness.notes() {
        notes if notes.is_empty() => "OK".to_owned(),
        notes => format!("OK\n{notes}"),
    }
}
