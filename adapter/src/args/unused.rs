//! Owns flags of Kubernetes' API server library that have no effect here: taken, so that the
//! manifests of other adapters start this one, and answered with one warning each.

use clap::{Arg, ArgAction, ArgMatches, Command, Error, FromArgMatches};
use podgauge_common::duration::parse_go_bool;

/// A flag, and why it has no effect. Takes a value.
type Valued = (&'static str, &'static str);

const AUDIT: &str = "audit events are kube-apiserver's, which every request has passed";
const LIMITS: &str = "the limits on requests are fixed; see docs/ADAPTER.md";
const KLOG: &str = "the log goes to stderr; --log-format and --debug shape it";
const VALUED: [Valued; 50] = [
    ("audit-log-path", AUDIT),
    ("audit-log-maxage", AUDIT),
    ("audit-log-maxbackup", AUDIT),
    ("audit-log-maxsize", AUDIT),
    ("audit-log-format", AUDIT),
    ("audit-log-mode", AUDIT),
    ("audit-log-version", AUDIT),
    ("audit-log-batch-buffer-size", AUDIT),
    ("audit-log-batch-max-size", AUDIT),
    ("audit-log-batch-max-wait", AUDIT),
    ("audit-log-batch-throttle-burst", AUDIT),
    ("audit-log-batch-throttle-qps", AUDIT),
    ("audit-log-truncate-max-batch-size", AUDIT),
    ("audit-log-truncate-max-event-size", AUDIT),
    ("audit-policy-file", AUDIT),
    ("audit-webhook-config-file", AUDIT),
    ("audit-webhook-initial-backoff", AUDIT),
    ("audit-webhook-mode", AUDIT),
    ("audit-webhook-version", AUDIT),
    ("audit-webhook-batch-buffer-size", AUDIT),
    ("audit-webhook-batch-max-size", AUDIT),
    ("audit-webhook-batch-max-wait", AUDIT),
    ("audit-webhook-batch-throttle-burst", AUDIT),
    ("audit-webhook-batch-throttle-qps", AUDIT),
    ("audit-webhook-truncate-max-batch-size", AUDIT),
    ("audit-webhook-truncate-max-event-size", AUDIT),
    ("max-requests-inflight", LIMITS),
    ("max-mutating-requests-inflight", LIMITS),
    ("min-request-timeout", LIMITS),
    ("request-timeout", LIMITS),
    ("http2-max-streams-per-connection", LIMITS),
    ("goaway-chance", LIMITS),
    ("livez-grace-period", "it is alive as soon as it listens"),
    ("external-hostname", "nothing here tells clients where it is"),
    ("tls-sni-cert-key", "there is one certificate, for the Service"),
    ("cors-allowed-origins", "no browser comes here"),
    ("strict-transport-security-directives", "no browser comes here"),
    ("feature-gates", "there are none"),
    ("debug-socket-path", "there is no Go runtime to profile"),
    ("logging-format", KLOG),
    ("log-flush-frequency", KLOG),
    ("log-backtrace-at", KLOG),
    ("log-dir", KLOG),
    ("log-file", KLOG),
    ("log-file-max-size", KLOG),
    ("stderrthreshold", KLOG),
    ("vmodule", KLOG),
    ("log-text-info-buffer-size", KLOG),
    ("log-json-info-buffer-size", KLOG),
    ("permit-address-sharing", "it has one listener"),
];
/// Flags that are on or off. One that is off asks for nothing, unless on is what is done here.
const SWITCHES: [Valued; 18] = [
    ("audit-log-compress", AUDIT),
    ("audit-log-batch-throttle-enable", AUDIT),
    ("audit-log-truncate-enabled", AUDIT),
    ("audit-webhook-batch-throttle-enable", AUDIT),
    ("audit-webhook-truncate-enabled", AUDIT),
    ("enable-priority-and-fairness", LIMITS),
    ("permit-port-sharing", "it has one listener"),
    ("profiling", "there is no Go runtime to profile"),
    ("contention-profiling", "there is no Go runtime to profile"),
    ("enable-aggregator-routing", "it is kube-apiserver's"),
    ("logtostderr", KLOG),
    ("alsologtostderr", KLOG),
    ("add-dir-header", KLOG),
    ("one-output", KLOG),
    ("skip-headers", KLOG),
    ("skip-log-headers", KLOG),
    ("log-text-split-stream", KLOG),
    ("log-json-split-stream", KLOG),
];
/// On is what is done here: nothing is believed until the ConfigMap is read, and it is tried on.
const TOLERATE: &str = "authentication-tolerate-lookup-failure";

/// Which of them are given.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unused {
    given: Vec<Valued>,
}

// === impl Unused ===

impl Unused {
    /// One line for each that is given.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.given.iter().map(|(name, why)| format!("--{name} has no effect: {why}")).collect()
    }
}

impl clap::Args for Unused {
    fn augment_args(mut command: Command) -> Command {
        for (name, why) in VALUED {
            command = command.arg(
                Arg::new(name).long(name).hide(true).action(ArgAction::Append).value_name("VALUE").help(why),
            );
        }
        for (name, why) in SWITCHES.into_iter().chain([(TOLERATE, "")]) {
            command = command.arg(
                Arg::new(name)
                    .long(name)
                    .hide(true)
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true")
                    .value_parser(parse_go_bool)
                    .help(why),
            );
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Unused {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let on = |name: &str| matches.get_one::<bool>(name) == Some(&true);
        let valued = VALUED.into_iter().filter(|(name, _)| matches.contains_id(name));
        let mut given: Vec<Valued> =
            valued.chain(SWITCHES.into_iter().filter(|(name, _)| on(name))).collect();
        if matches.get_one::<bool>(TOLERATE) == Some(&false) {
            given.push((TOLERATE, "a lookup that fails is tried again, and nobody is believed until then"));
        }
        Ok(Self { given })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
