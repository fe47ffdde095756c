//! Whatever happens to exporters, their counters, clocks and pods: no answer is outside of what
//! really was within window and staleness before it, and it is back within two scrapes.
//!
//! The node here is what the shipped exporter tells of it, second by second: counters in seconds,
//! a gauge for exporters that have no more. Pages may be late, old or missing.

use std::collections::{BTreeMap, VecDeque};

use jiff::SignedDuration;
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use serde_json::json;

use super::super::Omission;
use super::Scene;

/// The part of the GPU that the pod holds, in two halves: each of its two containers has one.
const PART: f64 = 0.5;
/// The container labels under which its use may be printed, and what each has of it. The second
/// container's name is not known, or no name is.
const LABELS: [&[(&str, f64)]; 4] =
    [&[("c", 1.0)], &[("", 1.0)], &[("c", 0.3), ("d", 0.7)], &[("", 0.7), ("c", 0.3)]];

/// What lasts for some time, in seconds.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// Scrapes are answered.
    Scraped(u8),
    /// The exporter does not run, then begins with counters at 0.
    Stopped(u8),
    /// It runs and does not answer: its counters go on.
    Silent(u8),
    /// Each answer is of a page so many seconds old, as of a slow network or a sampler that hangs.
    Slow(u8),
    /// The driver answers nothing: neither active nor observed seconds grow.
    Blind(u8),
    /// The same counters, started anew.
    Reset,
    /// The pod is made anew under its name, and its readiness with it.
    Recreated,
    /// The API server's clock, by which it writes when containers start, goes wrong by seconds.
    ClockOff(i8),
    /// The adapter's own clock steps by seconds.
    ClockSteps(i8),
    /// The exporter prints the use under these labels from here on, one of [`LABELS`].
    Labels(u8),
    /// So many of the pod's two parts are reported as unknown from here on.
    PartsUnknown(u8),
    /// The adapter begins again and knows nothing.
    AdapterRestarted,
    /// Percent from here on.
    Load(u8),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let seconds = || 1u8..50;
    let event = prop_oneof![
        8 => (5u8..60).prop_map(Event::Scraped),
        1 => seconds().prop_map(Event::Stopped),
        1 => seconds().prop_map(Event::Silent),
        1 => seconds().prop_map(Event::Slow),
        1 => seconds().prop_map(Event::Blind),
        1 => Just(Event::Reset),
        1 => Just(Event::Recreated),
        1 => (-100i8..100).prop_map(Event::ClockOff),
        1 => (-100i8..100).prop_map(Event::ClockSteps),
        3 => (0u8..4).prop_map(Event::Labels),
        2 => (0u8..3).prop_map(Event::PartsUnknown),
        1 => Just(Event::AdapterRestarted),
        6 => prop_oneof![Just(0u8), Just(100u8), 0u8..=100].prop_map(Event::Load),
    ];
    proptest::collection::vec(event, 1..40)
}

/// One simulated node with one pod on one GPU, and the adapter's scene that scrapes it.
struct World {
    scene: Scene,
    /// Whether its exporter has counters, or a gauge alone.
    native: bool,
    load: f64,
    /// The load of each second so far, and whose it was.
    truth: Vec<(f64, u32)>,
    generation: u32,
    /// How often the exporter began.
    lives: u32,
    /// Of the exporter's present life, by container label: active and observed seconds.
    counters: BTreeMap<&'static str, (f64, f64)>,
    /// … of each of the last seconds, with the second.
    recent: BTreeMap<&'static str, VecDeque<(usize, f64, f64)>>,
    labels: &'static [(&'static str, f64)],
    /// Scrapes that followed a good one, since the adapter or the pod began.
    read: u32,
    parts_unknown: u8,
    /// … on the newest page that was scraped.
    page_unknown: u8,
    /// The most unknown parts that leave the sum known: what was known of this pod is kept.
    parts_kept: u8,
    /// The page of each second of the exporter's present life.
    pages: Vec<String>,
    clock_off: i64,
    /// Clocks never differed: also of a label without a UID it is known when its pod began.
    clocks_agree: bool,
    /// Scrapes in a row that brought something new since the last disturbance.
    good: u32,
    /// The present pod has had an answer.
    settled: bool,
}

impl World {
    fn new(native: bool) -> Self {
        let scene = Scene::new();
        let mut world = Self {
            scene,
            native,
            load: 0.5,
            truth: Vec::new(),
            generation: 0,
            lives: 1,
            counters: BTreeMap::new(),
            recent: BTreeMap::new(),
            labels: LABELS[0],
            read: 0,
            parts_unknown: 0,
            page_unknown: 0,
            parts_kept: 0,
            pages: Vec::new(),
            clock_off: 0,
            clocks_agree: true,
            good: 0,
            settled: false,
        };
        world.recreate();
        world
    }

    fn recreate(&mut self) {
        self.generation += 1;
        // The exporter keeps accounts by printed labels: those of a pod of the same name go on. Its sums
        // of the last minute begin again with the UID.
        self.recent.clear();
        let started =
            self.scene.began_wall + SignedDuration::from_secs(self.truth.len() as i64 + self.clock_off);
        self.scene.pod["metadata"]["uid"] = json!(format!("u{}", self.generation));
        self.scene.pod["status"]["startTime"] = json!(started.to_string());
        self.scene.pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"] =
            json!(started.to_string());
        (self.good, self.settled, self.parts_kept, self.read) = (0, false, 0, 0);
    }

    /// A second passes.
    fn second(&mut self, running: bool, seeing: bool) {
        self.truth.push((100.0 * self.load, self.generation));
        self.scene.seconds = self.truth.len() as f64;
        if running && seeing {
            for (label, share) in self.labels {
                let (active, observed) = self.counters.entry(label).or_default();
                *active += self.load * share;
                *observed += 1.0;
                let recent = self.recent.entry(label).or_default();
                recent.push_back((self.truth.len(), self.load * share, 1.0));
            }
        }
        if running {
            let page = if self.native { self.native_page() } else { self.gauge_page() };
            self.pages.push(page);
        }
    }

    /// The exporter begins again.
    fn forget_counters(&mut self) {
        self.lives += 1;
        self.counters.clear();
        self.recent.clear();
    }

    /// The seconds of the last minute under a label, as the exporter prints them: none that are older
    /// than 10 s, and none while a part of them is under a label that has ended.
    fn sums(&self, label: &str) -> Option<(f64, f64)> {
        let since =
            |seconds: usize| move |(second, ..): &&(usize, f64, f64)| second + seconds > self.truth.len();
        let is_printed = |label: &str| self.labels.iter().any(|(known, _)| *known == label);
        let has_left = |(other, seconds): (&&str, &VecDeque<(usize, f64, f64)>)| {
            !is_printed(other) && seconds.iter().any(|second| since(60)(&second))
        };
        let seconds = self.recent.get(label)?;
        if self.recent.iter().any(has_left) || !seconds.iter().any(|second| since(10)(&second)) {
            return None;
        }
        let sum = |(active, observed): (f64, f64), (_, more, time): &(usize, f64, f64)| {
            (active + more, observed + time)
        };
        Some(seconds.iter().filter(since(60)).fold((0.0, 0.0), sum))
    }

    fn native_page(&self) -> String {
        let owner = |container: &str| {
            format!("UUID=\"GPU-0\",namespace=\"demo\",pod=\"p\",container=\"{container}\"")
        };
        let mut page = format!("podgauge_start_time_seconds {}\n", self.lives);
        for (at, container) in ["c", "d"].into_iter().enumerate() {
            let uid = format!("{},pod_uid=\"u{}\"", owner(container), self.generation);
            page += &if at < self.parts_unknown.into() {
                format!("podgauge_gpu_part_unknown{{{uid}}} 1\n")
            } else {
                format!("podgauge_gpu_allocation{{{uid}}} {}\n", PART / 2.0)
            };
        }
        for (label, _) in self.labels {
            let (active, observed) = self.counters.get(label).copied().unwrap_or_default();
            let owner = owner(label);
            page += &format!(
                "podgauge_gpu_active_seconds_total{{{owner}}} {active}\n\
                 podgauge_gpu_observed_seconds_total{{{owner}}} {observed}\n"
            );
            if let Some((active, observed)) = self.sums(label) {
                page += &format!(
                    "podgauge_gpu_recent_active_seconds{{window=\"60s\",{owner}}} {active}\n\
                     podgauge_gpu_recent_observed_seconds{{window=\"60s\",{owner}}} {observed}\n"
                );
            }
        }
        page
    }

    /// NVIDIA's exporter repeats the device's value for each container, and knows of no parts.
    fn gauge_page(&self) -> String {
        let of = |(label, _): &(&str, f64)| {
            let page = super::gauge("GPU-0", &format!("p-{}", self.generation), 100.0 * self.load);
            page.replace("container=\"c\"", &format!("container=\"{label}\""))
        };
        self.labels.iter().map(of).collect()
    }

    /// The adapter asks; `age`: of the page that it gets, seconds.
    fn scrape(&mut self, age: usize) {
        let Some(at) = self.pages.len().checked_sub(1 + age) else {
            self.scene.exporter.failed("not there".to_owned());
            self.good = 0;
            return;
        };
        // A gauge's exporter names no UID: the pod's name tells its lives apart here.
        let page = self.pages[at].replace(&format!("p-{}", self.generation), "p");
        self.scene.page(&page);
        self.good += 1;
        self.read += u32::from(self.good >= 2);
        let unknown = page.matches("part_unknown{").count() as u8;
        if unknown < 2 && page.contains(&format!("\"u{}\"", self.generation)) {
            // With the second part known and not the first, the first is still missing.
            self.parts_kept = if unknown == 0 { 2 } else { self.parts_kept };
        }
        self.page_unknown = unknown;
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        // Window and staleness, and the interval that the first reading of a gauge stands for.
        let reach = self.truth.len().saturating_sub(60 + 30 + 10);
        let mine = self.truth[reach..].iter().filter(|(_, whose)| *whose == self.generation);
        let (least, most) =
            mine.fold((f64::MAX, f64::MIN), |(least, most), (load, _)| (least.min(*load), most.max(*load)));
        let part = if self.native { PART } else { 1.0 };
        match self.scene.utilization().map(|value| value * part) {
            Ok(value) => {
                self.settled = true;
                let lived = self.truth.iter().filter(|(_, whose)| *whose == self.generation).count();
                prop_assert!(
                    !(self.native && self.clocks_agree) || lived >= 15,
                    "{value} at {} s of a pod that has run for {lived} s",
                    self.truth.len()
                );
                prop_assert!(
                    self.page_unknown <= self.parts_kept,
                    "{value} at {} s of an unknown part",
                    self.truth.len()
                );
                prop_assert!(
                    least - 0.2 <= value && value <= most + 0.2,
                    "{value} at {} s is outside of {least} to {most}",
                    self.truth.len()
                );
            }
            Err(Omission::PartUnknown(_)) => {
                prop_assert!(
                    self.page_unknown > self.parts_kept,
                    "at {} s the part is known",
                    self.truth.len()
                );
            }
            // It was answered by the exporter's sums, which then ended.
            Err(Omission::Reading { .. }) => {
                prop_assert!(self.read * 5 <= 15, "at {} s it was read for long enough", self.truth.len());
            }
            Err(omission) => {
                // Unknown is left out; but who was settled is back with the second scrape.
                prop_assert!(!(self.settled && self.good >= 2), "at {} s: {omission}", self.truth.len());
            }
        }
        Ok(())
    }

    fn play(&mut self, event: Event) -> Result<(), TestCaseError> {
        let (seconds, running, seeing, scraped, age) = match event {
            Event::Scraped(seconds) => (seconds, true, true, true, 0),
            Event::Stopped(seconds) => (seconds, false, false, true, 0),
            Event::Silent(seconds) => (seconds, true, true, false, 0),
            // No slower than what the pod is: of another's page nothing may be seen at all.
            Event::Slow(seconds) => (seconds, true, true, true, usize::from(seconds % 5)),
            Event::Blind(seconds) => (seconds, true, false, true, 0),
            Event::Reset => {
                self.forget_counters();
                self.good = 0;
                return Ok(());
            }
            Event::ClockSteps(seconds) => {
                self.scene.began_wall += SignedDuration::from_secs(seconds.into());
                self.clocks_agree = false;
                // A label without a UID is observed since the pod began, by that clock.
                self.settled = false;
                return Ok(());
            }
            Event::Labels(which) => {
                // Between two pages with different labels lies a gap.
                (self.labels, self.good) = (LABELS[usize::from(which)], 0);
                return Ok(());
            }
            Event::PartsUnknown(count) => {
                self.parts_unknown = count;
                return Ok(());
            }
            Event::AdapterRestarted => {
                self.scene.exporter = Scene::new().exporter;
                self.read = 0;
                (self.good, self.settled, self.parts_kept, self.page_unknown) = (0, false, 0, 0);
                return Ok(());
            }
            Event::Recreated => {
                self.recreate();
                self.pages.clear();
                return Ok(());
            }
            Event::ClockOff(seconds) => {
                self.clock_off = i64::from(seconds);
                self.clocks_agree = false;
                return Ok(());
            }
            Event::Load(percent) => {
                self.load = f64::from(percent) / 100.0;
                return Ok(());
            }
        };
        if !running {
            self.forget_counters();
            self.pages.clear();
        }
        for _ in 0..seconds {
            self.second(running, seeing);
            if self.truth.len().is_multiple_of(5) {
                if scraped {
                    self.scrape(age);
                } else {
                    self.scene.exporter.failed("no answer".to_owned());
                    self.good = 0;
                }
            }
            // What is seen late or not at all is no new reading.
            if !seeing || age > 0 {
                self.good = 0;
            }
            self.check()?;
        }
        Ok(())
    }
}

/// Counters that begin again under one label may bring the sum of both to where it was.
#[test]
fn when_counters_of_one_of_two_labels_begin_again() {
    use Event::{Blind, Labels, Load, Reset, Scraped};
    for events in [
        &[Scraped(39), Reset, Scraped(5), Labels(3), Blind(16), Reset, Scraped(5)][..],
        &[Scraped(7), Labels(1), Scraped(60), Reset, Load(100), Scraped(183), Labels(3), Scraped(5)],
    ] {
        let mut world = World::new(true);
        for event in events {
            world.play(*event).unwrap();
        }
    }
}

/// An adapter that has just begun cannot tell by time whose the seconds of a pod's sums are.
#[test]
fn whatever_the_clocks_say_of_a_pod_that_took_anothers_name() {
    use Event::{AdapterRestarted, ClockOff, ClockSteps, Load, Recreated, Scraped, Silent, Slow};
    for events in [
        &[Scraped(43), AdapterRestarted, Load(0), Recreated, Scraped(34), Slow(28)][..],
        &[Silent(1), Load(0), Recreated, ClockSteps(1), Scraped(14)],
        &[Scraped(5), Load(0), Recreated, AdapterRestarted, ClockSteps(5), Scraped(10)],
        &[Scraped(50), ClockOff(-90), Load(0), Recreated, AdapterRestarted, Scraped(40)],
    ] {
        let mut world = World::new(true);
        for event in events {
            world.play(*event).unwrap();
        }
    }
}

proptest! {
    // Each plays a quarter of an hour.
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn with_podgauges_exporter(events in events()) {
        let mut world = World::new(true);
        for event in events {
            world.play(event)?;
        }
    }

    /// Without UIDs time tells a pod from its predecessor of the same name, so the clocks must agree.
    #[test]
    fn with_an_exporter_that_has_gauges_alone(events in events()) {
        let mut world = World::new(false);
        for event in events {
            match event {
                // A gauge tells what is, or nothing; whose it was before a pod began is told by time.
                Event::Blind(_)
                | Event::Reset
                | Event::ClockOff(_)
                | Event::ClockSteps(_)
                | Event::PartsUnknown(_) => {}
                event => world.play(event)?,
            }
        }
    }
}
