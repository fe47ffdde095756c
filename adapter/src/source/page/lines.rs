//! Reads the lines of a page as they come.

use podgauge_common::exposition::parse::{self, ParseError};

use super::kept::{Kept, Scratch};
use super::said::Said;
use super::types::Types;
use super::{MAX_LINE_BYTES, Page, PageError, Room};
use crate::metric::{Family, Metrics};

/// A page that is being read.
#[derive(Debug)]
pub struct PageReader<'m> {
    metrics: &'m Metrics,
    /// Lines read so far.
    lines: usize,
    /// The meaning of samples of the name in the line before: mostly this line's as well.
    family: Option<Family>,
    types: Types,
    kept: Kept,
}

impl<'m> PageReader<'m> {
    /// Keeps `room` of the page. `scratch` may be of another page.
    pub fn new(metrics: &'m Metrics, room: Room, scratch: Box<Scratch>) -> Self {
        Self { metrics, lines: 0, family: None, types: Types::default(), kept: Kept::new(room, scratch) }
    }

    /// How much is kept so far.
    pub fn used(&self) -> Room {
        self.kept.used()
    }

    /// Changes how much may be kept of the rest.
    pub fn limit(&mut self, room: Room) {
        self.kept.limit(room);
    }

    /// Reads the next piece, cut wherever it may be. After an error the page is lost.
    pub fn push(&mut self, piece: &[u8]) -> Result<(), PageError> {
        let end = piece.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let (mut whole, rest) = piece.split_at(end);
        if !whole.is_empty() && !self.begun().is_empty() {
            let first = whole.iter().position(|byte| *byte == b'\n').map_or(end, |at| at + 1);
            self.begin(&whole[..first])?;
            let mut line = std::mem::take(self.begun());
            self.read(&line)?;
            line.clear();
            *self.begun() = line;
            whole = &whole[first..];
        }
        self.read(whole)?;
        self.begin(rest)
    }

    /// The part of the page that was kept, now that all of it is known; and the scratch for the next one.
    pub fn finish(mut self) -> (Result<Page, PageError>, Box<Scratch>) {
        let cut = (!self.begun().is_empty()).then_some(PageError::Cut { line: self.lines + 1 });
        let (page, scratch) = self.kept.finish(&self.types);
        (cut.map_or(Ok(page), Err), scratch)
    }

    /// The beginning of the line that the last piece ended in.
    fn begun(&mut self) -> &mut Vec<u8> {
        &mut self.kept.scratch.begun
    }

    fn begin(&mut self, bytes: &[u8]) -> Result<(), PageError> {
        if self.begun().len() + bytes.len() > MAX_LINE_BYTES {
            return Err(PageError::LongLine { line: self.lines + 1 });
        }
        self.begun().extend_from_slice(bytes);
        Ok(())
    }

    /// Reads whole lines.
    fn read(&mut self, lines: &[u8]) -> Result<(), PageError> {
        let text = std::str::from_utf8(lines).map_err(|_| PageError::NotText { line: self.lines + 1 })?;
        for line in lines_of(text) {
            self.line(line).map_err(|error| ParseError { line: self.lines + 1, ..error })?;
            self.lines += 1;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), ParseError> {
        if let Some(comment) = line.strip_prefix('#') {
            self.types.comment(comment, self.metrics);
            return Ok(());
        }
        let name = &self.kept.scratch.name;
        let again = line.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('{'));
        if (!again || name.is_empty()) && !self.begins(line) {
            return self.sample(line);
        }
        let Some(family) = self.family.filter(|_| looks_like_a_sample(line)) else {
            // Most lines are of no use, and not read any further.
            return if looks_like_a_sample(line) { Ok(()) } else { self.sample(line) };
        };
        let Some((labels, value)) = labels_and_value(&line[self.kept.scratch.name.len()..]) else {
            return self.sample(line);
        };
        let Some(value) = parse::value(value) else { return self.sample(line) };
        if !self.kept.again(labels, &family, value) {
            // Text that is no list of labels is an error of the whole line.
            let Some(said) = Said::read(labels) else { return self.sample(line) };
            let meaning = self.kept.sample(&said, &family, value);
            self.kept.remember(labels, meaning);
        }
        Ok(())
    }

    /// Looks up the name that the line begins with; false where only reading all of it can tell.
    fn begins(&mut self, line: &str) -> bool {
        self.kept.scratch.name.clear();
        let end =
            line.bytes().position(|byte| !(byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':'));
        let Some(name) = end.map(|end| &line[..end]) else { return false };
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return false;
        }
        self.types.name(name);
        self.family = self.metrics.family(name).copied();
        self.kept.scratch.name.push_str(name);
        true
    }

    /// Reads all of the line, whatever its form.
    fn sample(&mut self, line: &str) -> Result<(), ParseError> {
        for sample in parse::samples(line) {
            let sample = sample?;
            if let Some(family) = self.metrics.family(sample.name) {
                self.kept.sample(&Said::of(&sample), family, sample.value);
            }
        }
        Ok(())
    }
}

/// Whole lines, without their ends.
fn lines_of(text: &str) -> impl Iterator<Item = &str> {
    let mut begin = 0;
    memchr::memchr_iter(b'\n', text.as_bytes())
        .map(move |end| &text[std::mem::replace(&mut begin, end + 1)..end])
}

/// Whether the last word can be a number.
fn looks_like_a_sample(line: &str) -> bool {
    let value = line.bytes().rposition(|byte| byte == b' ').and_then(|at| line.as_bytes().get(at + 1));
    value.is_some_and(|first| first.is_ascii_digit() || b"+-.NI".contains(first))
}

/// The text between the braces, and the only word after them. No value holds a brace, so the last
/// one ends the labels.
fn labels_and_value(rest: &str) -> Option<(&str, &str)> {
    let (labels, value) = rest.strip_prefix('{')?.rsplit_once('}')?;
    let value = value.trim_matches([' ', '\t', '\r']);
    (!value.is_empty() && !value.contains([' ', '\t'])).then_some((labels, value))
}
