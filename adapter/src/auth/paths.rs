//! Owns the paths that need no permission.

/// Paths, each whole or up to a trailing `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPaths {
    whole: Vec<String>,
    prefixes: Vec<String>,
}

/// Checks one of `--authorization-always-allow-paths`.
pub fn parse_open_path(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.strip_suffix('*').unwrap_or(text).contains('*') {
        return Err(format!("{text:?}: only a trailing * is understood"));
    }
    if text == "*" || text == "/*" {
        return Err(format!("{text:?} would open everything"));
    }
    Ok(text.to_owned())
}

impl OpenPaths {
    pub fn new(paths: &[String]) -> Self {
        let (prefixes, whole): (Vec<&str>, Vec<&str>) = paths
            .iter()
            .map(|path| path.trim_start_matches('/'))
            .filter(|path| !path.is_empty())
            .partition(|path| path.ends_with('*'));
        let own =
            |paths: Vec<&str>| paths.into_iter().map(|path| path.trim_end_matches('*').to_owned()).collect();
        Self { whole: own(whole), prefixes: own(prefixes) }
    }

    /// Whether a path needs no permission.
    pub fn contains(&self, path: &str) -> bool {
        let path = path.trim_start_matches('/');
        self.whole.iter().any(|whole| whole == path)
            || self.prefixes.iter().any(|prefix| path.starts_with(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trailing_star_stands_for_the_rest() {
        let paths = ["/healthz", "/metrics/*", "/pub*"].map(|path| parse_open_path(path).unwrap());
        let open = OpenPaths::new(&paths);
        for (path, is_open) in [
            ("/healthz", true),
            ("/healthz/x", false),
            ("/metrics", false),
            ("/metrics/a", true),
            ("/public", true),
            ("/", false),
        ] {
            assert_eq!(open.contains(path), is_open, "{path}");
        }
        assert!(parse_open_path("/a*b").is_err() && parse_open_path("/*").is_err());
        assert!(!OpenPaths::new(&[]).contains("/healthz"));
    }
}
