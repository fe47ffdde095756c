//! Collects what a pod's value is made of, holding by holding, for people who ask why.

use std::time::Instant;

use super::{Began, Known, Now, Question, Rules};
use crate::cluster::PodRecord;
use crate::metric::Formula;
use crate::source::history::Mean;
use crate::source::store::ExporterState;

/// What an exporter tells of one container's part of one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Evidence {
    /// How messages call the exporter.
    pub exporter: String,
    /// UUID, with `/GI` for a MIG instance.
    pub device: String,
    /// What tells the device from others.
    pub labels: Vec<(&'static str, String)>,
    /// Empty if the exporter does not know.
    pub container: String,
    /// The part that it was given; `None` if the exporter knows of no allocation.
    pub allocation: Option<f64>,
    /// The newest answer speaks of it.
    pub present: bool,
    pub seen: Instant,
    /// Seconds for which the pod's use of it was observed.
    pub observed: f64,
    /// The window's mean in percent or the family's unit, of the device as a whole.
    pub mean: Option<Mean>,
    /// It is made of the exporter's own sums of the last seconds.
    pub recent: bool,
}

/// What every exporter tells of the pod, whether it counts or not.
pub fn evidence(
    question: &Question<'_>,
    pod: &PodRecord,
    exporters: &[&ExporterState],
    rules: &Rules,
    now: &Now,
) -> Vec<Evidence> {
    let began = Began::of(pod, now);
    let formula = question.metric.formula;
    let window = question.metric.window(rules.window);
    let scale = match formula {
        Formula::Utilization | Formula::UtilizationShare | Formula::DeviceUtilization => 100.0,
        Formula::Mean { scale, .. } => scale,
        Formula::MemoryUsed | Formula::MemoryUtilization | Formula::Sum(_) => 1.0,
    };
    let mut found = Vec::new();
    for exporter in exporters {
        let known = Known::of(question, pod, exporter, began, now);
        for mine in &known.holdings {
            let device = exporter.device_state(mine.device);
            let mean = known.windowed(mine, device, formula.family(), window);
            found.push(Evidence {
                exporter: exporter.name.clone(),
                device: mine.device.to_owned(),
                labels: device
                    .map(|device| {
                        device.labels().iter().map(|(name, value)| (name, value.to_owned())).collect()
                    })
                    .unwrap_or_default(),
                container: mine.container.to_owned(),
                allocation: mine.holding.allocation,
                present: mine.holding.present,
                seen: mine.holding.seen,
                observed: mine.holding.observed(mine.not_before),
                mean: mean.map(|found| Mean { value: found.mean.value * scale, ..found.mean }),
                recent: mean.is_some_and(|found| found.recent),
            });
        }
    }
    found
}
