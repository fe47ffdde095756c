//! Owns the making of single certificates, and what is read of one: authorities that sign, and
//! the serving certificate.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// How far before its making a certificate is valid, for clocks that are behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// A certificate that signs others.
#[derive(Debug, Clone)]
pub(super) struct Authority {
    pub(super) pem: String,
    pub(super) der: CertificateDer<'static>,
    name: String,
    made: Timestamp,
    pub(super) expires: Timestamp,
    public_key: Vec<u8>,
}

/// The serving certificate.
#[derive(Clone)]
pub(super) struct Leaf {
    pub(super) pem: String,
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key_pem: String,
    made: Timestamp,
    pub(super) expires: Timestamp,
}

// === impl Authority ===

impl Authority {
    pub(super) fn read(der: &CertificateDer<'static>) -> Result<Self, String> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|error| error.to_string())?;
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let name = name.ok_or("its subject has no common name")?.to_owned();
        let (made, expires) = validity(&certificate)?;
        let public_key = certificate.tbs_certificate.subject_pki.subject_public_key.data.to_vec();
        Ok(Self { pem: pem(der), name, made, expires, public_key, der: der.clone() })
    }

    pub(super) fn has(&self, key: &KeyPair) -> bool {
        self.public_key == key.der_bytes()
    }

    /// The end of a part of its life.
    pub(super) fn at(&self, part_of: i64, whole: i64) -> Timestamp {
        part(self.made, self.expires, part_of, whole)
    }
}

// === impl Leaf ===

impl Leaf {
    /// The end of a part of its life.
    pub(super) fn at(&self, part_of: i64, whole: i64) -> Timestamp {
        part(self.made, self.expires, part_of, whole)
    }

    pub(super) fn read(text: &str, key_pem: &str) -> Result<Self, String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        let chain = chain.map_err(|error| error.to_string())?;
        let own = chain.first().ok_or("no certificate in PEM form")?;
        let (_, certificate) = X509Certificate::from_der(own).map_err(|error| error.to_string())?;
        let (made, expires) = validity(&certificate)?;
        // A key that is not this certificate's shows now, not in a handshake.
        let key = KeyPair::from_pem(key_pem).map_err(|_| "tls.key has no private key in PEM form")?;
        if certificate.tbs_certificate.subject_pki.subject_public_key.data.as_ref() != key.der_bytes() {
            return Err("tls.key is not its key".to_owned());
        }
        Ok(Self { pem: text.to_owned(), key_pem: key_pem.to_owned(), made, expires, chain: chain.clone() })
    }
}

pub(super) fn authority(
    key: &KeyPair,
    lifetime: Duration,
    now: Timestamp,
) -> Result<Authority, rcgen::Error> {
    let mut params = CertificateParams::default();
    // A name of its own: two authorities of a bundle must be told apart.
    params.distinguished_name = common_name(&format!("podgauge-adapter CA {}", whole_seconds(now)));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_dates(&mut params, now, now.saturating_add(signed(lifetime)).unwrap_or(now));
    let certificate = params.self_signed(key)?;
    Authority::read(certificate.der()).map_err(|_| rcgen::Error::CouldNotParseCertificate)
}

pub(super) fn leaf(
    authority: &Authority,
    signing: &KeyPair,
    names: &[String],
    lifetime: Duration,
    now: Timestamp,
) -> Result<Leaf, rcgen::Error> {
    let mut issuer = CertificateParams::default();
    issuer.distinguished_name = common_name(&authority.name);
    issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = common_name("podgauge-adapter");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    let until = now.saturating_add(signed(lifetime)).unwrap_or(now).min(authority.expires);
    set_dates(&mut params, now, until);
    let certificate = params.signed_by(&key, &Issuer::from_params(&issuer, signing))?;
    Leaf::read(&certificate.pem(), &key.serialize_pem()).map_err(|_| rcgen::Error::CouldNotParseCertificate)
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// When it was made and when it expires.
fn validity(certificate: &X509Certificate<'_>) -> Result<(Timestamp, Timestamp), String> {
    let at = |time: x509_parser::time::ASN1Time| {
        Timestamp::from_second(time.timestamp()).map_err(|error| error.to_string())
    };
    let validity = certificate.validity();
    let made =
        at(validity.not_before)?.saturating_add(signed(BACKDATED)).map_err(|error| error.to_string())?;
    Ok((made, at(validity.not_after)?))
}

fn set_dates(params: &mut CertificateParams, made: Timestamp, until: Timestamp) {
    let at = |seconds| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    params.not_before = at(seconds(made).saturating_sub(BACKDATED.as_secs()));
    params.not_after = at(seconds(until));
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn part(from: Timestamp, until: Timestamp, part_of: i64, whole: i64) -> Timestamp {
    let millis = from.as_millisecond() + (until.as_millisecond() - from.as_millisecond()) * part_of / whole;
    Timestamp::from_millisecond(millis).unwrap_or(until)
}

pub(super) fn seconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_second()).unwrap_or(0)
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn signed(duration: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(duration).unwrap_or(jiff::SignedDuration::MAX)
}
