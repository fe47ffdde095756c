//! Whatever happens to an exporter, no answer is outside the range of what really was within window
//! and staleness before it; what is unknown is left out; and the value is back with two scrapes.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use podgauge_sim::aggregator::{Aggregation, Aggregator};
use podgauge_sim::apiserver::{ApiServer, ApiServerOptions};
use podgauge_tests::cluster::{Adapter, number};
use podgauge_tests::fake_exporter::{FakeExporter, Manner, Told};
use podgauge_tests::node::Node;
use podgauge_tests::wait::{LIMIT, until};

const INTERVAL: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_secs(3);
const STALENESS: Duration = Duration::from_millis(1500);
/// Between a reading's receipt and an answer's arrival on a busy machine.
const SLACK: Duration = Duration::from_secs(3);
const EVENTS: usize = 30;
/// The part of its GPU that each pod holds: its use is a percentage of it.
const PART: f64 = 0.5;
/// The container labels that its use is printed under, and what each has of it.
const LABELS: [&[(&str, f64)]; 4] =
    [&[("main", 1.0)], &[("", 1.0)], &[("main", 0.25), ("side", 0.75)], &[("", 0.5), ("main", 0.5)]];

/// An exporter's counts between two pages.
struct Piece {
    begin: Instant,
    end: Instant,
    active: f64,
    observed: f64,
    labels: &'static [(&'static str, f64)],
}

/// A pod's load over time, and what its exporter's counters say of it.
struct Course {
    told: Told,
    /// How old the pod was when the API server had it first.
    age_s: u32,
    labels: &'static [(&'static str, f64)],
    /// The exporter does not know how large the pod's part is.
    part_unknown: bool,
    active: f64,
    observed: f64,
    counted: Instant,
    /// Its counts of the last seconds.
    lately: VecDeque<Piece>,
    /// How fast the exporter's clock runs, and how far it is off, seconds.
    clock: f64,
    skew: i64,
    /// The loads and since when, percent; of this pod alone.
    truth: Vec<(Instant, f64)>,
    /// Those of the pod before it, which answers may speak of until there is none.
    earlier: Vec<(Instant, f64)>,
}

impl Course {
    fn new(pod: &str, load: f64) -> Self {
        let told =
            Told { uuid: format!("GPU-{pod}"), pod: pod.to_owned(), uid: format!("uid-{pod}-0"), load };
        let now = Instant::now();
        Self {
            told,
            age_s: 3600,
            labels: LABELS[0],
            part_unknown: false,
            active: 0.0,
            observed: 1000.0,
            counted: now,
            lately: VecDeque::new(),
            clock: 1.0,
            skew: 0,
            truth: vec![(now, load)],
            earlier: Vec::new(),
        }
    }

    fn count(&mut self) {
        let now = Instant::now();
        let seconds = (now - self.counted).as_secs_f64() * self.clock;
        let busy = seconds * self.told.load / 100.0;
        let (begin, labels) = (self.counted, self.labels);
        self.lately.push_back(Piece { begin, end: now, active: busy, observed: seconds, labels });
        self.counted = now;
        self.observed += seconds;
        self.active += busy;
        while self.lately.front().is_some_and(|piece| piece.end + WINDOW <= now) {
            self.lately.pop_front();
        }
    }

    /// Its counters begin at 0, as after a restart of the exporter.
    fn reset(&mut self) {
        self.count();
        (self.active, self.observed) = (0.0, 0.0);
        self.lately.clear();
    }

    /// The active and observed seconds that its exporter has under a container label in the window
    /// before the last count.
    fn sums(&self, container: &str) -> (f64, f64) {
        let from = self.counted.checked_sub(WINDOW).unwrap();
        let mut sums = (0.0, 0.0);
        for Piece { begin, end, active, observed, labels } in &self.lately {
            let share = labels.iter().find(|(name, _)| *name == container).map(|(_, share)| share);
            let (Some(share), true) = (share, *end > from) else { continue };
            let inside = (*end - from.max(*begin)).as_secs_f64() / (*end - *begin).as_secs_f64().max(1e-9);
            sums.0 += inside * active * share;
            sums.1 += inside * observed;
        }
        sums
    }

    fn load(&mut self, load: f64) {
        self.count();
        self.told.load = load;
        self.truth.push((Instant::now(), load));
    }

    /// Another pod of that name begins. An exporter's counters go on, and its sums begin again.
    fn recreate(&mut self, generation: usize, load: f64) {
        self.earlier = std::mem::take(&mut self.truth);
        self.load(load);
        self.lately.clear();
        self.age_s = 0;
        self.told.uid = format!("uid-{}-{generation}", self.told.pod);
    }

    /// The samples of a page.
    fn lines(&self, with_sums: bool) -> Vec<String> {
        let Told { uuid, pod, uid, .. } = &self.told;
        let device = format!("gpu=\"0\",UUID=\"{uuid}\"");
        let owner =
            |container: &str| format!("{device},namespace=\"demo\",pod=\"{pod}\",container=\"{container}\"");
        let held = format!("{},pod_uid=\"{uid}\"", owner("main"));
        let mut lines = vec![
            format!("podgauge_gpu_owners{{{device}}} {}", self.labels.len()),
            if self.part_unknown {
                format!("podgauge_gpu_part_unknown{{{held}}} 1")
            } else {
                format!("podgauge_gpu_allocation{{{held}}} {PART}")
            },
        ];
        for (container, share) in self.labels {
            let owner = owner(container);
            lines.push(format!("podgauge_gpu_active_seconds_total{{{owner}}} {:.6}", self.active * share));
            lines.push(format!("podgauge_gpu_observed_seconds_total{{{owner}}} {:.6}", self.observed));
            if with_sums {
                let (active, observed) = self.sums(container);
                let window = format!("window=\"{}s\",{owner}", WINDOW.as_secs());
                lines.push(format!("podgauge_gpu_recent_active_seconds{{{window}}} {active:.6}"));
                lines.push(format!("podgauge_gpu_recent_observed_seconds{{{window}}} {observed:.6}"));
            }
        }
        lines
    }

    /// The least and the greatest load that an answer may be made of.
    fn range(&self, asked: Instant) -> (f64, f64) {
        let from = asked.checked_sub(WINDOW + STALENESS + SLACK).unwrap();
        let mut range = (f64::INFINITY, f64::NEG_INFINITY);
        for loads in [&self.earlier, &self.truth] {
            for (at, (_, load)) in loads.iter().enumerate() {
                if loads.get(at + 1).is_none_or(|(until, _)| *until >= from) {
                    range = (range.0.min(*load), range.1.max(*load));
                }
            }
        }
        range
    }
}

/// Numbers that a seed tells.
struct Dice(u64);

impl Dice {
    fn next(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// The page with the time of a wrong clock behind each sample.
fn stamped(courses: &mut [Course], with_sums: bool) -> String {
    courses.iter_mut().for_each(Course::count);
    let mut text = String::new();
    for line in courses.iter().flat_map(|course| course.lines(with_sums)) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line} {}", 1_700_000_000_000 + 1000 * courses[0].skew);
    }
    text
}

fn scenario(courses: &[Course]) -> String {
    let mut yaml = "node: gpu-node-0\ngpus: [{}, {}]\npods:\n".to_owned();
    for (gpu, course) in courses.iter().enumerate() {
        let Told { pod, uid, .. } = &course.told;
        let age_s = course.age_s;
        let containers = format!("[{{devices: [\"{gpu}\"]}}]");
        let _ = writeln!(yaml, "  - {{name: {pod}, uid: {uid}, age_s: {age_s}, containers: {containers}}}");
    }
    yaml
}

/// The value, or the text of the 404.
async fn ask(aggregator: &Aggregator, pod: &str) -> Result<f64, String> {
    let path = format!("namespaces/demo/pods/{pod}/gpu_utilization");
    until(&format!("an answer to {path}"), || async {
        let answer = aggregator.metric_request(&path, vec![]).await.map_err(|error| error.to_string())?;
        match answer.status.as_u16() {
            200 => Ok(Ok(number(&answer.json().unwrap()["items"][0]["value"]))),
            404 => Ok(Err(answer.text())),
            // The simulated API server's answer about the right to ask came too late: nothing was said.
            500 => Err(answer.text()),
            status => panic!("{status}: {}", answer.text()),
        }
    })
    .await
}

#[tokio::test]
async fn no_answer_is_outside_of_what_was() {
    no_answer_is_outside(false).await;
}

#[tokio::test]
async fn no_answer_is_outside_of_what_was_with_the_exporters_own_sums() {
    no_answer_is_outside(true).await;
}

async fn no_answer_is_outside(with_sums: bool) {
    let seed = match std::env::var("PODGAUGE_TEST_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 | 1,
    };
    println!("PODGAUGE_TEST_SEED={seed}");
    let mut dice = Dice(seed);
    let courses = Arc::new(Mutex::new(vec![Course::new("a", 40.0), Course::new("b", 70.0)]));
    let shown = Arc::clone(&courses);
    let exporter = FakeExporter::start_with(move || stamped(&mut shown.lock(), with_sums)).await;
    let node = Node::new(&scenario(&courses.lock()));
    let options = ApiServerOptions { scenarios: vec![node.scenario()], ..ApiServerOptions::default() };
    let server = ApiServer::start(options).await.unwrap();
    let adapter = Adapter::start(&node, &server, |command| {
        command.args(["--scrape-interval", "300ms", "--window", "3s", "--staleness", "1500ms"]);
        command.arg(format!("--exporter-url=gpu-node-0=http://{}", exporter.address));
    })
    .await;
    let settings = Aggregation::of_adapter(adapter.address, adapter.authority.pem().to_owned());
    let aggregator = server.aggregate(settings).unwrap();

    // One question to each pod. The range is that of before the question and after the answer.
    let judge = async |what: &str| {
        let mut known = 0;
        for (at, pod) in ["a", "b"].into_iter().enumerate() {
            let asked = Instant::now();
            let before = courses.lock()[at].range(asked);
            let Ok(value) = ask(&aggregator, pod).await.map(|value| value * PART) else {
                courses.lock()[at].earlier.clear();
                continue;
            };
            let after = courses.lock()[at].range(asked);
            let (least, most) = (before.0.min(after.0), before.1.max(after.1));
            assert!(
                value >= least - 0.01 && value <= most + 0.01,
                "{what}: {pod} is {value}, between {least} and {most} is true"
            );
            known += 1;
        }
        known
    };
    let both = async |what: &str| {
        until(&format!("both values, {what}"), || async {
            match judge(what).await {
                2 => Ok(()),
                known => Err(known),
            }
        })
        .await;
    };
    let at_rest = async |what: &str| {
        until(&format!("the loads themselves, {what}"), || async {
            let mut answers = Vec::new();
            for (at, pod) in ["a", "b"].into_iter().enumerate() {
                let load = courses.lock()[at].told.load;
                answers.push((ask(&aggregator, pod).await.map(|value| value * PART), load));
            }
            let right = |(answer, load): &(Result<f64, String>, f64)| {
                answer.as_ref().is_ok_and(|value| (value - load).abs() <= 0.01)
            };
            if answers.iter().all(right) { Ok(()) } else { Err(answers) }
        })
        .await;
    };
    both("at the start").await;
    for event in 0..EVENTS {
        let load = dice.next(101) as f64;
        let pod = dice.next(2) as usize;
        let lasts = Duration::from_millis(200 + dice.next(1000));
        let kind = dice.next(16);
        let what = format!("event {event} of kind {kind}, pod {pod}, load {load}, {lasts:?}");
        let mut silent = false;
        match kind {
            0 | 1 => courses.lock()[pod].load(load),
            // Stopped, hanging, slow, broken.
            2 => exporter.behave(Manner::Raw(Vec::new())),
            3 => exporter.behave(Manner::Silent),
            4 => exporter.behave(Manner::Late(lasts / 4)),
            5 => exporter.behave(if pod == 0 { Manner::Cut } else { Manner::Half }),
            // Long enough to be unknown.
            6 => {
                exporter.behave(Manner::Raw(Vec::new()));
                silent = true;
            }
            // Restarted, or its counters alone.
            7 | 8 => {
                courses.lock().iter_mut().for_each(Course::reset);
                if kind == 8 {
                    exporter.behave(Manner::Raw(Vec::new()));
                }
            }
            // A clock that is off, runs fast or slow, or jumps.
            9 => {
                for course in courses.lock().iter_mut() {
                    course.count();
                    course.skew = load as i64 * 3600 - 180_000;
                    course.clock = 0.5 + load / 100.0;
                }
            }
            10 => courses.lock().iter_mut().for_each(|course| course.observed += 3600.0),
            // Printed under other containers' labels.
            12 | 13 => {
                let mut courses = courses.lock();
                courses[pod].count();
                courses[pod].labels = LABELS[dice.next(4) as usize];
            }
            // The size of its part is not known any more; of this pod it was.
            14 => courses.lock()[pod].part_unknown = true,
            _ => {
                // … and of another pod it never was.
                courses.lock()[pod].part_unknown = kind == 15;
                let yaml = {
                    let mut courses = courses.lock();
                    courses[pod].recreate(event + 1, load);
                    scenario(&courses)
                };
                node.play(&yaml);
            }
        }
        // The other load moves meanwhile, too.
        courses.lock()[1 - pod].load(dice.next(101) as f64);
        let begun = Instant::now();
        while begun.elapsed() < lasts {
            judge(&what).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if silent {
            until("both to be unknown", || async {
                match judge(&what).await {
                    0 => Ok(()),
                    known => Err((known, begun.elapsed())),
                }
            })
            .await;
        }
        exporter.behave(Manner::Page);
        if kind == 15 {
            let name = ["a", "b"][pod];
            until("the part to be missed", || async {
                judge(&what).await;
                match ask(&aggregator, name).await {
                    Err(text) if text.contains("part of its device that it was given is not known") => Ok(()),
                    other => Err(other),
                }
            })
            .await;
        }
        if kind == 14 {
            // It has a value all the same.
            both(&what).await;
        }
        courses.lock()[pod].part_unknown = false;
        let asked = exporter.requests();
        both(&what).await;
        let asked = exporter.requests() - asked;
        // Two scrapes; what else came while this test was not running. A new pod is observed for 15 s first.
        assert!(asked <= 20 || kind == 11 || kind == 15, "{what}: back after {asked} scrapes");
        // Loads that move leave a wide range; one that rests leaves its own number.
        if event % 10 == 9 {
            at_rest(&what).await;
        }
    }
    assert!(STALENESS + WINDOW < LIMIT && INTERVAL * 2 <= WINDOW);
}
