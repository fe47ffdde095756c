//! Answers `…/pods/NAME|*/METRIC/explain`: what values are made of, and what an HPA would make of
//! them. What it says of a value comes from the same functions as the value.

use http::StatusCode;
use podgauge_common::hpa::{self, Items, ScaledPod};
use podgauge_common::http::Response;
use podgauge_common::quantity::Quantity;

use super::custom::{CustomMetrics, Kind, describe, written};
use super::path::MetricPath;
use super::query::{Query, parameter};
use super::respond;
use super::status::Status;
use crate::cluster::PodRecord;
use crate::cluster::pods::Phase;
use crate::evaluate::{Evidence, HeldPart, Now, Question, evidence, pod_value};
use crate::explain::document::{Device, Explanation, Exporter, Hpa, IgnoredAnnotation, Omitted, Pod};
use crate::source::store::ExporterState;

/// Most pods of one explanation.
const MAX_PODS: usize = 1000;
/// What an HPA does beyond its arithmetic.
const NOT_MODELLED: &str = "stabilization windows, scaling policies and their rates, other metrics of the HPA, a tolerance of its own";

/// The HPA that is asked about.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Wish {
    target_milli: i64,
    current: Option<i32>,
    min: Option<i32>,
    max: Option<i32>,
}

impl Wish {
    /// `None` without a target.
    fn parse(query: Option<&str>) -> Result<Option<Self>, Status> {
        let Some(target) = parameter(query, "target")? else { return Ok(None) };
        let refused =
            |name: &str, text: &str| Status::bad_request(format!("{name}={text} is no number for an HPA"));
        let target_milli =
            hpa::milli(&target).filter(|milli| *milli > 0).ok_or_else(|| refused("target", &target))?;
        let replicas = |name: &str| match parameter(query, name)? {
            None => Ok(None),
            Some(text) => match text.parse() {
                Ok(replicas) if replicas >= 0 => Ok(Some(replicas)),
                _ => Err(refused(name, &text)),
            },
        };
        let [current, min, max] =
            [replicas("currentReplicas")?, replicas("minReplicas")?, replicas("maxReplicas")?];
        Ok(Some(Self { target_milli, current, min, max }))
    }
}

impl CustomMetrics {
    /// Explains a metric of pods.
    pub(super) fn explain(
        &self,
        path: &MetricPath,
        query: &Query,
        text: Option<&str>,
    ) -> Result<Response, Status> {
        query.check_fields(&path.objects)?;
        let wish = Wish::parse(text)?;
        let missing = |why: &str| Status::no_metric(&path.metric, &describe(path, query), why);
        let namespace = path.namespace.as_deref().unwrap_or_default();
        let metric = self.metric(&path.metric).map_err(|why| missing(&why))?;
        let pods = self.select_pods(namespace, &path.objects, &query.label_selector);
        if pods.is_empty() {
            let why = self.no_pod(namespace, &path.objects);
            return Err(missing(&(why + &self.unseen(Kind::Pod(namespace)))));
        }
        if pods.len() > MAX_PODS {
            let found = pods.len();
            return Err(Status::bad_request(format!(
                "{found} pods match, at most {MAX_PODS} are explained at once"
            )));
        }
        let now = Now::read();
        let exporters = self.exporters.current();
        let mut items = Items::new();
        let mut scaled = Vec::with_capacity(pods.len());
        let explained = pods
            .iter()
            .map(|(name, pod)| {
                let question =
                    Question { namespace, pod: name, metric, devices: &query.metric_label_selector };
                let (explained, value) = self.with_states(pod, &exporters, &now, |states| {
                    self.explain_pod(&question, pod, states, &now)
                });
                if let Some(value) = value {
                    items.insert(name.to_string(), value.milli());
                }
                let phase = pod.phase.as_str().to_owned();
                scaled.push(ScaledPod { name: name.to_string(), phase, terminating: pod.terminating });
                explained
            })
            .collect();
        let explanation = Explanation {
            kind: "MetricExplanation".to_owned(),
            namespace: namespace.to_owned(),
            label_selector: query.labels.clone(),
            metric_label_selector: query.metric_labels.clone(),
            metric: metric.name.to_string(),
            unit: metric.unit(),
            aggregation: metric.aggregation_text().to_owned(),
            window_seconds: metric.window(self.rules.window).as_secs_f64(),
            staleness_seconds: self.rules.staleness.as_secs_f64(),
            watch_failure: self.watches.failure(&self.watches.pods),
            pods: explained,
            hpa: wish.map(|wish| explain_hpa(&wish, &scaled, &items)),
        };
        Ok(respond::json(StatusCode::OK, &explanation, query.pretty))
    }

    fn explain_pod(
        &self,
        question: &Question<'_>,
        pod: &PodRecord,
        states: &[&ExporterState],
        now: &Now,
    ) -> (Pod, Option<Quantity>) {
        let value = pod_value(question, pod, states, &self.rules, now).and_then(written);
        let age = |at| rounded(now.age(at).as_secs_f64());
        let explained = Pod {
            name: question.pod.to_owned(),
            node: pod.node.as_deref().map(str::to_owned),
            phase: pod.phase.as_str().to_owned(),
            ready: pod.ready,
            terminating: pod.terminating,
            value: value.as_ref().ok().map(|(value, _)| value.to_string()),
            age_seconds: value.as_ref().ok().map(|(_, at)| age(*at)),
            omitted: value.as_ref().err().map(|omission| Omitted {
                reason: omission.reason().as_str().to_owned(),
                message: format!("{omission:#}"),
            }),
            exporters: states
                .iter()
                .map(|state| Exporter {
                    name: state.name.clone(),
                    podgauge: state.native,
                    last_answer_seconds: state.last_answer.map(age),
                    failure: state.failure.clone(),
                    limit: state.cut.as_ref().map(|cut| cut.limit.to_string()),
                })
                .collect(),
            devices: evidence(question, pod, states, &self.rules, now)
                .into_iter()
                .map(|evidence| device(evidence, age))
                .collect(),
            ignored_annotations: pod
                .grant
                .iter()
                .flat_map(|grant| &grant.ignored)
                .map(|ignored| IgnoredAnnotation {
                    annotation: ignored.annotation.to_owned(),
                    reason: ignored.reason.to_string(),
                })
                .collect(),
        };
        (explained, value.ok().map(|(value, _)| value))
    }
}

fn device(evidence: Evidence, age: impl Fn(std::time::Instant) -> f64) -> Device {
    let mean = evidence.mean;
    let (held, part_source) = match evidence.held {
        HeldPart::Known { part, source } => (Some(rounded(part)), source.to_string()),
        HeldPart::Unknown(unknown) => (None, unknown.to_string()),
    };
    Device {
        exporter: evidence.exporter,
        device: evidence.device,
        labels: evidence.labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        container: evidence.containers.join(","),
        part: held,
        part_source,
        present: evidence.present,
        seen_seconds: evidence.seen.map(&age),
        observed_seconds: rounded(evidence.observed),
        source: mean.map(|_| if evidence.recent { "exporter" } else { "readings" }.to_owned()),
        covered_seconds: rounded(mean.map_or(0.0, |mean| mean.covered)),
        newest_seconds: mean.map(|mean| age(mean.at)),
        oldest_seconds: mean.map(|mean| age(mean.oldest)),
        mean: mean.map(|mean| rounded(mean.value)),
    }
}

fn explain_hpa(wish: &Wish, pods: &[ScaledPod], items: &Items) -> Hpa {
    let ended = |pod: &ScaledPod| pod.terminating || pod.phase == Phase::Failed.as_str();
    let named = |wanted: &dyn Fn(&ScaledPod) -> bool| -> Vec<String> {
        pods.iter().filter(|pod| wanted(pod)).map(|pod| pod.name.clone()).collect()
    };
    let pending = |pod: &ScaledPod| !ended(pod) && pod.phase == Phase::Pending.as_str();
    let alive = pods.iter().filter(|pod| !ended(pod) && pod.phase != Phase::Succeeded.as_str()).count();
    let current = wish.current.unwrap_or_else(|| i32::try_from(alive).unwrap_or(i32::MAX));
    let proposal = hpa::propose(current, wish.target_milli, hpa::TOLERANCE, pods, items);
    // An HPA that names no minReplicas has 1.
    let bounded = |replicas: i32| hpa::bounded(replicas, wish.min.unwrap_or(1), wish.max.unwrap_or(i32::MAX));
    let quantity = |milli| Quantity::from_milli(milli).to_string();
    let known = proposal.as_ref().ok();
    Hpa {
        target_average_value: quantity(wish.target_milli),
        tolerance: hpa::TOLERANCE,
        current_replicas: current,
        min_replicas: wish.min,
        max_replicas: wish.max,
        average_value: known.map(|proposal| quantity(proposal.usage_milli)),
        ratio: known.map(|proposal| rounded(proposal.usage_milli as f64 / wish.target_milli as f64)),
        missing: named(&|pod| !ended(pod) && !pending(pod) && !items.contains_key(&pod.name)),
        unready: named(&pending),
        ignored: named(&ended),
        desired_replicas: known.map(|proposal| bounded(proposal.replicas)),
        error: proposal.err().map(|error| error.to_string()),
        not_modelled: NOT_MODELLED.to_owned(),
    }
}

/// To thousandths: more is noise.
fn rounded(number: f64) -> f64 {
    (number * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(count: usize) -> Vec<ScaledPod> {
        let pod = |at| ScaledPod { name: format!("p{at}"), phase: "Running".to_owned(), terminating: false };
        (0..count).map(pod).collect()
    }

    fn items(values: &[i64]) -> Items {
        values.iter().enumerate().map(|(at, value)| (format!("p{at}"), *value)).collect()
    }

    fn wish(target: &str, current: Option<i32>) -> Wish {
        Wish { target_milli: hpa::milli(target).unwrap(), current, min: None, max: None }
    }

    #[test]
    fn the_controllers_worked_numbers() {
        let explained = |target, current, count, values: &[i64]| {
            let hpa = explain_hpa(&wish(target, current), &pods(count), &items(values));
            (hpa.average_value.unwrap(), hpa.desired_replicas.unwrap(), hpa.missing)
        };
        let none = Vec::<String>::new;
        let avg = |text: &str| text.to_owned();
        assert_eq!(explained("20", Some(3), 3, &[20_000, 21_000, 21_000]), (avg("20666m"), 3, none()));
        assert_eq!(explained("17", Some(2), 3, &[10_000, 10_000]), (avg("10"), 2, vec![avg("p2")]));
        assert_eq!(explained("15", Some(3), 3, &[20_000, 10_000, 30_000]), (avg("20"), 4, none()));
        assert_eq!(explained("20", Some(5), 5, &[12_000; 5]), (avg("12"), 3, none()));
        // An HPA that names no minReplicas goes down to 1.
        assert_eq!(explained("20", Some(4), 4, &[0; 4]), (avg("0"), 1, none()));
        // One of them is not Ready, which is no matter for a custom metric.
        assert_eq!(explained("15", None, 3, &[50_000, 10_000, 30_000]), (avg("30"), 6, none()));
    }

    #[test]
    fn an_hpa_without_values_holds() {
        let hpa = explain_hpa(&wish("60", None), &pods(2), &Items::new());
        assert_eq!((hpa.current_replicas, hpa.desired_replicas), (2, None));
        assert_eq!(hpa.error.as_deref(), Some("no metrics returned from custom metrics API"));
    }

    #[test]
    fn bounds_and_pods_that_do_not_count() {
        let mut pods = pods(4);
        pods[2].phase = "Pending".to_owned();
        pods[3].terminating = true;
        let wish = Wish { max: Some(3), ..wish("10", None) };
        let hpa = explain_hpa(&wish, &pods, &items(&[90_000, 90_000]));
        assert_eq!((hpa.current_replicas, hpa.desired_replicas), (3, Some(3)));
        assert_eq!((hpa.unready, hpa.ignored), (vec!["p2".to_owned()], vec!["p3".to_owned()]));
    }

    #[test]
    fn what_is_no_number_is_refused() {
        assert_eq!(Wish::parse(Some("currentReplicas=3")), Ok(None));
        let read = Wish::parse(Some("target=500m&currentReplicas=3&minReplicas=1&maxReplicas=9")).unwrap();
        assert_eq!(read, Some(Wish { target_milli: 500, current: Some(3), min: Some(1), max: Some(9) }));
        for wrong in
            ["target=x", "target=0", "target=-5", "target=1&minReplicas=-1", "target=1&maxReplicas=many"]
        {
            assert_eq!(Wish::parse(Some(wrong)).unwrap_err().code, 400, "{wrong}");
        }
    }
}
