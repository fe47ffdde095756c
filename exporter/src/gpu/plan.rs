//! Says which readings are taken of every GPU, by the counters file of the moment.

use std::time::Duration;

use podgauge_common::catalogue::{Engine, Metric, Reading, Text};

use super::events::EventWindows;
use super::fields::FieldPlan;
use super::gpm::GpmPlan;
use super::mig::InstancePlan;

/// The readings to take.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Another number for every plan, so that values are not mixed with those of an earlier one.
    pub(crate) generation: u64,
    /// Values of a [`DeviceReading`](super::DeviceReading) are in this order.
    pub(crate) metrics: Vec<&'static Metric>,
    /// Texts of a [`DeviceReading`](super::DeviceReading) are in this order.
    pub(crate) texts: Vec<Text>,
    pub(crate) windows: EventWindows,
    /// How often values other than utilization are read.
    pub(super) interval: Duration,
    pub(super) memory_utilization: bool,
    pub(super) fields: FieldPlan,
    pub(super) gpm: GpmPlan,
    /// Whether clock events are counted.
    pub(super) clock_events: bool,
    /// Readings that MIG instances have of their own.
    pub(super) instance: InstancePlan,
}

// === impl Plan ===

impl Plan {
    /// `interval` is `-c`.
    pub(crate) fn new(
        generation: u64,
        metrics: Vec<&'static Metric>,
        texts: Vec<Text>,
        interval: Duration,
        windows: EventWindows,
    ) -> Self {
        let memory_utilization =
            metrics.iter().any(|metric| metric.reading == Reading::Utilization(Engine::Memory));
        let clock_events = metrics
            .iter()
            .any(|metric| matches!(metric.reading, Reading::ClockEventsInWindow | Reading::ClockEventsTotal));
        Self {
            generation,
            fields: FieldPlan::new(&metrics),
            gpm: GpmPlan::new(&metrics),
            instance: InstancePlan::new(&metrics),
            clock_events,
            texts,
            windows,
            interval,
            memory_utilization,
            metrics,
        }
    }
}
