//! Judges passwords: by bcrypt at first, and by memory from then on.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::turns::Turns;

/// Knowledge of passwords, whatever the configuration is by now. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Judgements {
    turns: Turns,
    /// By user, a digest of the credentials that were right last. The user's hash is part of it: a
    /// reload that changes the hash makes it worthless, and one that does not leaves it good.
    right: Arc<Mutex<HashMap<String, [u8; 32]>>>,
    /// Makes the digests useless to whoever reads this memory.
    salt: [[u8; 8]; 2],
}

/// The users of one configuration.
#[derive(Debug)]
pub(super) struct Users {
    /// By name, bcrypt hashes. Not empty.
    hashes: BTreeMap<String, String>,
}

/// What credentials were found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Too many of this address are being judged.
    Busy,
}

impl Default for Judgements {
    fn default() -> Self {
        // The standard library's source of random numbers: hash keys of this process.
        let random = RandomState::new();
        let salt = [random.hash_one(0u8).to_le_bytes(), random.hash_one(1u8).to_le_bytes()];
        Self { turns: Turns::default(), right: Arc::default(), salt }
    }
}

// === impl Judgements ===

impl Judgements {
    fn digest(&self, user: &str, password: &[u8], hash: &str) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.salt.concat());
        for part in [user.as_bytes(), hash.as_bytes(), password] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    /// Forgets users that are not in the configuration any more.
    pub(super) fn keep(&self, users: Option<&Users>) {
        self.right.lock().retain(|user, _| users.is_some_and(|users| users.hashes.contains_key(user)));
    }

    fn knows(&self, user: &str, digest: &[u8; 32]) -> bool {
        self.right.lock().get(user) == Some(digest)
    }
}

// === impl Users ===

impl Users {
    /// `None` without any user: then no password is asked for.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Option<Self> {
        (!hashes.is_empty()).then_some(Self { hashes })
    }

    /// Judges a request's credentials.
    pub(super) async fn judge(&self, headers: &HeaderMap, from: IpAddr, judgements: &Judgements) -> Verdict {
        let Some((user, password)) = credentials(headers) else { return Verdict::Wrong };
        let known = self.hashes.contains_key(&user);
        // An unknown user costs as much time as a known one, so that names cannot be guessed by it.
        let Some(hash) = self.hashes.get(&user).or_else(|| self.hashes.values().next()).cloned() else {
            return Verdict::Wrong;
        };
        let digest = judgements.digest(&user, &password, &hash);
        if known && judgements.knows(&user, &digest) {
            return Verdict::Right;
        }
        let Some(turn) = judgements.turns.wait(from).await else { return Verdict::Busy };
        // The same credentials may have been judged meanwhile.
        if known && judgements.knows(&user, &digest) {
            return Verdict::Right;
        }
        // It goes on if the client is gone meanwhile: its next request finds the answer.
        let right = Arc::clone(&judgements.right);
        let judged = tokio::task::spawn_blocking(move || {
            let is_right = turn.judge(|| bcrypt::verify(password, &hash).unwrap_or(false) && known);
            if is_right {
                right.lock().insert(user, digest);
            }
            is_right
        });
        if judged.await.unwrap_or(false) { Verdict::Right } else { Verdict::Wrong }
    }
}

/// User and password of `Authorization: Basic …`.
fn credentials(headers: &HeaderMap) -> Option<(String, Vec<u8>)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = STANDARD.decode(encoded.trim()).ok()?;
    let colon = decoded.iter().position(|byte| *byte == b':')?;
    let user = String::from_utf8(decoded[..colon].to_vec()).ok()?;
    Some((user, decoded[colon + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(user: &str, password: &str) -> HeaderMap {
        let value = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        HeaderMap::from_iter([(header::AUTHORIZATION, value.parse().unwrap())])
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn users(names: &[(&str, &str)]) -> Users {
        let hashes =
            names.iter().map(|(name, password)| ((*name).to_owned(), bcrypt::hash(password, 4).unwrap()));
        Users::new(hashes.collect()).unwrap()
    }

    #[tokio::test]
    async fn the_right_password_is_judged_once_and_remembered() {
        let users = users(&[("ann", "open:sesame")]);
        let judgements = Judgements::default();
        for (user, password, verdict) in [
            ("ann", "open:sesame", Verdict::Right),
            ("ann", "open", Verdict::Wrong),
            ("bob", "open:sesame", Verdict::Wrong),
        ] {
            assert_eq!(users.judge(&headers(user, password), HERE, &judgements).await, verdict, "{user}");
        }
        assert_eq!(users.judge(&HeaderMap::new(), HERE, &judgements).await, Verdict::Wrong);
        // With every place of its address taken a remembered password is right, and others are refused.
        let _current = judgements.turns.wait(HERE).await.unwrap();
        let waiting: Vec<_> = (0..4)
            .map(|_| {
                let turns = judgements.turns.clone();
                tokio::spawn(async move { turns.wait(HERE).await })
            })
            .collect();
        tokio::task::yield_now().await;
        assert_eq!(users.judge(&headers("ann", "open:sesame"), HERE, &judgements).await, Verdict::Right);
        assert_eq!(users.judge(&headers("ann", "other"), HERE, &judgements).await, Verdict::Busy);
        waiting.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_reload_forgets_only_users_whose_hash_changed() {
        let before = users(&[("ann", "a"), ("bob", "b")]);
        let judgements = Judgements::default();
        for (user, password) in [("ann", "a"), ("bob", "b")] {
            assert_eq!(before.judge(&headers(user, password), HERE, &judgements).await, Verdict::Right);
        }
        let mut hashes = before.hashes.clone();
        hashes.insert("bob".to_owned(), bcrypt::hash("new", 4).unwrap());
        let after = Users::new(hashes).unwrap();
        let _busy = judgements.turns.wait(HERE).await.unwrap();
        let judge = async |user, password| {
            let headers = headers(user, password);
            let judged = after.judge(&headers, HERE, &judgements);
            tokio::time::timeout(std::time::Duration::from_millis(20), judged).await.ok()
        };
        assert_eq!(judge("ann", "a").await, Some(Verdict::Right));
        assert_eq!(judge("bob", "b").await, None, "it waits to be judged");
    }
}
