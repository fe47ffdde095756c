//! Owns Go's way of writing durations and booleans, which operators' flags and manifests use.

use std::time::Duration;

/// Parses Go's duration form: `500ms`, `5s`, `1m30s`, `1.5h`. Units: ns, us, µs, ms, s, m, h.
/// A bare `0` is allowed; any other bare number is refused, as Go does. Variables that come from
/// files end in a line end.
pub fn parse_go_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let wrong = || format!("{text:?} is not a duration: write it like 500ms, 5s or 1m30s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let scale = match &rest[..unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(wrong()),
        };
        seconds += number * scale;
        rest = &rest[unit_len..];
    }
    if text.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

/// Parses Go's booleans: 1, t, T, TRUE, true, True and their opposites.
pub fn parse_go_bool(text: &str) -> Result<bool, String> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("{text:?} is not a boolean: write true or false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        assert_eq!(parse_go_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_go_duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_go_duration("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_go_duration("0"), Ok(Duration::ZERO));
        assert_eq!(parse_go_duration("5s\n"), Ok(Duration::from_secs(5)));
        for wrong in ["", "5", "s", "5 s", "-1s", "5x", "1e99h"] {
            assert!(parse_go_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn booleans_as_go_writes_them() {
        assert_eq!(parse_go_bool("t"), Ok(true));
        assert_eq!(parse_go_bool("False\n"), Ok(false));
        assert!(parse_go_bool("yes").is_err());
    }
}
