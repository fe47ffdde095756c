//! Reads the body of an answer into a page, compressed or not, within limits for both.

use std::io::{self, Write as _};

use flate2::write::GzDecoder;
use http::HeaderValue;

use super::page::{Page, PageError, PageReader};

/// Largest page that is read, bytes of text. 8 GPUs with 7 instances and every family are below
/// 2 MB.
pub(super) const MAX_PAGE_BYTES: usize = 16 << 20;
/// What is expanded at once, bytes. It becomes a thousand times as many at most.
const COMPRESSED_PIECE: usize = 1 << 10;

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    Plain,
    Gzip,
}

/// Why a body is no page.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the page is larger than {MAX_PAGE_BYTES} bytes")]
    TooLarge,
    #[error("the compressed page expands to more than {MAX_PAGE_BYTES} bytes")]
    Bomb,
    #[error("the compressed page cannot be read: {0}")]
    Gzip(String),
    #[error(transparent)]
    Page(#[from] PageError),
}

/// A body that is being read.
#[derive(Debug)]
pub(super) struct BodyReader<'m> {
    stage: Stage<'m>,
    /// Bytes as they came.
    received: usize,
}

#[derive(Debug)]
enum Stage<'m> {
    Plain(Text<'m>),
    Gzip(GzDecoder<Text<'m>>),
}

/// The text of a page as it is expanded.
#[derive(Debug)]
struct Text<'m> {
    page: PageReader<'m>,
    bytes: usize,
    failure: Option<BodyError>,
}

impl Coding {
    /// `None` for one that is not supported.
    pub(super) fn of(value: &HeaderValue) -> Option<Self> {
        let name = value.to_str().ok()?.trim().to_ascii_lowercase();
        match name.as_str() {
            "" | "identity" => Some(Self::Plain),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            _ => None,
        }
    }
}

impl<'m> BodyReader<'m> {
    pub(super) fn new(page: PageReader<'m>, coding: Coding) -> Self {
        let text = Text { page, bytes: 0, failure: None };
        let stage = match coding {
            Coding::Plain => Stage::Plain(text),
            Coding::Gzip => Stage::Gzip(GzDecoder::new(text)),
        };
        Self { stage, received: 0 }
    }

    /// What was received, cut so that each piece takes a short time.
    pub(super) fn pieces<'d>(&self, data: &'d [u8]) -> std::slice::Chunks<'d, u8> {
        data.chunks(match self.stage {
            Stage::Plain(_) => data.len().max(1),
            Stage::Gzip(_) => COMPRESSED_PIECE,
        })
    }

    /// Reads the next piece. After an error the page is lost.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        self.received += piece.len();
        if self.received > MAX_PAGE_BYTES {
            return Err(BodyError::TooLarge);
        }
        let written = match &mut self.stage {
            Stage::Plain(text) => text.write_all(piece),
            Stage::Gzip(decoder) => decoder.write_all(piece),
        };
        written.map_err(|error| self.failure(error))
    }

    pub(super) fn page(&mut self) -> &mut PageReader<'m> {
        &mut self.text().page
    }

    pub(super) fn received(&self) -> usize {
        self.received
    }

    pub(super) fn finish(mut self) -> Result<Page, BodyError> {
        if let Stage::Gzip(decoder) = &mut self.stage {
            decoder.try_finish().map_err(|error| self.failure(error))?;
        }
        let text = match self.stage {
            Stage::Plain(text) => text,
            Stage::Gzip(decoder) => decoder.finish().map_err(|error| BodyError::Gzip(error.to_string()))?,
        };
        Ok(text.page.finish()?)
    }

    fn text(&mut self) -> &mut Text<'m> {
        match &mut self.stage {
            Stage::Plain(text) => text,
            Stage::Gzip(decoder) => decoder.get_mut(),
        }
    }

    /// The page's own failure, or else the decoder's.
    fn failure(&mut self, error: io::Error) -> BodyError {
        let decoder = matches!(self.stage, Stage::Gzip(_));
        match self.text().failure.take() {
            Some(BodyError::TooLarge) if decoder => BodyError::Bomb,
            Some(failure) => failure,
            None if error.kind() == io::ErrorKind::WriteZero => {
                BodyError::Gzip("something follows its end".to_owned())
            }
            None => BodyError::Gzip(error.to_string()),
        }
    }
}

impl io::Write for Text<'_> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.bytes += text.len();
        let read = match self.bytes > MAX_PAGE_BYTES {
            true => Err(BodyError::TooLarge),
            false => self.page.push(text).map_err(BodyError::Page),
        };
        read.map(|()| text.len()).map_err(|failure| {
            self.failure = Some(failure);
            io::ErrorKind::InvalidData.into()
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
