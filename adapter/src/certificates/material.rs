//! Owns what the Secret holds: authorities, the serving certificate and their keys, and when which
//! of them is replaced. Pure: the time is passed in.
//!
//! A new authority is trusted before anything is signed by it: first it joins the bundle, and only
//! once the bundle stands in the APIServices ([`Published`]) it signs the serving certificate. The
//! old one stays in the bundle, without its key, until it expires, and so does everything it signed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use rcgen::KeyPair;
use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{RootCertStore, ServerConfig};

use super::issue::{Authority, Leaf, authority, leaf, seconds};
use crate::apiserver::tls::Protocols;
use crate::args::ServiceName;

/// Most authorities read of a Secret: two is usual.
const MAX_AUTHORITIES: usize = 16;
const DAY: u64 = 86_400;

/// How long certificates are good for. Each is replaced after two thirds of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    pub authority: Duration,
    pub leaf: Duration,
}

/// The names in the serving certificate; the first is the one that is verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names(Vec<String>);

/// Whether the bundle stands in every APIService, and has for long enough that every API server
/// has seen it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    Yes,
    No,
}

/// What was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// A next authority joined the bundle.
    AuthorityAdded,
    /// The next authority signs from now on.
    AuthorityTaken,
    /// An expired one left the bundle.
    AuthorityDropped,
    Leaf,
    /// Everything: it had expired.
    All,
}

/// Why a Secret's data cannot be served with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it is empty")]
    Empty,
    /// Somebody else's certificate, which must not be overwritten.
    #[error("it has a certificate and no ca.key: it is somebody else's")]
    Foreign,
    #[error("{key}: {reason}")]
    Broken { key: &'static str, reason: String },
}

/// Everything the Secret holds. Its parts belong together.
#[derive(Clone)]
pub(super) struct Material {
    /// The signing one first, then the next one, then former ones.
    authorities: Vec<Authority>,
    signing: Arc<KeyPair>,
    next: Option<Arc<KeyPair>>,
    leaf: Leaf,
}

// === impl Lifetimes ===

impl Lifetimes {
    /// Of an authority that is made at each start and renewed by nobody.
    pub(super) const WITHOUT_SECRET: Self =
        Self { authority: Duration::from_secs(3652 * DAY), leaf: Duration::from_secs(3651 * DAY) };

    /// How long a bundle must have stood in the APIServices before it counts as seen by every API
    /// server.
    pub(super) fn seen_after(&self) -> Duration {
        (self.leaf / 6).min(Duration::from_secs(60))
    }
}

// === impl Names ===

impl Names {
    /// Of a Service. The aggregation layer verifies `<name>.<namespace>.svc`.
    pub fn of(service: &ServiceName) -> Self {
        let name = format!("{}.{}.svc", service.name, service.namespace);
        let long = format!("{name}.cluster.local");
        Self(vec![name, long, "localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])
    }

    fn verified(&self) -> &str {
        &self.0[0]
    }
}

// === impl Material ===

impl Material {
    /// Everything anew.
    pub(super) fn create(names: &Names, lifetimes: Lifetimes, now: Timestamp) -> Result<Self, rcgen::Error> {
        let signing = Arc::new(KeyPair::generate()?);
        let authority = authority(&signing, lifetimes.authority, now)?;
        let leaf = leaf(&authority, &signing, &names.0, lifetimes.leaf, now)?;
        Ok(Self { authorities: vec![authority], signing, next: None, leaf })
    }

    /// Reads a Secret's data.
    pub(super) fn read(data: &BTreeMap<String, ByteString>) -> Result<Self, Unusable> {
        let has = |key: &str| data.get(key).is_some_and(|value| !value.0.is_empty());
        if !data.values().any(|value| !value.0.is_empty()) {
            return Err(Unusable::Empty);
        }
        if !has("ca.key") && (has("tls.crt") || has("tls.key")) {
            return Err(Unusable::Foreign);
        }
        let broken = |key, reason: &dyn fmt::Display| Unusable::Broken { key, reason: reason.to_string() };
        let text = |key: &'static str| match data.get(key) {
            Some(value) => std::str::from_utf8(&value.0).map_err(|error| broken(key, &error)),
            None => Err(broken(key, &"it is missing")),
        };
        let key_pair = |key: &'static str| {
            // The reason could quote the key.
            KeyPair::from_pem(text(key)?)
                .map(Arc::new)
                .map_err(|_| broken(key, &"no private key in PEM form"))
        };
        let mut authorities = Vec::new();
        for der in CertificateDer::pem_slice_iter(text("ca.crt")?.as_bytes()) {
            let der = der.map_err(|error| broken("ca.crt", &error))?;
            authorities.push(Authority::read(&der).map_err(|reason| broken("ca.crt", &reason))?);
        }
        if authorities.len() > MAX_AUTHORITIES {
            return Err(broken("ca.crt", &format!("more than {MAX_AUTHORITIES} certificates")));
        }
        let signing = key_pair("ca.key")?;
        let next = if has("next-ca.key") { Some(key_pair("next-ca.key")?) } else { None };
        let of = |key: &KeyPair| authorities.iter().any(|authority| authority.has(key));
        if !of(&signing) {
            return Err(broken("ca.key", &"no certificate of ca.crt is of this key"));
        }
        if next.as_ref().is_some_and(|next| !of(next)) {
            return Err(broken("next-ca.key", &"no certificate of ca.crt is of this key"));
        }
        let leaf =
            Leaf::read(text("tls.crt")?, text("tls.key")?).map_err(|reason| broken("tls.crt", &reason))?;
        Ok(Self { authorities, signing, next, leaf })
    }

    /// As a Secret's data.
    pub(super) fn data(&self) -> BTreeMap<String, ByteString> {
        let mut data = BTreeMap::from([
            ("ca.crt", self.bundle()),
            ("ca.key", self.signing.serialize_pem()),
            ("tls.crt", self.leaf.pem.clone()),
            ("tls.key", self.leaf.key_pem.clone()),
        ]);
        if let Some(next) = &self.next {
            data.insert("next-ca.key", next.serialize_pem());
        }
        data.into_iter().map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes()))).collect()
    }

    /// What the serving certificate is verified against, PEM.
    pub(super) fn bundle(&self) -> String {
        self.authorities.iter().map(|authority| authority.pem.as_str()).collect()
    }

    pub(super) fn leaf_expires(&self) -> Timestamp {
        self.leaf.expires
    }

    /// When the authority that signs expires.
    pub(super) fn authority_expires(&self) -> Timestamp {
        self.signer().expires
    }

    /// To serve with.
    pub(super) fn config(&self, protocols: &Protocols) -> Result<ServerConfig, String> {
        let key = PrivateKeyDer::from_pem_slice(self.leaf.key_pem.as_bytes())
            .map_err(|_| "no private key in PEM form".to_owned())?;
        protocols.config(self.leaf.chain.clone(), key).map_err(|error| error.to_string())
    }

    /// What it should be at `now`, and what that replaces; nothing if it is good.
    pub(super) fn advance(
        &self,
        names: &Names,
        lifetimes: Lifetimes,
        published: Published,
        now: Timestamp,
    ) -> Result<Option<(Self, Vec<Change>)>, rcgen::Error> {
        let (mut made, mut changes) = (self.clone(), Vec::new());
        if made.signer().expires <= now {
            return Ok(Some((Self::create(names, lifetimes, now)?, vec![Change::All])));
        }
        let before = made.authorities.len();
        made.authorities.retain(|authority| authority.expires > now);
        if made.authorities.len() < before {
            changes.push(Change::AuthorityDropped);
        }
        if let Some(next) = &made.next
            && !made.authorities.iter().any(|authority| authority.has(next))
        {
            made.next = None;
        }
        if made.next.is_none() && now >= made.signer().at(2, 3) {
            let next = Arc::new(KeyPair::generate()?);
            made.authorities.insert(1, authority(&next, lifetimes.authority, now)?);
            made.next = Some(next);
            changes.push(Change::AuthorityAdded);
        } else if (published == Published::Yes || now >= made.signer().at(5, 6))
            && let Some(next) = made.next.take()
        {
            let at = made.authorities.iter().position(|authority| authority.has(&next)).unwrap_or(0);
            let authority = made.authorities.remove(at);
            made.authorities.insert(0, authority);
            made.signing = next;
            changes.extend([Change::AuthorityTaken, Change::Leaf]);
        }
        let due = now >= made.leaf_due() || !made.serves(names, now);
        if due && !changes.contains(&Change::Leaf) {
            changes.push(Change::Leaf);
        }
        if changes.contains(&Change::Leaf) {
            made.leaf = leaf(made.signer(), &made.signing, &names.0, lifetimes.leaf, now)?;
        }
        Ok((!changes.is_empty()).then_some((made, changes)))
    }

    /// The next time at which [`Self::advance`] has something to do whatever is published.
    pub(super) fn due(&self) -> Timestamp {
        let signer = self.signer();
        let authority = if self.next.is_some() { signer.at(5, 6) } else { signer.at(2, 3) };
        let gone = self.authorities.iter().map(|authority| authority.expires).min();
        [Some(self.leaf_due()), Some(authority), gone].into_iter().flatten().min().unwrap_or(authority)
    }

    /// Whether a next authority waits for its bundle to be seen.
    pub(super) fn waits_for_publication(&self) -> bool {
        self.next.is_some()
    }

    fn signer(&self) -> &Authority {
        let signing = self.authorities.iter().find(|authority| authority.has(&self.signing));
        signing.expect("because reading checks it and nothing removes it")
    }

    fn leaf_due(&self) -> Timestamp {
        self.leaf.at(2, 3)
    }

    /// Whether what is served is verified at `now`, under the bundle and for the names.
    pub(super) fn serves(&self, names: &Names, now: Timestamp) -> bool {
        let mut roots = RootCertStore::empty();
        for authority in &self.authorities {
            // One that cannot be a root vouches for nothing.
            let _ = roots.add(authority.der.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let Ok(verifier) = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build()
        else {
            return false;
        };
        let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds(now)));
        let key = PrivateKeyDer::from_pem_slice(self.leaf.key_pem.as_bytes());
        match (ServerName::try_from(names.verified()), self.leaf.chain.split_first(), key) {
            (Ok(name), Some((own, above)), Ok(_)) => {
                use rustls::client::danger::ServerCertVerifier as _;
                verifier.verify_server_cert(own, above, &name, &[], at).is_ok()
            }
            _ => false,
        }
    }
}

impl fmt::Debug for Material {
    // The keys stay out of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("expires", &self.leaf.expires).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMES: Lifetimes =
        Lifetimes { authority: Duration::from_secs(1200), leaf: Duration::from_secs(120) };

    fn names() -> Names {
        Names::of(&ServiceName { namespace: "podgauge".to_owned(), name: "podgauge-adapter".to_owned() })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_795_000_000 + seconds).unwrap()
    }

    fn step(material: &Material, seconds: i64, published: Published) -> (Material, Vec<Change>) {
        match material.advance(&names(), TIMES, published, at(seconds)).unwrap() {
            Some((made, changes)) => (made, changes),
            None => (material.clone(), Vec::new()),
        }
    }

    #[test]
    fn the_leaf_is_renewed_after_two_thirds_of_its_life() {
        let made = Material::create(&names(), TIMES, at(0)).unwrap();
        assert!(made.serves(&names(), at(0)) && !made.serves(&names(), at(121)));
        assert_eq!(step(&made, 79, Published::No).1, []);
        assert_eq!(made.due(), at(80));
        let (renewed, changes) = step(&made, 80, Published::No);
        assert_eq!(changes, [Change::Leaf]);
        assert_eq!((renewed.bundle(), renewed.leaf_expires()), (made.bundle(), at(200)));
        assert!(renewed.serves(&names(), at(199)));
    }

    #[test]
    fn a_new_authority_signs_nothing_before_its_bundle_was_seen() {
        let first = Material::create(&names(), TIMES, at(0)).unwrap();
        let (second, changes) = step(&first, 800, Published::Yes);
        assert_eq!(changes, [Change::AuthorityAdded, Change::Leaf]);
        assert_eq!((second.authorities.len(), second.waits_for_publication()), (2, true));
        // The old bundle alone still verifies what is served.
        let old_bundle =
            |material: &Material| Material { authorities: first.authorities.clone(), ..material.clone() };
        assert!(old_bundle(&second).serves(&names(), at(801)));
        assert_eq!(step(&second, 810, Published::No).1, []);
        let (third, changes) = step(&second, 810, Published::Yes);
        assert_eq!(changes, [Change::AuthorityTaken, Change::Leaf]);
        assert!(
            !Material {
                authorities: first.authorities.clone(),
                signing: Arc::clone(&first.signing),
                ..third.clone()
            }
            .serves(&names(), at(811))
        );
        assert!(third.serves(&names(), at(811)));
        assert_eq!(third.authorities.len(), 2, "what the old one signed is trusted on");
        assert!(!third.data().contains_key("next-ca.key"));
        let (fourth, changes) = step(&third, 1200, Published::No);
        assert!(changes.contains(&Change::AuthorityDropped), "{changes:?}");
        assert_eq!(fourth.authorities.len(), 1);
        // Nobody publishes: the last moment decides.
        assert_eq!(step(&second, 1000, Published::No).1, [Change::AuthorityTaken, Change::Leaf]);
    }

    #[test]
    fn data_is_read_as_it_was_written_and_what_expired_is_made_anew() {
        let made = Material::create(&names(), TIMES, at(0)).unwrap();
        let (made, _) = step(&made, 800, Published::No);
        let read = Material::read(&made.data()).unwrap();
        assert_eq!(read.data(), made.data());
        assert_eq!(step(&read, 1201, Published::No).1, [Change::All]);
        // Another Service's name is another certificate.
        let other = Names::of(&ServiceName { namespace: "a".to_owned(), name: "b".to_owned() });
        let (_, changes) = read.advance(&other, TIMES, Published::No, at(800)).unwrap().unwrap();
        assert_eq!(changes, [Change::Leaf]);
    }

    #[test]
    fn what_cannot_be_served_with_is_told_apart() {
        let made = Material::create(&names(), TIMES, at(0)).unwrap().data();
        let with = |key: &str, value: Option<&str>| {
            let mut data = made.clone();
            match value {
                Some(value) => data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec())),
                None => data.remove(key),
            };
            Material::read(&data).unwrap_err()
        };
        assert_eq!(Material::read(&BTreeMap::new()).unwrap_err(), Unusable::Empty);
        assert_eq!(with("ca.key", None), Unusable::Foreign);
        let other = KeyPair::generate().unwrap().serialize_pem();
        for (key, value) in
            [("ca.crt", "x"), ("ca.key", "x"), ("ca.key", &other), ("tls.key", &other), ("tls.crt", "")]
        {
            let error = with(key, Some(value));
            assert!(matches!(error, Unusable::Broken { .. }), "{key}: {error:?}");
            assert!(!error.to_string().contains("PRIVATE KEY-----"), "{error}");
        }
        let text = format!("{:?}", Material::read(&made).unwrap());
        assert!(!text.contains("PRIVATE"), "{text}");
    }
}
