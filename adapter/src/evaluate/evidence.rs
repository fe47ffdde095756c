//! Collects what a pod's value is made of, device by device, for people who ask why.

use std::time::Instant;

use super::devices::{Device, Measured, devices};
use super::{Began, HeldPart, Known, Now, Question, Rules};
use crate::cluster::PodRecord;
use crate::source::history::Mean;
use crate::source::store::ExporterState;

/// A pod on one device, as an exporter reports it.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// How messages call the exporter.
    pub exporter: String,
    /// UUID, with `/GI` for a MIG instance.
    pub device: String,
    /// The labels that identify the device.
    pub labels: Vec<(&'static str, String)>,
    /// The pod's containers on the device, of which one is empty if the exporter does not know its
    /// name. None for a GPU that an annotation names and the pod does not use.
    pub containers: Vec<String>,
    /// The part of the device that the pod was given.
    pub held: HeldPart,
    /// The newest page reports the pod on it.
    pub present: bool,
    /// When a page last did.
    pub seen: Option<Instant>,
    /// Seconds for which the pod's use of it was observed.
    pub observed: f64,
    /// The window's mean in the metric's unit; a share is of the whole device.
    pub mean: Option<Mean>,
    /// It is made of the exporter's own sums of the last seconds.
    pub recent: bool,
}

/// The evidence of every exporter, whether it counts or not.
pub fn evidence(
    question: &Question<'_>,
    pod: &PodRecord,
    exporters: &[&ExporterState],
    rules: &Rules,
    now: &Now,
) -> Vec<Evidence> {
    let began = Began::of(pod, now);
    let mut found = Vec::new();
    for exporter in exporters {
        let known = Known::of(question, pod, exporter, began, now);
        let mut all = Device::all(&known);
        // GPUs that annotations name follow, unless the pod is known to be on them.
        all.extend(devices(&known, rules, now).into_iter().filter(|device| device.holdings.is_empty()));
        found.extend(all.iter().map(|device| of_device(question, &known, device, rules)));
    }
    found
}

fn of_device(question: &Question<'_>, known: &Known<'_>, device: &Device<'_>, rules: &Rules) -> Evidence {
    let formula = question.metric.formula;
    let window = question.metric.window(rules.window);
    let state = device.state;
    let memory_total = state.and_then(|state| state.memory_total);
    let in_unit = |mean| Measured::whole(mean, memory_total).in_unit(formula);
    let family = formula.family();
    let series = device.series(known, family);
    let found = series.ok().and_then(|series| device.windowed(known, family, series, window));
    let holdings = || device.holdings.iter();
    Evidence {
        exporter: known.exporter.name.clone(),
        device: device.key.to_owned(),
        labels: state
            .map(|state| state.labels().iter().map(|(name, value)| (name, value.to_owned())).collect())
            .unwrap_or_default(),
        containers: holdings().map(|mine| mine.container.to_owned()).collect(),
        held: device.part(known),
        present: holdings().any(|mine| mine.holding.present),
        seen: holdings().map(|mine| mine.holding.seen).max(),
        observed: holdings().map(|mine| mine.holding.observed(mine.not_before)).fold(0.0, f64::max),
        mean: found.and_then(|found| Some(Mean { value: in_unit(found.mean)?, ..found.mean })),
        recent: found.is_some_and(|found| found.recent),
    }
}
