//! Judges the certificate that a client presented: as the front proxy's, as a user's own.

use std::time::Instant;

use rustls::pki_types::{CertificateDer, UnixTime};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::cache::TtlCache;
use super::trust::{Authority, TrustBundle};
use super::{CACHE_TTL, User};

/// Most verdicts kept: one per client and CA.
const VERDICTS: usize = 1024;

/// Judges, and remembers for a while: every request on a connection brings the same certificate.
#[derive(Debug)]
pub struct Certificates {
    verdicts: TtlCache<[u8; 32], Verdict>,
}

/// What a certificate proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// It is the front proxy's.
    pub front_proxy: Result<(), String>,
    /// It is this user's.
    pub client: Result<User, String>,
}

impl Default for Certificates {
    fn default() -> Self {
        Self { verdicts: TtlCache::new(CACHE_TTL, VERDICTS) }
    }
}

impl Certificates {
    /// `chain` begins with the client's own certificate; TLS has proved that it has the key.
    pub fn verify(&self, chain: &[CertificateDer<'static>], trust: &TrustBundle) -> Verdict {
        let mut hasher = Sha256::new();
        hasher.update(trust.generation.to_be_bytes());
        for certificate in chain {
            hasher.update((certificate.len() as u64).to_be_bytes());
            hasher.update(certificate);
        }
        let key = hasher.finalize().into();
        let now = Instant::now();
        self.verdicts.get(&key, now).unwrap_or_else(|| {
            let verdict = judge(chain, trust, UnixTime::now());
            self.verdicts.insert(key, verdict.clone(), now);
            verdict
        })
    }
}

/// Judges a chain against what is trusted at `now`.
fn judge(chain: &[CertificateDer<'static>], trust: &TrustBundle, now: UnixTime) -> Verdict {
    let subject = subject(chain);
    let signed = |authority: Option<&Authority>, what: &str| match (authority, chain) {
        (Some(authority), [own, intermediates @ ..]) => authority
            .0
            .verify_client_cert(own, intermediates, now)
            .map(|_| ())
            .map_err(|error| error.to_string()),
        (None, _) => Err(format!("the {what} CA is unknown")),
        (_, []) => Err("no certificate".to_owned()),
    };
    let front_proxy = signed(trust.front_proxy.as_ref().map(|proxy| &proxy.authority), "front proxy's")
        .and_then(|()| {
            let name = &subject.as_ref().map_err(Clone::clone)?.name;
            let allowed = trust.front_proxy.as_ref().map_or(&[][..], |proxy| &proxy.allowed_names);
            if allowed.is_empty() || allowed.contains(name) {
                Ok(())
            } else {
                Err(format!("x509: subject with cn={name} is not in the allowed list"))
            }
        });
    let client = signed(trust.client_ca.as_ref(), "clients'").and_then(|()| {
        let user = subject?;
        if user.name.is_empty() { Err("its subject has no common name".to_owned()) } else { Ok(user) }
    });
    Verdict { front_proxy, client }
}

/// The certificate's subject: the common name as user, organizations as groups.
fn subject(chain: &[CertificateDer<'static>]) -> Result<User, String> {
    let own = chain.first().ok_or("no certificate")?;
    let (_, certificate) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
    let subject = certificate.subject();
    let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        attribute.as_str().map(str::to_owned).map_err(|error| error.to_string())
    };
    // The last one, as Go reads it.
    let name = subject.iter_common_name().last().map(text).transpose()?.unwrap_or_default();
    let groups: Result<Vec<String>, String> = subject.iter_organization().map(text).collect();
    Ok(User { name, groups: groups?, ..User::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{
        BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    };
    use std::collections::BTreeMap;

    struct Ca {
        params: CertificateParams,
        key: KeyPair,
        pem: String,
    }

    impl Ca {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let pem = params.self_signed(&key).unwrap().pem();
            Self { params, key, pem }
        }

        fn sign(
            &self,
            name: &str,
            groups: &[&str],
            usage: ExtendedKeyUsagePurpose,
        ) -> Vec<CertificateDer<'static>> {
            let mut params = CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            for group in groups {
                params.distinguished_name.push(DnType::OrganizationName, *group);
            }
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            let issuer = Issuer::from_params(&self.params, &self.key);
            vec![params.signed_by(&key, &issuer).unwrap().der().clone()]
        }
    }

    fn trust(front_proxy: &Ca, client: &Ca, names: &str) -> TrustBundle {
        let data = [
            ("requestheader-client-ca-file", front_proxy.pem.as_str()),
            ("requestheader-allowed-names", names),
            ("requestheader-username-headers", r#"["X-Remote-User"]"#),
            ("client-ca-file", client.pem.as_str()),
        ];
        let data: BTreeMap<String, String> =
            data.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let (bundle, errors) = TrustBundle::read(&data, 1);
        assert_eq!(errors, []);
        bundle
    }

    #[test]
    fn only_the_front_proxys_ca_and_name_make_a_front_proxy() {
        let (proxy, client) = (Ca::new(), Ca::new());
        let trust = trust(&proxy, &client, r#"["front-proxy-client"]"#);
        let verify = |chain: &[CertificateDer<'static>]| Certificates::default().verify(chain, &trust);
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let verdict = verify(&proxy.sign("front-proxy-client", &[], usage.clone()));
        assert_eq!(verdict.front_proxy, Ok(()));
        assert!(verdict.client.is_err());
        let verdict = verify(&proxy.sign("other", &[], usage.clone()));
        assert_eq!(
            verdict.front_proxy,
            Err("x509: subject with cn=other is not in the allowed list".to_owned())
        );
        let verdict = verify(&client.sign("front-proxy-client", &["a"], usage.clone()));
        assert!(verdict.front_proxy.is_err());
        assert_eq!(verdict.client.unwrap().groups, ["a"]);
        let verdict = verify(&proxy.sign("front-proxy-client", &[], ExtendedKeyUsagePurpose::ServerAuth));
        assert!(verdict.front_proxy.is_err());
        assert!(verify(&Ca::new().sign("front-proxy-client", &[], usage)).front_proxy.is_err());
    }

    #[test]
    fn no_allowed_names_allows_any_and_no_ca_none() {
        let (proxy, client) = (Ca::new(), Ca::new());
        let chain = proxy.sign("anybody", &[], ExtendedKeyUsagePurpose::ClientAuth);
        let certificates = Certificates::default();
        assert_eq!(certificates.verify(&chain, &trust(&proxy, &client, "[]")).front_proxy, Ok(()));
        let nothing = TrustBundle::default();
        assert!(certificates.verify(&chain, &nothing).front_proxy.is_err());
    }

    #[test]
    fn a_part_that_cannot_be_read_is_not_trusted() {
        let ca = Ca::new();
        let data = |names: &str, pem: &str| {
            let data = [("requestheader-client-ca-file", pem), ("requestheader-allowed-names", names)];
            data.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
        };
        for (names, pem) in [("front-proxy-client", ca.pem.as_str()), ("[]", "not a certificate")] {
            let (bundle, errors) = TrustBundle::read(&data(names, pem), 1);
            assert!(bundle.front_proxy.is_none());
            assert_eq!(errors.len(), 1);
        }
    }
}
