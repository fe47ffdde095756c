//! Answers requests: the web configuration first, then the routes.

use std::sync::Arc;

use podgauge_common::http::serve::{Handler, Peer};
use podgauge_common::http::{Request, Response, respond};
use rustls::pki_types::CertificateDer;

use crate::routes::Routes;
use crate::web::Web;

/// The exporter's routes, behind the web configuration.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) routes: Routes,
    pub(crate) web: Web,
}

impl Handler for Site {
    async fn answer(self: Arc<Self>, request: Request, peer: Arc<Peer>) -> Response {
        let (from, is_probe) = (peer.address.ip(), Routes::is_probe(request.uri().path()));
        self.web.answer(request.headers(), from, is_probe, || self.routes.answer(&request)).await
    }

    fn trusts(&self, certificates: &[CertificateDer<'static>]) -> bool {
        self.web.trusts(certificates.len())
    }

    fn overloaded(&self, reason: &str) -> Response {
        respond::busy(reason)
    }
}
