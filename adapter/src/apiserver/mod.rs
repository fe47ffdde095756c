//! The aggregated API server: from a request to its answer.
//!
//! ```text
//! request ─► path ─► auth ─► discovery | custom | status ─► answer
//! ```

pub mod custom;
pub mod discovery;
mod explain;
mod list;
pub mod path;
mod query;
mod respond;
mod status;
pub mod tls;

use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use hyper::body::Body as _;
use podgauge_common::http::respond::{body, text};
use podgauge_common::http::serve::{Handler, Peer};
use podgauge_common::http::{Request, Response};
use podgauge_common::readiness::Readiness;
use rustls::pki_types::CertificateDer;
use tracing::debug;

pub use status::Status;

use crate::auth::Auth;
use crate::self_metrics::SelfMetrics;
use custom::CustomMetrics;
use discovery::Documents;
use path::{Path, Route};
use query::Query;

/// Everything that answers need.
#[derive(Debug)]
pub struct ApiServer {
    pub auth: Auth,
    pub custom: CustomMetrics,
    pub documents: Documents,
    pub readiness: Readiness,
    pub self_metrics: SelfMetrics,
}

impl Handler for ApiServer {
    async fn answer(self: Arc<Self>, request: Request, peer: Arc<Peer>) -> Response {
        let began = Instant::now();
        // No request has a body that means anything here.
        let (mut head, _) = request.into_parts();
        let (resource, response) = match Path::parse(head.uri.path()) {
            Ok(path) => {
                let route = path.route();
                (resource_label(&route), self.route(&mut head, &peer, &path, &route).await)
            }
            Err(error) => ("none", Err(Status::bad_request(error.to_string()))),
        };
        let mut response = response.unwrap_or_else(|status| status.response(query::pretty(head.uri.query())));
        if head.method == Method::HEAD {
            // Over HTTP/2 nobody else leaves the body out.
            let length = response.body().size_hint().exact().unwrap_or_default();
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
            *response.body_mut() = http_body_util::Full::default();
        }
        let verb = match head.method {
            Method::GET => "get",
            Method::HEAD => "head",
            _ => "other",
        };
        let code = response.status();
        self.self_metrics.request(verb, resource, code.as_u16(), began.elapsed());
        debug!("{} {} {} {}", peer.address, head.method, head.uri.path(), code.as_u16());
        response
    }

    /// The front proxy, and clients with a certificate of their own.
    fn trusts(&self, certificates: &[CertificateDer<'static>]) -> bool {
        self.auth.trusts(certificates)
    }

    fn overloaded(&self, reason: &str) -> Response {
        Status::too_many_requests(reason).response(false)
    }
}

impl ApiServer {
    async fn route(
        &self,
        head: &mut http::request::Parts,
        peer: &Peer,
        path: &Path,
        route: &Route,
    ) -> Result<Response, Status> {
        // Probes come from kubelets, which have no identity here.
        let open = self.auth.is_open(head.uri.path());
        match route {
            Route::Alive if open => return Ok(text(StatusCode::OK, "ok")),
            Route::Ready if open => return Ok(self.ready()),
            _ => {}
        }
        let (user, standing) = self.auth.authenticate(&head.headers, peer).await?;
        // The rest may be large, and the API server may take its time.
        head.headers = [header::ACCEPT, header::IF_NONE_MATCH]
            .iter()
            .flat_map(|name| {
                head.headers.get_all(name).iter().map(move |value| (name.clone(), value.clone()))
            })
            .collect();
        let from = peer.address.ip();
        self.auth.authorize(&user, standing, from, &path.attributes(&head.method)).await?;
        if !matches!(head.method, Method::GET | Method::HEAD) {
            return Err(Status::method_not_allowed());
        }
        match route {
            Route::SelfMetrics => Ok(self.own_metrics(&head.headers)),
            Route::ProgramVersion => Ok(self.documents.program_version(&head.headers)),
            Route::Groups => Ok(self.documents.groups(&head.headers)),
            Route::Group => Ok(self.documents.group(&head.headers)),
            Route::GroupVersion(version) => Ok(self.documents.group_version(*version, &head.headers)),
            Route::OpenApiV2 => Ok(self.documents.openapi_v2(&head.headers)),
            Route::OpenApiV3 => Ok(self.documents.openapi_v3(&head.headers)),
            Route::OpenApiV3Document(_) => Ok(self.documents.openapi_v3_version(&head.headers)),
            Route::Metric(metric) => self.custom.answer(metric, &Query::parse(head.uri.query())?),
            Route::Explain(metric) => {
                self.custom.explain(metric, &Query::parse(head.uri.query())?, head.uri.query())
            }
            Route::Alive => Ok(text(StatusCode::OK, "ok")),
            Route::Ready => Ok(self.ready()),
            Route::Unknown => Err(Status::no_such_path()),
        }
    }

    fn ready(&self) -> Response {
        match self.readiness.check() {
            Ok(()) => text(StatusCode::OK, "ok"),
            Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, reason),
        }
    }

    fn own_metrics(&self, headers: &HeaderMap) -> Response {
        let open_metrics = headers
            .get_all(header::ACCEPT)
            .iter()
            .any(|value| value.to_str().is_ok_and(|value| value.contains("application/openmetrics-text")));
        let mut response = if open_metrics {
            body(
                StatusCode::OK,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
                self.self_metrics.open_metrics(),
            )
        } else {
            body(
                StatusCode::OK,
                podgauge_common::exposition::CONTENT_TYPE,
                self.self_metrics.prometheus_text(),
            )
        };
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
        response
    }
}

/// What requests are counted under: names that we choose, whatever clients ask for.
fn resource_label(route: &Route) -> &'static str {
    match route {
        Route::Alive | Route::Ready => "health",
        Route::SelfMetrics => "metrics",
        Route::ProgramVersion | Route::Groups | Route::Group | Route::GroupVersion(_) => "discovery",
        Route::OpenApiV2 | Route::OpenApiV3 | Route::OpenApiV3Document(_) => "openapi",
        Route::Metric(metric) if metric.resource == "pods" => "pods",
        Route::Metric(metric) if metric.resource == "nodes" => "nodes",
        Route::Metric(metric) if metric.resource == "namespaces" => "namespaces",
        Route::Explain(_) => "explain",
        Route::Metric(_) | Route::Unknown => "none",
    }
}
