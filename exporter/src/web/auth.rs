//! Owns passwords: who may read, judged by bcrypt at first and by memory from then on.

use std::collections::{BTreeMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

/// bcrypt costs a core tens of milliseconds or more: so many judgements at once.
const AT_ONCE: usize = 1;
/// So many requests may wait for theirs; further ones are sent away.
const WAITING: usize = 32;
/// Credentials remembered as right.
const REMEMBERED: usize = 256;

/// The bound on judgements. It outlives a reload.
#[derive(Debug, Clone)]
pub(super) struct Judgements {
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// The users of one configuration.
#[derive(Debug)]
pub(super) struct Users {
    /// By name, bcrypt hashes. Not empty.
    hashes: BTreeMap<String, String>,
    /// Digests of credentials that were right. Keyed by chance, so that they are of no use to
    /// whoever reads this memory.
    right: Mutex<HashSet<[u8; 32]>>,
    salt: [[u8; 8]; 2],
}

/// What credentials were found to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    Wrong,
    /// Too many are being judged.
    Busy,
}

impl Default for Judgements {
    fn default() -> Self {
        Self { running: Arc::new(Semaphore::new(AT_ONCE)), waiting: Arc::new(Semaphore::new(WAITING)) }
    }
}

// === impl Users ===

impl Users {
    /// `None` without any user: then nobody is asked.
    pub(super) fn new(hashes: BTreeMap<String, String>) -> Option<Self> {
        if hashes.is_empty() {
            return None;
        }
        // Std's source of chance: a hasher keyed anew for this process.
        let random = RandomState::new();
        let salt = [random.hash_one(0u8).to_le_bytes(), random.hash_one(1u8).to_le_bytes()];
        Some(Self { hashes, right: Mutex::default(), salt })
    }

    /// Judges a request's credentials.
    pub(super) async fn judge(&self, headers: &HeaderMap, judgements: &Judgements) -> Verdict {
        let Some((user, password)) = credentials(headers) else { return Verdict::Wrong };
        let known = self.hashes.get(&user);
        let digest = self.digest(&user, &password, known);
        if known.is_some() && self.right.lock().contains(&digest) {
            return Verdict::Right;
        }
        let Ok(_waiting) = judgements.waiting.try_acquire() else { return Verdict::Busy };
        let Ok(running) = Arc::clone(&judgements.running).acquire_owned().await else {
            return Verdict::Busy;
        };
        // An unknown user costs as much time as a known one, so that nobody learns who there is.
        let Some(hash) = known.or_else(|| self.hashes.values().next()).cloned() else {
            return Verdict::Wrong;
        };
        let judged = tokio::task::spawn_blocking(move || {
            // The place is taken until bcrypt is done, also when the client has gone meanwhile.
            let _running = running;
            bcrypt::verify(password, &hash).unwrap_or(false)
        });
        if !judged.await.unwrap_or(false) || known.is_none() {
            return Verdict::Wrong;
        }
        let mut right = self.right.lock();
        if right.len() >= REMEMBERED {
            right.clear();
        }
        right.insert(digest);
        Verdict::Right
    }

    fn digest(&self, user: &str, password: &[u8], hash: Option<&String>) -> [u8; 32] {
        let mut digest = Sha256::new();
        digest.update(self.salt.concat());
        for part in [user.as_bytes(), hash.map_or(&[][..], |hash| hash.as_bytes()), password] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
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

    #[tokio::test]
    async fn the_right_password_is_judged_once_and_remembered() {
        let hash = bcrypt::hash("open:sesame", 4).unwrap();
        let users = Users::new(BTreeMap::from([("ann".to_owned(), hash)])).unwrap();
        let judgements = Judgements::default();
        for (user, password, verdict) in [
            ("ann", "open:sesame", Verdict::Right),
            ("ann", "open", Verdict::Wrong),
            ("bob", "open:sesame", Verdict::Wrong),
        ] {
            assert_eq!(users.judge(&headers(user, password), &judgements).await, verdict, "{user}");
        }
        assert_eq!(users.judge(&HeaderMap::new(), &judgements).await, Verdict::Wrong);
        // With every place taken, who was right before still is, and nobody else waits for ever.
        let _all = judgements.waiting.acquire_many(WAITING as u32).await.unwrap();
        assert_eq!(users.judge(&headers("ann", "open:sesame"), &judgements).await, Verdict::Right);
        assert_eq!(users.judge(&headers("ann", "other"), &judgements).await, Verdict::Busy);
    }
}
