//! The requests for field values: each kind in one driver call, and those alone that a call for many
//! gets wrong.
//!
//! Seen on an H100 and an H200 with driver 580: in one call with fields of NVLinks the pending ECC
//! mode and the ECC total are "not supported"; asked alone, or without links, they have values.

use podgauge_common::measurement::measured_u64;

use super::driver::{Device, Fault, NvmlError};
use super::raw;

/// Major and minor number of a driver.
pub(super) type Driver = (u32, u32);

/// From this driver on the slowdown times have their new ids.
const RENUMBERED: Driver = (580, 82);

/// Which drivers a field id is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    Ever,
    Renumbered,
    BeforeRenumbered,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Request {
    id: u32,
    scope: u32,
    since: Since,
}

/// Requests of a plan, each once.
#[derive(Debug, Default)]
pub(super) struct FieldRequests {
    requests: Vec<Request>,
}

/// How a GPU's driver is to be asked, by request.
#[derive(Debug, Default)]
pub(super) struct FieldMemo {
    ways: Vec<Way>,
    /// `None` until the driver has said it.
    driver: Option<Driver>,
}

/// What the driver says of one field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Unsupported,
    NoValue,
    Value(u64),
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Way {
    #[default]
    Untried,
    /// In one call with its kind.
    Together,
    /// In a call of its own: among others it is refused.
    Alone,
    /// The driver has it not.
    Never,
}

// === impl Since ===

impl Since {
    fn includes(self, driver: Driver) -> bool {
        match self {
            Self::Ever => true,
            Self::Renumbered => driver >= RENUMBERED,
            Self::BeforeRenumbered => driver < RENUMBERED,
        }
    }
}

// === impl Answer ===

impl Answer {
    fn value(self) -> Option<u64> {
        match self {
            Self::Value(value) => Some(value),
            Self::Unsupported | Self::NoValue => None,
        }
    }
}

// === impl FieldRequests ===

impl FieldRequests {
    /// The number of the request for a field, new or known.
    pub(super) fn add(&mut self, id: u32, scope: u32, since: Since) -> usize {
        let request = Request { id, scope, since };
        let known = self.requests.iter().position(|known| *known == request);
        known.unwrap_or_else(|| {
            self.requests.push(request);
            self.requests.len() - 1
        })
    }

    /// Values by request; `None` is no measurement. An error speaks of the whole GPU or library.
    pub(super) fn read(
        &self,
        device: &Device<'_>,
        memo: &mut FieldMemo,
        left_out: &[u32],
    ) -> Result<Vec<Option<u64>>, NvmlError> {
        memo.driver = memo.driver.or_else(|| driver_version(device));
        // A version that is not known counts as a new one.
        let driver = memo.driver.unwrap_or((u32::MAX, 0));
        memo.ways.resize(self.requests.len(), Way::Untried);
        let mut values = vec![None; self.requests.len()];
        let wanted = |request: &Request| request.since.includes(driver) && !left_out.contains(&request.id);
        let wanted: Vec<usize> =
            (0..self.requests.len()).filter(|number| wanted(&self.requests[*number])).collect();
        for &number in &wanted {
            if memo.ways[number] == Way::Untried {
                let is_supported = !self.ask(device, &[number])?.contains(&Answer::Unsupported);
                memo.ways[number] = if is_supported { Way::Together } else { Way::Never };
            }
        }
        let (links, plain): (Vec<usize>, Vec<usize>) = wanted
            .iter()
            .filter(|number| memo.ways[**number] == Way::Together)
            .partition(|number| self.requests[**number].scope != 0);
        for kind in [plain, links] {
            for (number, answer) in kind.iter().zip(self.ask(device, &kind)?) {
                values[*number] = answer.value();
                if answer == Answer::Unsupported {
                    memo.ways[*number] = Way::Alone;
                }
            }
        }
        for &number in wanted.iter().filter(|number| memo.ways[**number] == Way::Alone) {
            values[number] = self.ask(device, &[number])?.pop().and_then(Answer::value);
        }
        Ok(values)
    }

    /// One driver call; by request.
    fn ask(&self, device: &Device<'_>, numbers: &[usize]) -> Result<Vec<Answer>, NvmlError> {
        let requests: Vec<(u32, u32)> =
            numbers.iter().map(|number| (self.requests[*number].id, self.requests[*number].scope)).collect();
        match raw::field_values(device, &requests) {
            Ok(answers) => answers.into_iter().map(answer_of).collect(),
            // What is said of the call is said of each field.
            Err(error) => answer_of(Err(error)).map(|answer| vec![answer; numbers.len()]),
        }
    }
}

fn answer_of(answer: Result<u64, NvmlError>) -> Result<Answer, NvmlError> {
    match answer {
        Ok(value) => Ok(measured_u64(value).map_or(Answer::NoValue, Answer::Value)),
        Err(error) => match Fault::of(&error) {
            Fault::Lost | Fault::Reload => Err(error),
            Fault::Unsupported => Ok(Answer::Unsupported),
            Fault::NoValue => Ok(Answer::NoValue),
        },
    }
}

/// Major and minor of the driver's version.
fn driver_version(device: &Device<'_>) -> Option<Driver> {
    let text = device.driver().driver_version().ok()?;
    let mut numbers = text.split('.').map(|number| number.parse().ok());
    let (major, minor) = (numbers.next().flatten()?, numbers.next().flatten());
    Some((major, minor.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_requested_once_and_ids_are_of_their_drivers() {
        let mut requests = FieldRequests::default();
        assert_eq!(requests.add(1, 0, Since::Ever), 0);
        assert_eq!(requests.add(138, raw::ALL_LINKS, Since::Ever), 1);
        assert_eq!(requests.add(1, 0, Since::Ever), 0);
        assert!(Since::Renumbered.includes((580, 82)) && !Since::BeforeRenumbered.includes((580, 82)));
        assert!(!Since::Renumbered.includes((580, 65)) && Since::BeforeRenumbered.includes((570, 195)));
    }
}
