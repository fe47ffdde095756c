//! Reads the lines of a page as they come, and its TYPE lines.

use std::collections::HashSet;

use podgauge_common::exposition::parse::{self, ParseError};

use super::kept::Kept;
use super::sample::own;
use super::{MAX_LINE_BYTES, Page, PageError};
use crate::metric::{FamilyId, Metrics};

/// A page that is being read.
#[derive(Debug)]
pub struct PageReader<'m> {
    metrics: &'m Metrics,
    /// Lines read so far.
    lines: usize,
    /// The beginning of the line that the last piece ended in.
    begun: Vec<u8>,
    types: Types,
    kept: Kept,
}

impl<'m> PageReader<'m> {
    pub fn new(metrics: &'m Metrics) -> Self {
        Self { metrics, lines: 0, begun: Vec::new(), types: Types::default(), kept: Kept::default() }
    }

    /// Reads the next piece, cut wherever it may be. After an error the page is lost.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), PageError> {
        let end = piece.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (mut whole, rest) = piece.split_at(end);
        if !whole.is_empty() && !self.begun.is_empty() {
            let first = whole.iter().position(|byte| *byte == b'\n').map_or(end, |at| at + 1);
            self.begin(&whole[..first])?;
            let mut line = std::mem::take(&mut self.begun);
            self.read(&line)?;
            line.clear();
            self.begun = line;
            whole = &whole[first..];
        }
        self.read(whole)?;
        self.begin(rest)
    }

    /// What was kept of the page, now that all of it is known.
    pub fn finish(self) -> Result<Page, PageError> {
        match self.begun.is_empty() {
            true => Ok(self.kept.finish(&self.types)),
            false => Err(PageError::Cut { line: self.lines + 1 }),
        }
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<(), PageError> {
        if self.begun.len() + bytes.len() > MAX_LINE_BYTES {
            return Err(PageError::LongLine { line: self.lines + 1 });
        }
        self.begun.extend_from_slice(bytes);
        Ok(())
    }

    /// Reads whole lines.
    fn read(&mut self, lines: &[u8]) -> Result<(), PageError> {
        let text = std::str::from_utf8(lines).map_err(|_| PageError::NotText { line: self.lines + 1 })?;
        for (at, line) in text.split_terminator('\n').enumerate() {
            if let Some(comment) = line.strip_prefix('#') {
                self.types.read(comment, self.metrics);
                continue;
            }
            if let Some(name) = plain_name(line) {
                self.types.native |= is_native(name);
                if own(name).is_none() && self.metrics.family(name).is_none() {
                    continue;
                }
            }
            for sample in parse::samples(line) {
                let sample = sample.map_err(|error| ParseError { line: self.lines + at + 1, ..error })?;
                self.kept.sample(&sample, self.metrics);
            }
        }
        self.lines += lines.iter().filter(|byte| **byte == b'\n').count();
        Ok(())
    }
}

/// The name of what looks like a sample; most are of no use, and not read any further. `None` where
/// only reading it can tell.
fn plain_name(line: &str) -> Option<&str> {
    let end =
        line.bytes().position(|byte| !(byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'))?;
    let (name, rest) = line.split_at(end);
    let value = rest.bytes().rposition(|byte| byte == b' ').and_then(|at| rest.as_bytes().get(at + 1))?;
    let number = value.is_ascii_digit() || b"+-.NI".contains(value);
    (number && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
}

/// Whether only podgauge's exporter has such a family. Its metrics about itself tell nothing: they
/// stand on an empty page, too, but any exporter behind a proxy of ours could have them.
fn is_native(name: &str) -> bool {
    name.starts_with("podgauge_gpu_") || name == "podgauge_attribution_unavailable"
}

/// What the page's TYPE lines tell.
#[derive(Debug, Default)]
pub(super) struct Types {
    /// The kept families that are counters.
    pub(super) counters: HashSet<FamilyId>,
    pub(super) native: bool,
}

impl Types {
    /// Reads what follows the `#` of a comment.
    fn read(&mut self, comment: &str, metrics: &Metrics) {
        let Some((name, kind)) = comment.strip_prefix(" TYPE ").and_then(|of| of.split_once(' ')) else {
            return;
        };
        self.native |= is_native(name);
        if kind.trim() == "counter" {
            self.counters.extend(metrics.family(name));
        }
    }
}
