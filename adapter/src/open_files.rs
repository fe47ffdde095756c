//! Asks the system for as many open files as the program may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one, and gives the one that is in force.
///
/// Container runtimes set a soft limit of 1,024 for the sake of programs that use `select`, and a hard
/// one that is far above.
pub(crate) fn raise_limit() -> usize {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    // The system refuses more than `fs.nr_open`: then everything goes on with fewer.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile)
        .current
        .map_or(usize::MAX, |allowed| usize::try_from(allowed).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_highest_that_may_be_had() {
        let before = getrlimit(Resource::Nofile).current;
        let allowed = raise_limit();
        let limit = getrlimit(Resource::Nofile).current;
        assert_eq!(limit.map_or(usize::MAX, |limit| limit as usize), allowed);
        assert!(limit.is_none_or(|limit| before.is_some_and(|before| before <= limit)));
    }
}
