//! Variables that look like this program's and mean nothing to it: most likely typing errors.

use std::ffi::OsString;

use clap::Command;

/// dcgm-exporter's variables begin with it.
const PREFIX: &str = "DCGM_EXPORTER_";
/// Most names in one warning.
const MOST_NAMED: usize = 20;

/// One warning with the variables that no flag has; `None` if there are none.
pub(super) fn unknown(
    command: &Command,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Option<String> {
    let known: Vec<&str> =
        command.get_arguments().filter_map(clap::Arg::get_env).filter_map(std::ffi::OsStr::to_str).collect();
    let mut names: Vec<String> = variables
        .into_iter()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX) && !known.contains(&name.as_str()) && !is_of_a_service(name))
        .collect();
    names.sort_unstable();
    names.truncate(MOST_NAMED);
    (!names.is_empty())
        .then(|| format!("no flag has these variables, are they spelled right? {}", names.join(", ")))
}

/// Kubernetes sets these in every pod beside a Service called dcgm-exporter.
fn is_of_a_service(name: &str) -> bool {
    let rest = name.strip_prefix(PREFIX).unwrap_or_default();
    rest == "PORT" || ["PORT_", "SERVICE_HOST", "SERVICE_PORT"].iter().any(|prefix| rest.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::args::Args;

    #[test]
    fn typing_errors_are_named_and_what_kubernetes_sets_is_not() {
        let command = Args::command();
        let of = |names: &[&str]| {
            unknown(&command, names.iter().map(|name| (OsString::from(name), OsString::from("1"))))
        };
        assert_eq!(
            of(&[
                "DCGM_EXPORTER_LISTEN",
                "DCGM_EXPORTER_PORT",
                "DCGM_EXPORTER_PORT_9400_TCP_ADDR",
                "DCGM_EXPORTER_SERVICE_HOST",
                "DCGM_EXPORTER_SERVICE_PORT_METRICS",
                "DCGM_EXPORTER_FAKE_GPUS_2",
                "HOME",
            ]),
            Some("no flag has these variables, are they spelled right? DCGM_EXPORTER_FAKE_GPUS_2".to_owned())
        );
        assert_eq!(of(&["PATH"]), None);
    }
}
