//! Owns the flags that every aggregated API server made with Kubernetes' library has: how it
//! serves, whom it believes, whom it asks.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use podgauge_common::duration::{parse_go_bool, parse_go_duration};
use podgauge_common::http::suites::{TLS12_SUITES, TLS13_SUITES, UNAVAILABLE_SUITES};
use rustls::CipherSuite;

use super::unused::Unused;
use super::{ServiceName, parse_service};
use crate::apiserver::tls::Protocols;
use crate::auth::Rules;
use crate::auth::access::AnswerTtl;
use crate::auth::paths::{OpenPaths, parse_open_path};
use crate::auth::trust::{FrontProxyFlags, Sources};
use crate::certificates::{Lifetimes, Settings, Source};

/// Serving, authentication and authorization.
#[derive(Debug, Clone, Args)]
pub struct Serving {
    /// Certificate chain to serve with (PEM). Without it a CA is made and kept in --cert-secret
    #[arg(long, value_name = "PATH", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of --tls-cert-file (PEM)
    #[arg(long, value_name = "PATH", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// Folder with apiserver.crt and apiserver.key to serve with, if they are there
    #[arg(long, value_name = "PATH", conflicts_with_all = ["tls_cert_file", "write_ca_file"])]
    pub cert_dir: Option<PathBuf>,
    /// Certificates (PEM) for the APIServices' caBundle. Only with --tls-cert-file, whose CA
    /// nobody else may publish
    #[arg(long, value_name = "PATH", conflicts_with = "write_ca_file")]
    pub ca_bundle_file: Option<PathBuf>,
    /// Secret in which the replicas share a CA and a certificate; <service-namespace>/<service-name>-certificates
    /// unless given
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = parse_service,
        conflicts_with_all = ["tls_cert_file", "write_ca_file"])]
    pub cert_secret: Option<ServiceName>,
    /// How long a CA in --cert-secret is good for; a new one is made after two thirds of that
    #[arg(long, value_name = "DURATION", default_value = "17520h", value_parser = parse_go_duration)]
    pub ca_lifetime: Duration,
    /// How long a certificate in --cert-secret is good for; renewed after two thirds of that
    #[arg(long, value_name = "DURATION", default_value = "2160h", value_parser = parse_go_duration)]
    pub certificate_lifetime: Duration,
    /// Make a CA at each start and write its certificate (PEM) here: outside a cluster
    #[arg(long, value_name = "PATH", conflicts_with = "tls_cert_file")]
    pub write_ca_file: Option<PathBuf>,
    /// Service that the aggregation layer reaches this adapter through
    #[arg(long, value_name = "NAME", default_value = "podgauge-adapter")]
    pub service_name: String,
    /// Namespace of --service-name
    #[arg(long, value_name = "NAMESPACE", env = "POD_NAMESPACE", default_value = "podgauge")]
    pub service_namespace: String,
    /// VersionTLS12 or VersionTLS13. Older versions are never spoken
    #[arg(long, value_name = "VERSION", default_value = "VersionTLS12", value_parser = parse_tls_version)]
    pub tls_min_version: TlsVersion,
    /// Suites of TLS 1.2, by their IANA names; those of TLS 1.3 are always all
    #[arg(long, value_name = "SUITE,…", value_delimiter = ',', value_parser = parse_suite)]
    pub tls_cipher_suites: Vec<Suite>,
    /// Time to go on accepting connections after SIGTERM, not ready, until kube-proxy has taken this pod
    /// out of the Service. Open requests have 5s after that: the pod's grace period must be longer
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_go_duration)]
    pub shutdown_delay_duration: Duration,
    /// Speak HTTP/1.1 only
    #[arg(long, value_name = "BOOL", value_parser = parse_go_bool, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true")]
    pub disable_http2: bool,

    /// How to reach the API server for TokenReviews and its ConfigMap; as --kubeconfig unless given
    #[arg(long, value_name = "PATH")]
    pub authentication_kubeconfig: Option<PathBuf>,
    /// … for SubjectAccessReviews
    #[arg(long, value_name = "PATH")]
    pub authorization_kubeconfig: Option<PathBuf>,
    /// … for pods and endpoints
    #[arg(long, value_name = "PATH")]
    pub lister_kubeconfig: Option<PathBuf>,
    /// Do not read kube-system/extension-apiserver-authentication: only the flags below count
    #[arg(long, value_name = "BOOL", value_parser = parse_go_bool, num_args = 0..=1, require_equals = true,
        default_value = "false", default_missing_value = "true")]
    pub authentication_skip_lookup: bool,
    /// How long an answer about a bearer token is believed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_go_duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
    /// How long a permission is believed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_go_duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long a denial is believed
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_go_duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// Paths that need no permission; a trailing * matches the rest of a path
    #[arg(long, value_name = "PATH,…", value_delimiter = ',', default_value = "/healthz,/readyz,/livez",
        value_parser = parse_open_path)]
    pub authorization_always_allow_paths: Vec<String>,
    /// CAs of clients' certificates (PEM), in place of the ConfigMap's
    #[arg(long, value_name = "PATH")]
    pub client_ca_file: Option<PathBuf>,
    /// CAs of the front proxy's certificate (PEM). With it the flags below count in place of the
    /// ConfigMap
    #[arg(long, value_name = "PATH")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// Common names of the front proxy's certificate; none: any
    #[arg(long, value_name = "NAME,…", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// Headers that name the user; the first with a value counts
    #[arg(long, value_name = "HEADER,…", value_delimiter = ',', default_value = "x-remote-user")]
    pub requestheader_username_headers: Vec<String>,
    /// Headers that tell the user's UID
    #[arg(long, value_name = "HEADER,…", value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,
    /// Headers that name the user's groups
    #[arg(long, value_name = "HEADER,…", value_delimiter = ',', default_value = "x-remote-group")]
    pub requestheader_group_headers: Vec<String>,
    /// Beginnings of headers that tell more of the user
    #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', default_value = "x-remote-extra-")]
    pub requestheader_extra_headers_prefix: Vec<String>,

    /// Log level as klog's: from 4 on as --debug
    #[arg(short = 'v', long = "v", value_name = "LEVEL", num_args = 0..=1, require_equals = true,
        default_missing_value = "4")]
    pub verbosity: Option<i32>,
    #[command(flatten)]
    pub(crate) unused: Unused,
}

/// The oldest TLS spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// Asked for as something older.
    Older,
    Tls12,
    Tls13,
}

/// A cipher suite of Kubernetes' list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suite {
    pub name: String,
    /// `None`: it is not safe enough to be spoken here.
    pub spoken: Option<CipherSuite>,
}

// === impl Serving ===

impl Serving {
    /// What clap cannot say: how values must fit together.
    pub(super) fn check(&self) -> Result<(), String> {
        let (ca, leaf) = (self.ca_lifetime, self.certificate_lifetime);
        // Certificates end on whole seconds.
        if leaf < Duration::from_secs(5) || ca < 2 * leaf {
            return Err(format!(
                "--certificate-lifetime {leaf:?} must be at least 5s and at most half of --ca-lifetime {ca:?}"
            ));
        }
        if self.ca_bundle_file.is_some() && self.files().is_none() {
            return Err(
                "--ca-bundle-file goes with --tls-cert-file: a CA of --cert-secret is published as it is"
                    .to_owned(),
            );
        }
        let no_tls12 =
            !self.tls_cipher_suites.is_empty() && self.protocols().tls12_suites == Some(Vec::new());
        if no_tls12 && !self.tls_cipher_suites.iter().any(|suite| is_tls13(&suite.name)) {
            return Err("--tls-cipher-suites has no suite that is spoken here".to_owned());
        }
        Ok(())
    }

    /// Where the certificate comes from, and for which Service.
    pub fn settings(&self) -> Settings {
        let service =
            ServiceName { namespace: self.service_namespace.clone(), name: self.service_name.clone() };
        let source = match (self.files(), &self.write_ca_file) {
            (Some((certificate, key)), _) => {
                Source::Files { certificate, key, ca_bundle: self.ca_bundle_file.clone() }
            }
            (None, Some(path)) => Source::Written(path.clone()),
            (None, None) => Source::Secret(self.cert_secret.clone().unwrap_or_else(|| ServiceName {
                namespace: service.namespace.clone(),
                name: format!("{}-certificates", service.name),
            })),
        };
        let lifetimes = Lifetimes { authority: self.ca_lifetime, leaf: self.certificate_lifetime };
        Settings { source, service, lifetimes, protocols: self.protocols() }
    }

    fn files(&self) -> Option<(PathBuf, PathBuf)> {
        if let (Some(certificate), Some(key)) = (&self.tls_cert_file, &self.tls_private_key_file) {
            return Some((certificate.clone(), key.clone()));
        }
        let folder = self.cert_dir.as_ref()?;
        let (certificate, key) = (folder.join("apiserver.crt"), folder.join("apiserver.key"));
        // Go's servers write a pair there that nobody can verify; without one there is a better way.
        (certificate.exists() && key.exists()).then_some((certificate, key))
    }

    fn protocols(&self) -> Protocols {
        let suites = &self.tls_cipher_suites;
        Protocols {
            tls13_only: self.tls_min_version == TlsVersion::Tls13,
            tls12_suites: (!suites.is_empty()).then(|| {
                suites
                    .iter()
                    .filter(|suite| !is_tls13(&suite.name))
                    .filter_map(|suite| suite.spoken)
                    .collect()
            }),
            http2: !self.disable_http2,
        }
    }

    /// The certificates and headers that are trusted.
    pub fn trust_sources(&self) -> Sources {
        Sources {
            client_ca_file: self.client_ca_file.clone(),
            front_proxy: self.requestheader_client_ca_file.clone().map(|ca_file| FrontProxyFlags {
                ca_file,
                allowed_names: self.requestheader_allowed_names.clone(),
                username_headers: self.requestheader_username_headers.clone(),
                uid_headers: self.requestheader_uid_headers.clone(),
                group_headers: self.requestheader_group_headers.clone(),
                extra_prefixes: self.requestheader_extra_headers_prefix.clone(),
            }),
            lookup: !self.authentication_skip_lookup,
        }
    }

    /// How the API server's answers are used.
    pub fn auth_rules(&self) -> Rules {
        Rules {
            token_ttl: self.authentication_token_webhook_cache_ttl,
            access_ttl: AnswerTtl {
                allowed: self.authorization_webhook_cache_authorized_ttl,
                denied: self.authorization_webhook_cache_unauthorized_ttl,
            },
            open: OpenPaths::new(&self.authorization_always_allow_paths),
        }
    }

    /// A line for each flag that is not served as it is written.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.unused.warnings();
        if self.tls_min_version == TlsVersion::Older {
            warnings.push("--tls-min-version: TLS 1.2 is the oldest that is spoken".to_owned());
        }
        let refused: Vec<&str> = self
            .tls_cipher_suites
            .iter()
            .filter(|suite| suite.spoken.is_none())
            .map(|suite| suite.name.as_str())
            .collect();
        if !refused.is_empty() {
            warnings.push(format!("--tls-cipher-suites: not spoken here: {}", refused.join(", ")));
        }
        warnings
    }
}

fn is_tls13(name: &str) -> bool {
    TLS13_SUITES.iter().any(|(known, _)| *known == name)
}

fn parse_tls_version(text: &str) -> Result<TlsVersion, String> {
    match text {
        "VersionTLS10" | "VersionTLS11" => Ok(TlsVersion::Older),
        "VersionTLS12" | "" => Ok(TlsVersion::Tls12),
        "VersionTLS13" => Ok(TlsVersion::Tls13),
        _ => Err(format!("{text:?} is not a version: write VersionTLS12 or VersionTLS13")),
    }
}

fn parse_suite(text: &str) -> Result<Suite, String> {
    let name = text.trim();
    let spoken = TLS12_SUITES.iter().chain(&TLS13_SUITES).find(|(known, _)| *known == name);
    if spoken.is_none() && !UNAVAILABLE_SUITES.contains(&name) {
        return Err(format!("{name:?} is not a cipher suite that Kubernetes knows"));
    }
    Ok(Suite { name: name.to_owned(), spoken: spoken.map(|(_, suite)| *suite) })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        serving: Serving,
    }

    fn parse(args: &[&str]) -> Result<Serving, String> {
        let line = Line::try_parse_from(std::iter::once("x").chain(args.iter().copied()));
        let serving = line.map_err(|error| error.to_string())?.serving;
        serving.check().map(|()| serving)
    }

    #[test]
    fn what_manifests_of_other_adapters_say_is_taken() {
        let serving = parse(&[
            "--cert-dir=/nonexistent",
            "--v=6",
            "--logtostderr=true",
            "--audit-log-path=-",
            "--audit-log-maxage",
            "3",
            "--enable-priority-and-fairness=false",
            "--profiling=false",
            "--disable-http2",
            "--authentication-skip-lookup",
            "--authorization-always-allow-paths=/healthz,/metrics",
            "--requestheader-username-headers=X-Remote-User,X-Other",
        ])
        .unwrap();
        assert_eq!(serving.verbosity, Some(6));
        assert!(serving.disable_http2 && serving.authentication_skip_lookup);
        assert_eq!(serving.requestheader_username_headers, ["X-Remote-User", "X-Other"]);
        let warnings = serving.warnings();
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        let secret = ServiceName {
            namespace: "podgauge".to_owned(),
            name: "podgauge-adapter-certificates".to_owned(),
        };
        assert!(matches!(serving.settings().source, Source::Secret(found) if found == secret));
        assert_eq!(
            (parse(&["-v"]).unwrap().verbosity, parse(&["-v=2"]).unwrap().verbosity),
            (Some(4), Some(2))
        );
    }

    #[test]
    fn protocols_are_chosen_by_kubernetes_names() {
        let suites = |list: &str| parse(&[&format!("--tls-cipher-suites={list}")]);
        let chosen = suites(
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,TLS_RSA_WITH_AES_128_CBC_SHA,TLS_AES_128_GCM_SHA256",
        )
        .unwrap();
        assert_eq!(
            chosen.protocols().tls12_suites,
            Some(vec![CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256])
        );
        assert!(chosen.warnings()[0].ends_with(": TLS_RSA_WITH_AES_128_CBC_SHA"), "{:?}", chosen.warnings());
        assert!(suites("TLS_NULL").is_err() && suites("TLS_RSA_WITH_AES_128_CBC_SHA").is_err());
        assert!(parse(&["--tls-min-version=VersionTLS13"]).unwrap().protocols().tls13_only);
        assert!(parse(&["--tls-min-version=1.3"]).is_err());
    }

    #[test]
    fn sources_of_certificates_exclude_each_other() {
        let pair = ["--tls-cert-file=/a", "--tls-private-key-file=/b"];
        assert!(parse(&pair).is_ok());
        for other in ["--cert-secret=a/b", "--write-ca-file=/c"] {
            assert!(parse(&[&pair[..], &[other]].concat()).is_err(), "{other}");
        }
        assert!(parse(&["--ca-bundle-file=/c"]).is_err());
        assert!(parse(&["--certificate-lifetime=24h", "--ca-lifetime=25h"]).is_err());
        assert!(parse(&["--certificate-lifetime=1s", "--ca-lifetime=25h"]).is_err());
    }
}
