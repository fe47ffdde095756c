//! Reads the records of the trace, and believes nothing of them that it has not checked. Pure.

/// Bytes of a record in the ring.
pub(super) const RECORD_BYTES: usize = 32;

/// The type of a context switch's record, in its first two bytes.
const CONTEXT_SWITCH: u16 = 2;
/// A context has been restored, and runs.
const SIMPLE_START: u8 = 6;
/// A context has been saved.
const SIMPLE_END: u8 = 7;
/// The engine was reset: the context that was on it is gone.
const ENGINE_RESET: u8 = 0xfe;
/// The pid of a process of another user, for a reader that may not see it.
const HIDDEN: u32 = 0;
/// The pid of the kernel's own work, and of a context whose process is not known. Its time is made up.
const NOBODY: u32 = u32::MAX;
/// How far a record's time may be from the one before, seen from this machine's clock, ns.
const FAR: u64 = 60_000_000_000;
/// … and the first one's from this machine's clock. The driver's is set when it is loaded, and runs freely.
const FIRST_FAR: u64 = 86_400_000_000_000;

/// A context that came or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    /// In the driver's clock, ns since 1970.
    pub(super) at_ns: u64,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The context is on the engine from now on.
    Start { pid: u32 },
    /// It has left it.
    End { pid: u32 },
    /// Nothing is known of who is on it.
    Reset,
    /// Records are missing before this one.
    Lost { records: u32 },
}

/// Why a trace cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum RecordError {
    #[error("the trace has records of type {0}, which this version does not know")]
    Type(u16),
    #[error("the trace has events of kind {0}, which this version does not know")]
    Tag(u8),
    #[error("the trace hides the processes of other users: the exporter lacks CAP_SYS_ADMIN")]
    Hidden,
    #[error("the trace's clock is {seconds} s off what it was, or off this machine's")]
    Clock { seconds: u64 },
}

/// The sequence of the records.
#[derive(Debug, Default)]
pub(super) struct Sequence {
    next: Option<u16>,
    /// The last record's time, and this machine's clock when it was read, ns.
    last: Option<(u64, u64)>,
}

impl Sequence {
    /// Reads the next record, four words in the machine's order. `now_ns`: this machine's clock. Adds it
    /// to `records`, and before it how many are missing.
    ///
    /// # Errors
    /// The record cannot be believed, nor those after it.
    pub(super) fn read(
        &mut self,
        words: [u64; RECORD_BYTES / 8],
        now_ns: u64,
        records: &mut Vec<Record>,
    ) -> Result<(), RecordError> {
        // A header of 8 bytes; tag, address space, number and context; pid and instance; time.
        let [header, first, second, at_ns] = words;
        let record_type = (header & 0xffff) as u16;
        if record_type != CONTEXT_SWITCH {
            return Err(RecordError::Type(record_type));
        }
        let (tag, number, pid) = (first as u8, (first >> 16) as u16, second as u32);
        // Its time is noise as well.
        if matches!(tag, SIMPLE_START | SIMPLE_END) && pid == HIDDEN {
            return Err(RecordError::Hidden);
        }
        let missing = self.next.map_or(0, |next| number.wrapping_sub(next));
        self.next = Some(number.wrapping_add(1));
        let known_ns = self.last.map_or(at_ns, |(last_ns, _)| last_ns);
        if missing != 0 {
            records.push(Record { at_ns: known_ns, kind: Kind::Lost { records: missing.into() } });
        }
        if pid == NOBODY || at_ns == 0 {
            records.push(Record { at_ns: known_ns, kind: Kind::Reset });
            return Ok(());
        }
        let (distance, far) = match self.last {
            Some((last_ns, read_ns)) => {
                let passed = now_ns.saturating_sub(read_ns);
                (at_ns.abs_diff(last_ns).saturating_sub(passed), FAR)
            }
            None => (at_ns.abs_diff(now_ns), FIRST_FAR),
        };
        if distance > far {
            return Err(RecordError::Clock { seconds: distance / 1_000_000_000 });
        }
        self.last = Some((at_ns, now_ns));
        let kind = match tag {
            SIMPLE_START => Kind::Start { pid },
            SIMPLE_END => Kind::End { pid },
            ENGINE_RESET => Kind::Reset,
            tag => return Err(RecordError::Tag(tag)),
        };
        records.push(Record { at_ns, kind });
        Ok(())
    }
}

#[cfg(test)]
pub(super) fn words(tag: u8, number: u16, pid: u32, at_ns: u64) -> [u64; 4] {
    [u64::from(CONTEXT_SWITCH), u64::from(tag) | u64::from(number) << 16, u64::from(pid), at_ns]
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000_000_000;

    fn read(all: &[[u64; 4]]) -> Result<Vec<Kind>, RecordError> {
        let (mut sequence, mut records) = (Sequence::default(), Vec::new());
        for words in all {
            sequence.read(*words, NOW, &mut records)?;
        }
        Ok(records.into_iter().map(|record| record.kind).collect())
    }

    #[test]
    fn starts_and_ends_are_read_and_missing_ones_are_counted() {
        let all =
            [words(6, 65_534, 7, NOW), words(7, 65_535, 7, NOW), words(6, 0, 8, NOW), words(7, 3, 8, NOW)];
        let expected = [
            Kind::Start { pid: 7 },
            Kind::End { pid: 7 },
            Kind::Start { pid: 8 },
            Kind::Lost { records: 2 },
            Kind::End { pid: 8 },
        ];
        assert_eq!(read(&all), Ok(expected.to_vec()));
        assert_eq!(read(&[words(0xfe, 1, 0, NOW)]), Ok(vec![Kind::Reset]));
    }

    #[test]
    fn what_cannot_be_believed_is_refused() {
        assert_eq!(read(&[[134, 6, 7, NOW]]), Err(RecordError::Type(134)));
        assert_eq!(read(&[words(1, 0, 7, NOW)]), Err(RecordError::Tag(1)));
        assert_eq!(read(&[words(6, 0, 0, NOW)]), Err(RecordError::Hidden));
        // Hidden ones have a time that is made up.
        assert_eq!(read(&[words(6, 0, 0, 0)]), Err(RecordError::Hidden));
        let day = 86_400_000_000_000;
        let late = |by| words(6, 0, 7, NOW - by);
        assert_eq!(read(&[late(day)]), Ok(vec![Kind::Start { pid: 7 }]), "its clock runs freely");
        assert_eq!(read(&[late(day + 1_000_000_000)]), Err(RecordError::Clock { seconds: 86_401 }));
        let far = read(&[words(6, 0, 7, NOW), words(7, 1, 7, NOW + 61_000_000_000)]);
        assert_eq!(far, Err(RecordError::Clock { seconds: 61 }));
        // The kernel's own, and those of nobody, are gaps.
        let all = [words(6, 0, 7, NOW), words(7, 1, u32::MAX, 5), words(6, 2, 7, 0)];
        assert_eq!(read(&all), Ok(vec![Kind::Start { pid: 7 }, Kind::Reset, Kind::Reset]));
    }

    proptest::proptest! {
        #[test]
        fn noise_is_read_or_refused(noise in proptest::collection::vec(proptest::prelude::any::<[u64; 4]>(), 0..50)) {
            let _ = read(&noise);
        }
    }
}
