//! Owns the flags that say how exporters are reached: over TLS or not, and with which credentials.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use rustls::pki_types::ServerName;

/// How the adapter and its exporters know each other. One answer for all of them.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Reaching exporters")]
pub struct ExporterAccess {
    /// How to reach the endpoints of --exporter-service
    #[arg(long, value_name = "SCHEME", value_enum, default_value_t)]
    pub exporter_scheme: Scheme,
    /// Certificates of the CAs that sign the exporters' certificates (PEM); needed for https
    #[arg(long, value_name = "PATH")]
    pub exporter_ca_file: Option<PathBuf>,
    /// The name that the exporters' certificates must have; the host or address in their URL
    /// unless given
    #[arg(long, value_name = "NAME", value_parser = parse_server_name)]
    pub exporter_server_name: Option<ServerName<'static>>,
    /// Certificate chain that the adapter shows to exporters (PEM)
    #[arg(long, value_name = "PATH", requires = "exporter_client_tls_key_file")]
    pub exporter_client_tls_cert_file: Option<PathBuf>,
    /// Private key of --exporter-client-tls-cert-file (PEM)
    #[arg(long, value_name = "PATH", requires = "exporter_client_tls_cert_file")]
    pub exporter_client_tls_key_file: Option<PathBuf>,
    /// User that the adapter logs in to exporters as
    #[arg(long, value_name = "NAME", requires = "exporter_password_file", value_parser = parse_username)]
    pub exporter_username: Option<String>,
    /// File with the password of --exporter-username
    #[arg(long, value_name = "PATH", requires = "exporter_username")]
    pub exporter_password_file: Option<PathBuf>,
    /// File with the bearer token that the adapter shows to exporters
    #[arg(long, value_name = "PATH", conflicts_with = "exporter_username")]
    pub exporter_token_file: Option<PathBuf>,
    /// Send the password or token over http, too, where anybody on the way can read it
    #[arg(long)]
    pub exporter_credentials_without_tls: bool,
}

/// How an endpoint is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Scheme {
    #[default]
    Http,
    Https,
}

impl Scheme {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

impl ExporterAccess {
    /// What clap cannot say: whether this is of use for the exporters. `https`: one of them at least
    /// is reached so; `services`: there is a Service.
    pub fn check(&self, https: bool, services: bool) -> Result<(), String> {
        if self.exporter_scheme == Scheme::Https && !services {
            return Err("--exporter-scheme https is about --exporter-service, which is not given".to_owned());
        }
        if https && self.exporter_ca_file.is_none() {
            return Err(
                "https needs --exporter-ca-file: the CAs that sign the exporters' certificates".to_owned()
            );
        }
        if https {
            return Ok(());
        }
        let tls_only = [
            ("--exporter-ca-file", self.exporter_ca_file.is_some()),
            ("--exporter-server-name", self.exporter_server_name.is_some()),
            ("--exporter-client-tls-cert-file", self.exporter_client_tls_cert_file.is_some()),
        ];
        if let Some((flag, _)) = tls_only.iter().find(|(_, given)| *given) {
            return Err(format!(
                "{flag} has no effect: no exporter is reached over https (--exporter-scheme, or https:// in --exporter-url)"
            ));
        }
        let credentials = self.exporter_username.is_some() || self.exporter_token_file.is_some();
        if credentials && !self.exporter_credentials_without_tls {
            return Err(
                "the exporters' password or token is sent over https only, and no exporter is reached so: \
                 give --exporter-credentials-without-tls to send it in the clear"
                    .to_owned(),
            );
        }
        Ok(())
    }
}

fn parse_server_name(text: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(text.to_owned()).map_err(|_| format!("{text:?} is no DNS name and no IP address"))
}

fn parse_username(text: &str) -> Result<String, String> {
    match text.is_empty() || text.contains(':') || text.chars().any(char::is_control) {
        true => Err("a user name has no colon and no control characters, and is not empty".to_owned()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_without_effect_or_protection_is_refused() {
        let ca = || ExporterAccess { exporter_ca_file: Some("/ca".into()), ..ExporterAccess::default() };
        let token = || ExporterAccess { exporter_token_file: Some("/t".into()), ..ExporterAccess::default() };
        let refused = |access: ExporterAccess, https| access.check(https, true).unwrap_err();
        assert!(ExporterAccess::default().check(false, true).is_ok());
        assert!(ca().check(true, true).is_ok());
        assert!(refused(ExporterAccess::default(), true).contains("--exporter-ca-file"));
        assert!(refused(ca(), false).contains("no effect"));
        assert!(refused(token(), false).contains("--exporter-credentials-without-tls"));
        let spoken = ExporterAccess { exporter_credentials_without_tls: true, ..token() };
        assert!(spoken.check(false, true).is_ok());
        let https = ExporterAccess { exporter_scheme: Scheme::Https, ..ca() };
        assert!(https.check(true, true).is_ok() && https.check(true, false).is_err());
    }
}
