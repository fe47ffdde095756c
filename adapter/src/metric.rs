//! Owns the list of metrics that are served: their names, how each is made, and which families of
//! the exporters' pages that needs. Discovery, evaluation and the page reader use it.

pub mod families;
pub mod flag;
mod unit;

use std::time::Duration;

use families::Families;
pub use families::{Family, GpuFamily};
pub use flag::MetricFlag;

/// A family of values kept for a pod's device. The first ones are always there; further ones
/// follow in the order of `--metric`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FamilyId(pub u16);

/// The owner's use of the device: active and observed seconds, or NVIDIA's gauge in percent.
pub const USE: FamilyId = FamilyId(0);
/// The whole device's use.
pub const DEVICE_USE: FamilyId = FamilyId(1);
/// Device memory used, MiB.
pub const MEMORY_USED: FamilyId = FamilyId(2);
/// Power of the device, W.
pub const POWER: FamilyId = FamilyId(3);
const SM_ACTIVE: FamilyId = FamilyId(4);
const TENSOR_ACTIVE: FamilyId = FamilyId(5);
const DRAM_ACTIVE: FamilyId = FamilyId(6);
const FIRST_EXTRA: u16 = 7;

/// How a value is made of its devices' values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Formula {
    /// Mean over devices of use ÷ part held, percent.
    Utilization,
    /// Mean over devices of use, percent of the whole device.
    UtilizationShare,
    /// Mean over devices of the whole device's use, percent.
    DeviceUtilization,
    /// Sum over devices, bytes.
    MemoryUsed,
    /// Sum of used ÷ sum of total, percent.
    MemoryUtilization,
    /// Sum over devices, of a family that says nothing about a part of a device.
    Sum(FamilyId),
    /// Mean over devices × `scale`.
    Mean { family: FamilyId, scale: f64 },
}

/// What is made of the values of a pod's or node's devices, instead of what [`Formula`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregation {
    Mean,
    /// The largest: of a pod on several GPUs, the one that works hardest.
    Max,
}

/// One metric that is served.
#[derive(Debug, Clone, PartialEq)]
pub struct Metric {
    pub name: Box<str>,
    pub formula: Formula,
    pub aggregation: Option<Aggregation>,
    /// What its values are means over; `None`: `--window`.
    pub window: Option<Duration>,
}

/// What is served, and what must be read for it. Made once at start.
#[derive(Debug)]
pub struct Metrics {
    served: Vec<Metric>,
    families: Families,
}

impl Formula {
    /// The family whose series it is made of.
    pub const fn family(self) -> FamilyId {
        match self {
            Self::Utilization | Self::UtilizationShare => USE,
            Self::DeviceUtilization => DEVICE_USE,
            Self::MemoryUsed | Self::MemoryUtilization => MEMORY_USED,
            Self::Sum(family) | Self::Mean { family, .. } => family,
        }
    }

    /// … for a whole device, whoever uses it.
    pub fn device_family(self) -> FamilyId {
        match self.family() {
            USE => DEVICE_USE,
            family => family,
        }
    }

    /// How `explain` says what becomes of several devices' values.
    pub const fn aggregation_text(self) -> &'static str {
        match self {
            Self::Utilization | Self::UtilizationShare | Self::DeviceUtilization | Self::Mean { .. } => {
                "mean"
            }
            Self::MemoryUsed | Self::Sum(_) => "sum",
            Self::MemoryUtilization => "used of all ÷ total of all",
        }
    }
}

impl Metric {
    /// What its values are means over.
    pub fn window(&self, default: Duration) -> Duration {
        self.window.unwrap_or(default)
    }

    /// What becomes of several devices' values, in words.
    pub const fn aggregation_text(&self) -> &'static str {
        match self.aggregation {
            None => self.formula.aggregation_text(),
            Some(Aggregation::Mean) => "mean",
            Some(Aggregation::Max) => "max",
        }
    }
}

impl Metrics {
    /// The built-in metrics, and what `--metric` says of them or adds to them.
    pub fn new(flags: &[MetricFlag]) -> Self {
        let mean_percent = |family| Formula::Mean { family, scale: 100.0 };
        let built_in = [
            ("gpu_utilization", Formula::Utilization),
            ("gpu_utilization_share", Formula::UtilizationShare),
            ("gpu_device_utilization", Formula::DeviceUtilization),
            ("gpu_memory_used_bytes", Formula::MemoryUsed),
            ("gpu_memory_utilization", Formula::MemoryUtilization),
            ("gpu_power_watts", Formula::Sum(POWER)),
            ("gpu_sm_active", mean_percent(SM_ACTIVE)),
            ("gpu_tensor_active", mean_percent(TENSOR_ACTIVE)),
            ("gpu_dram_active", mean_percent(DRAM_ACTIVE)),
        ];
        let metric =
            |name: &str, formula| Metric { name: name.into(), formula, aggregation: None, window: None };
        let mut served: Vec<Metric> =
            built_in.into_iter().map(|(name, formula)| metric(name, formula)).collect();
        let mut families = Families::built_in();
        let mut next = FIRST_EXTRA;
        for flag in flags {
            let at = served.iter().position(|metric| *metric.name == *flag.name).unwrap_or_else(|| {
                let (family, scale) = families.keep(&flag.name, FamilyId(next));
                next = next.max(family.0 + 1);
                served.push(metric(&flag.name, Formula::Mean { family, scale }));
                served.len() - 1
            });
            served[at].aggregation = flag.aggregation.or(served[at].aggregation);
            served[at].window = flag.window.or(served[at].window);
        }
        Self { served, families }
    }

    /// In the order of discovery.
    pub fn served(&self) -> &[Metric] {
        &self.served
    }

    /// The metric of that name.
    pub fn get(&self, name: &str) -> Option<&Metric> {
        self.served.iter().find(|metric| *metric.name == *name)
    }

    /// The shortest and the longest time that any of them is a mean over.
    pub fn windows(&self, default: Duration) -> (Duration, Duration) {
        let windows = || self.served.iter().map(|metric| metric.window(default));
        (windows().fold(default, Duration::min), windows().fold(default, Duration::max))
    }

    /// How a sample of that name is read; `None`: not at all.
    pub fn family(&self, name: &str) -> Option<&Family> {
        self.families.get(name)
    }

    /// The names of all families that are read.
    pub fn family_names(&self) -> Vec<&str> {
        self.families.names()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(flags: &[&str]) -> Metrics {
        let flags: Vec<MetricFlag> = flags.iter().map(|flag| MetricFlag::parse(flag).unwrap()).collect();
        Metrics::new(&flags)
    }

    #[test]
    fn further_families_get_ids_of_their_own_unless_they_are_read_anyway() {
        let metrics = metrics(&["DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_POWER_USAGE", "DCGM_FI_DEV_GPU_TEMP"]);
        let family = |name| metrics.get(name).unwrap().formula.family();
        assert_eq!(family("DCGM_FI_DEV_GPU_TEMP"), FamilyId(FIRST_EXTRA));
        assert_eq!(family("DCGM_FI_DEV_POWER_USAGE"), POWER);
        let kept = |name| metrics.family(name).and_then(|family| family.kept);
        assert_eq!(kept("DCGM_FI_DEV_GPU_TEMP"), Some(FamilyId(FIRST_EXTRA)));
        assert_eq!(kept("DCGM_FI_DEV_GPU_TEMP_CELSIUS"), Some(FamilyId(FIRST_EXTRA)));
        assert_eq!(kept("DCGM_FI_DEV_SM_CLOCK"), None);
        assert_eq!(metrics.served().len(), 11);
    }

    #[test]
    fn a_family_may_be_named_in_either_way_and_has_the_unit_of_that_name() {
        let names = [
            "DCGM_FI_DEV_FB_USED",
            "DCGM_FI_DEV_FB_USED_BYTES",
            "DCGM_FI_DEV_GPU_UTIL",
            "DCGM_FI_DEV_GPU_UTIL_RATIO",
            "DCGM_FI_DEV_SM_CLOCK_HERTZ",
            "DCGM_FI_DEV_SM_CLOCK",
            "my_family",
        ];
        let metrics = metrics(&names);
        let formulas = names.map(|name| match metrics.get(name).unwrap().formula {
            Formula::Mean { family, scale } => (family, scale),
            other => panic!("{other:?}"),
        });
        let [clock, mine] = [FamilyId(FIRST_EXTRA), FamilyId(FIRST_EXTRA + 1)];
        assert_eq!(
            formulas,
            [
                (MEMORY_USED, 1.0),
                (MEMORY_USED, 1_048_576.0),
                (USE, 100.0),
                (USE, 1.0),
                (clock, 1e6),
                (clock, 1.0),
                (mine, 1.0)
            ]
        );
        let asked = metrics.family_names();
        for name in names.iter().chain(&["podgauge_gpu_recent_active_seconds", "DCGM_FI_DEV_FB_FREE_BYTES"]) {
            assert!(asked.contains(name), "{name} is not in {asked:?}");
        }
        assert!(!asked.contains(&"DCGM_FI_DEV_MEM_CLOCK"));
    }

    #[test]
    fn a_flag_says_more_of_a_metric_and_leaves_the_others() {
        let metrics = metrics(&[
            "gpu_utilization,aggregation=max",
            "gpu_utilization,window=30s",
            "DCGM_FI_DEV_GPU_TEMP,window=2m",
        ]);
        let seconds = Duration::from_secs;
        let of = |name| {
            let metric = metrics.get(name).unwrap();
            (metric.aggregation, metric.window(seconds(60)))
        };
        assert_eq!(of("gpu_utilization"), (Some(Aggregation::Max), seconds(30)));
        assert_eq!(of("DCGM_FI_DEV_GPU_TEMP"), (None, seconds(120)));
        assert_eq!(of("gpu_power_watts"), (None, seconds(60)));
        assert_eq!(metrics.windows(seconds(60)), (seconds(30), seconds(120)));
        assert_eq!(metrics.served().len(), 10);
    }
}
