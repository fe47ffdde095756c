//! Remembers the label texts of a page, and which device and container each means.
//!
//! Most samples of a page have the labels of another one, letter by letter, and families list their
//! devices in one order. Reading the labels once per text and expecting the text that came next the
//! last time makes a page ten times cheaper to read.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// Most bytes of label texts that are remembered of one page. 16 shared GPUs have half of it.
const MAX_BYTES: usize = 128 << 10;

/// What a sample's labels mean.
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
    sets: Vec<LabelSet>,
    by_hash: HashMap<u64, usize>,
    hasher: RandomState,
    bytes: usize,
    /// The text of the sample before.
    last: usize,
}

#[derive(Debug)]
struct LabelSet {
    text: Box<str>,
    meaning: Meaning,
    /// The text that followed it the last time.
    next: usize,
}

impl LabelSets {
    /// What the text means, if it is known.
    pub(super) fn find(&mut self, text: &str) -> Option<Meaning> {
        let expected = self.sets.get(self.last)?.next;
        let at = match self.sets.get(expected) {
            Some(set) if *set.text == *text => expected,
            _ => *self.by_hash.get(&self.hasher.hash_one(text))?,
        };
        let found = self.sets.get(at).filter(|set| *set.text == *text)?.meaning;
        self.sets[self.last].next = at;
        self.last = at;
        Some(found)
    }

    pub(super) fn remember(&mut self, text: &str, meaning: Meaning) {
        if self.bytes + text.len() > MAX_BYTES {
            return;
        }
        self.bytes += text.len();
        let at = self.sets.len();
        self.by_hash.insert(self.hasher.hash_one(text), at);
        self.sets.push(LabelSet { text: text.into(), meaning, next: 0 });
        if let Some(before) = self.sets.get_mut(self.last) {
            before.next = at;
        }
        self.last = at;
    }
}
