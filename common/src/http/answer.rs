//! The body of an answer: complete bytes that keep their request's place until they are written.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use hyper::body::{Body, Frame, SizeHint};

use super::idle::InFlight;
use super::places::Underway;
use super::streams::Progress;

/// Bytes that a stream is given at once. Between two pieces it shows whether the client reads.
const PIECE: usize = 16 * 1024;

/// The places of a request, in its connection and among all of them; free again once its answer is written.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) underway: Option<Underway>,
    pub(super) _in_flight: InFlight,
}

/// A body that is sent in pieces over HTTP/2, and whole over HTTP/1.
#[derive(Debug)]
pub(super) struct Answer {
    rest: Bytes,
    progress: Option<Progress>,
}

/// The bytes, and what is held until the last piece of them is dropped, however far they got.
struct Owned {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Answer {
    pub(super) fn new(bytes: Bytes, version: Version, held: Held) -> Self {
        let progress = (version == Version::HTTP_2).then(Progress::of_stream).flatten();
        if bytes.is_empty() {
            return Self { rest: bytes, progress };
        }
        Self { rest: Bytes::from_owner(Owned { bytes, _held: held }), progress }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = self.rest.len();
        if left == 0 {
            return Poll::Ready(None);
        }
        let piece = match &self.progress {
            None => left,
            Some(progress) => {
                progress.moved();
                // The last byte goes alone: until there is room for it in the client's window the
                // stream is in our hands, and can be reset.
                (left - 1).clamp(1, PIECE)
            }
        };
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
