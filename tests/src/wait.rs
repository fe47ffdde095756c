//! Waiting for an event, with a limit that only a failure reaches.

use std::fmt::Debug;
use std::future::Future;
use std::time::{Duration, Instant};

/// No event of a test takes so long, on a busy machine either, unless it does not come.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Asks again and again until the answer is `Ok`. Panics with the last `Err` after [`LIMIT`].
pub async fn until<T, E, F>(what: &str, ask: impl FnMut() -> F) -> T
where
    E: Debug,
    F: Future<Output = Result<T, E>>,
{
    until_within(LIMIT, what, ask).await
}

/// As [`until`], with another limit.
pub async fn until_within<T, E, F>(limit: Duration, what: &str, mut ask: impl FnMut() -> F) -> T
where
    E: Debug,
    F: Future<Output = Result<T, E>>,
{
    let start = Instant::now();
    loop {
        match ask().await {
            Ok(value) => return value,
            Err(error) if start.elapsed() > limit => panic!("waited {limit:?} for {what}: {error:?}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}
