//! Remembers the label texts of a page, and which device and container each means.
//!
//! Most samples of a page have the labels of another one, letter by letter, and families list their
//! devices in one order. Reading the labels once per text and expecting the text that came next the
//! last time makes a page ten times cheaper to read.

use std::hash::BuildHasher as _;
use std::ops::Range;
use std::time::Duration;

use foldhash::fast::RandomState;

use crate::map::Map;

/// Bytes at each end of a text that it is found by.
const HASHED: usize = 64;
/// Most bytes of label texts that are remembered of one page. 16 shared GPUs have half of it.
const MAX_BYTES: usize = 128 << 10;

/// The meaning of a sample's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) place: Place,
    /// The sample may be one of several copies.
    pub(super) copy: bool,
    pub(super) vgpu: bool,
    /// The time that it sums up.
    pub(super) window: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// No device: such samples are of no use, and no loss.
    Nowhere,
    /// The labels are too long, or a limit keeps them out.
    Dropped,
    /// The device, and the container on it.
    Of(usize, Option<usize>),
}

/// The texts so far.
#[derive(Debug, Default)]
pub(super) struct LabelSets {
    /// One after the other.
    texts: String,
    sets: Vec<LabelSet>,
    by_hash: Map<u64, usize>,
    hasher: RandomState,
    /// The set of the sample before.
    last: usize,
}

#[derive(Debug)]
struct LabelSet {
    text: Range<usize>,
    meaning: Meaning,
    /// The set that followed it the last time.
    next: usize,
}

impl LabelSets {
    /// Forgets all of them.
    pub(super) fn clear(&mut self) {
        self.texts.clear();
        self.sets.clear();
        self.by_hash.clear();
        self.last = 0;
    }

    /// The meaning of the text, if it is known.
    pub(super) fn find(&mut self, text: &str) -> Option<Meaning> {
        let is = |at: usize| self.sets.get(at).is_some_and(|set| self.texts[set.text.clone()] == *text);
        let expected = self.sets.get(self.last).map(|last| last.next).filter(|next| is(*next));
        let at = match expected {
            Some(at) => at,
            None => self.by_hash.get(&self.hash(text)).copied().filter(|at| is(*at))?,
        };
        self.follow(at);
        Some(self.sets[at].meaning)
    }

    /// Remembers a text that was not found.
    pub(super) fn remember(&mut self, text: &str, meaning: Meaning) {
        let begin = self.texts.len();
        if begin + text.len() > MAX_BYTES {
            return;
        }
        self.texts.push_str(text);
        let at = self.sets.len();
        self.by_hash.insert(self.hash(text), at);
        self.sets.push(LabelSet { text: begin..self.texts.len(), meaning, next: 0 });
        self.follow(at);
    }

    fn follow(&mut self, at: usize) {
        if let Some(last) = self.sets.get_mut(self.last) {
            last.next = at;
        }
        self.last = at;
    }

    /// Of both ends of the text: the device is at one, the pod at the other. Texts with one hash
    /// are told apart, but only one of them is found.
    fn hash(&self, text: &str) -> u64 {
        let bytes = text.as_bytes();
        let end = bytes.len().saturating_sub(HASHED);
        self.hasher.hash_one((bytes.len(), &bytes[..HASHED.min(bytes.len())], &bytes[end..]))
    }
}
