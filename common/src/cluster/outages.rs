//! Says which watches of a program fail, and why: one line for one cause, however many watches it
//! stops, and one line when they work again.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{info, warn};

/// One cause reaches all watches within this time. A watch that works again for less is not
/// mentioned.
const GATHER: Duration = Duration::from_secs(2);
/// The end of one cause reaches all watches within this time: each tries again every 5 s at least.
const GATHER_ENDS: Duration = Duration::from_secs(10);

/// Why a watch does not work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No API server answered, or its answer could not be read.
    NoAnswer,
    /// The API server refused with this status code.
    Refused(u16),
}

/// Says what to do about a cause; the text becomes a part of the line.
pub type Advice = fn(Cause) -> Option<&'static str>;

/// The watches of a program. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Watches(Arc<Mutex<Inner>>);

/// One of the [`Watches`]. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Watched {
    watches: Watches,
    at: usize,
    what: Arc<str>,
}

#[derive(Debug, Default)]
struct Inner {
    watches: Vec<State>,
    /// A line is about to be written.
    gathering: bool,
}

#[derive(Debug)]
struct State {
    what: Arc<str>,
    advice: Advice,
    failing: Option<Failing>,
    /// The failure that was logged, until the watch is logged to work again.
    said: Option<Said>,
}

#[derive(Debug)]
struct Failing {
    cause: Cause,
    reason: String,
    /// Another cause that was met once since.
    other: Option<Cause>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    cause: Cause,
    reason: String,
}

/// A line to be logged.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    Fails(String),
    Works(String),
}

// === impl Watches ===

impl Watches {
    /// Adds a watch of these objects, such as `pods`.
    pub fn add(&self, what: impl Into<String>) -> Watched {
        self.add_with_advice(what, |_| None)
    }

    /// As [`add`](Self::add); the log also says what to do.
    pub fn add_with_advice(&self, what: impl Into<String>, advice: Advice) -> Watched {
        let what: Arc<str> = what.into().into();
        let mut inner = self.0.lock();
        inner.watches.push(State { what: Arc::clone(&what), advice, failing: None, said: None });
        Watched { watches: self.clone(), at: inner.watches.len() - 1, what }
    }

    /// Lets the lines be written once every watch has had time to notice.
    fn gather(&self, inner: &mut Inner) {
        if std::mem::replace(&mut inner.gathering, true) {
            return;
        }
        let watches = self.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let lines = loop {
                tokio::time::sleep(GATHER).await;
                let mut inner = watches.0.lock();
                if began.elapsed() >= GATHER_ENDS || !inner.more_will_end() {
                    break inner.lines();
                }
            };
            for line in lines {
                match line {
                    Line::Fails(line) => warn!("{line}"),
                    Line::Works(line) => info!("{line}"),
                }
            }
        });
    }
}

// === impl Watched ===

impl Watched {
    /// A try failed.
    pub(super) fn fails(&self, cause: Cause, reason: &str) {
        let mut inner = self.watches.0.lock();
        if inner.watches[self.at].fails(cause, reason) {
            self.watches.gather(&mut inner);
        }
    }

    /// It has everything there is.
    pub(super) fn works(&self) {
        let mut inner = self.watches.0.lock();
        let state = &mut inner.watches[self.at];
        state.failing = None;
        if state.said.is_some() {
            self.watches.gather(&mut inner);
        }
    }

    /// The objects that are watched.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// Why it does not work at present; `None` if it does.
    pub fn failure(&self) -> Option<String> {
        let inner = self.watches.0.lock();
        inner.watches[self.at].failing.as_ref().map(|failing| failing.reason.clone())
    }
}

// === impl State ===

impl State {
    /// Whether this is to be logged.
    fn fails(&mut self, cause: Cause, reason: &str) -> bool {
        match &mut self.failing {
            Some(failing) if failing.cause == cause => {
                failing.other = None;
                // Until it is logged, what a later try found out is clearer: not that a connection
                // ended, but that there is no other.
                if self.said.is_none() {
                    reason.clone_into(&mut failing.reason);
                }
            }
            // An API server that starts refuses for a moment what it grants later.
            Some(failing) if failing.other != Some(cause) => failing.other = Some(cause),
            _ => self.failing = Some(Failing { cause, reason: reason.to_owned(), other: None }),
        }
        let cause = self.failing.as_ref().map(|failing| failing.cause);
        cause != self.said.as_ref().map(|said| said.cause)
    }
}

// === impl Inner ===

impl Inner {
    /// Whether all that is to be logged is the end of a cause which other watches still have.
    fn more_will_end(&self) -> bool {
        let ended = |cause: Cause| {
            let said = |state: &State| state.said.as_ref().is_some_and(|said| said.cause == cause);
            self.watches.iter().any(|state| state.failing.is_none() && said(state))
        };
        let is_new = |state: &State| state.failing.is_some() && state.still_said().is_none();
        !self.watches.iter().any(is_new)
            && self.watches.iter().filter_map(State::still_said).any(|said| ended(said.cause))
    }

    /// The lines to be logged now.
    fn lines(&mut self) -> Vec<Line> {
        self.gathering = false;
        let known: Vec<Said> = self.watches.iter().filter_map(State::still_said).collect();
        let mut failing: Vec<(Said, Option<&'static str>, Vec<&str>)> = Vec::new();
        let mut works: Vec<&str> = Vec::new();
        for state in &mut self.watches {
            let Some(now) = &state.failing else {
                if state.said.take().is_some() {
                    works.push(&state.what);
                }
                continue;
            };
            if state.said.as_ref().is_some_and(|said| said.cause == now.cause) {
                continue;
            }
            let said = Said { cause: now.cause, reason: now.reason.clone() };
            state.said = Some(said.clone());
            // Another watch was logged for the same reason, and it lasts.
            if known.contains(&said) {
                continue;
            }
            let advice = (state.advice)(now.cause);
            match failing.iter_mut().find(|(other, known, _)| *other == said && *known == advice) {
                Some((.., whats)) => whats.push(&state.what),
                None => failing.push((said, advice, vec![&state.what])),
            }
        }
        let mut lines: Vec<Line> =
            failing.iter().map(|(said, advice, whats)| Line::Fails(fails(said, *advice, whats))).collect();
        if !works.is_empty() {
            let verb = if works.len() == 1 { "the watch works" } else { "the watches work" };
            lines.push(Line::Works(format!("{}: {verb} again", works.join(", "))));
        }
        lines
    }
}

impl State {
    fn still_said(&self) -> Option<Said> {
        let (said, failing) = (self.said.as_ref()?, self.failing.as_ref()?);
        (said.cause == failing.cause).then(|| said.clone())
    }
}

fn fails(said: &Said, advice: Option<&'static str>, whats: &[&str]) -> String {
    let verb = if whats.len() == 1 { "the watch fails" } else { "the watches fail" };
    let mut line = format!(
        "{}: {verb}, tried again; until then the last state counts: {}",
        whats.join(", "),
        said.reason
    );
    if let Some(advice) = advice {
        // Writing to a String cannot fail.
        let _ = write!(line, "; {advice}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const AWAY: &str = "connection refused";

    struct Program {
        watches: Watches,
        watched: Vec<Watched>,
    }

    impl Program {
        /// Watches of pods, nodes and namespaces. Lines are asked for here, no task writes them.
        fn new() -> Self {
            let watches = Watches::default();
            let watched = ["pods", "nodes", "namespaces"].map(|what| watches.add(what)).into();
            watches.0.lock().gathering = true;
            Self { watches, watched }
        }

        fn fails(&self, at: usize, cause: Cause, reason: &str) {
            self.watched[at].fails(cause, reason);
        }

        fn lines(&self) -> Vec<String> {
            let mut inner = self.watches.0.lock();
            let lines = inner.lines();
            inner.gathering = true;
            lines
                .into_iter()
                .map(|line| match line {
                    Line::Fails(text) | Line::Works(text) => text,
                })
                .collect()
        }
    }

    #[test]
    fn one_cause_is_one_line_and_so_is_its_end() {
        let program = Program::new();
        program.fails(0, Cause::NoAnswer, "connection reset");
        program.fails(0, Cause::NoAnswer, AWAY);
        program.fails(1, Cause::NoAnswer, AWAY);
        let line = "pods, nodes: the watches fail, tried again; until then the last state counts: connection refused";
        assert_eq!(program.lines(), [line]);
        assert_eq!(program.watched[0].failure().as_deref(), Some(AWAY));
        // One that notices later has nothing new to say, nor do further tries.
        program.fails(2, Cause::NoAnswer, AWAY);
        program.fails(0, Cause::NoAnswer, "timed out");
        assert_eq!(program.lines(), [""; 0]);
        assert!(!program.watches.0.lock().more_will_end());
        program.watched[0].works();
        assert!(program.watches.0.lock().more_will_end(), "the others try again soon");
        program.fails(1, Cause::Refused(403), "forbidden");
        program.fails(1, Cause::Refused(403), "forbidden");
        assert!(!program.watches.0.lock().more_will_end(), "this does not wait");
        program.fails(1, Cause::NoAnswer, AWAY);
        program.fails(1, Cause::NoAnswer, AWAY);
        program.watched.iter().for_each(Watched::works);
        assert!(!program.watches.0.lock().more_will_end());
        assert_eq!(program.lines(), ["pods, nodes, namespaces: the watches work again"]);
        assert_eq!((program.lines(), program.watched[0].failure()), (vec![], None));
    }

    #[test]
    fn another_cause_is_logged_if_it_lasts() {
        let program = Program::new();
        program.fails(0, Cause::NoAnswer, AWAY);
        assert_eq!(program.lines().len(), 1);
        // An API server that starts.
        program.fails(0, Cause::Refused(403), "forbidden");
        assert_eq!(program.lines(), [""; 0]);
        program.fails(0, Cause::Refused(403), "forbidden");
        let line = "pods: the watch fails, tried again; until then the last state counts: forbidden";
        assert_eq!(program.lines(), [line]);
        // Back for a moment alone.
        program.watched[0].works();
        program.fails(0, Cause::Refused(403), "forbidden");
        assert_eq!(program.lines(), [""; 0]);
    }

    #[test]
    fn different_reasons_and_advice_are_lines_of_their_own() {
        let watches = Watches::default();
        watches.0.lock().gathering = true;
        let advice: Advice = |cause| (cause == Cause::Refused(404)).then_some("upgrade the cluster");
        let (slices, pods) = (watches.add_with_advice("slices", advice), watches.add("pods"));
        slices.fails(Cause::Refused(404), "not found");
        pods.fails(Cause::Refused(404), "not found");
        let lines = watches.0.lock().lines();
        assert_eq!(lines.len(), 2);
        assert!(matches!(&lines[0], Line::Fails(line) if line.ends_with("not found; upgrade the cluster")));
    }
}
