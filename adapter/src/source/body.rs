//! Reads the body of an answer into a page, compressed or not, within limits for both.

use http::HeaderValue;
use parking_lot::Mutex;

use super::gunzip::{Gunzip, GzipError};
use super::page::{Page, PageError, PageReader, Room, Scratch};
use crate::metric::Metrics;

/// Largest page that is read, bytes of text. 8 GPUs with 7 instances and every family are below
/// 2 MB.
pub(super) const MAX_PAGE_BYTES: usize = 16 << 20;
/// Bytes that are expanded at once. They become a thousand times as many at most.
const COMPRESSED_PIECE: usize = 1 << 10;

/// Buffers that wait for the next page. More pages are read at once now and then.
const KEPT: usize = 4;

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
    Gzip(#[from] GzipError),
    #[error(transparent)]
    Page(#[from] PageError),
}

/// A body that is being read.
#[derive(Debug)]
pub(super) struct BodyReader<'m> {
    page: PageReader<'m>,
    coding: Coding,
    gunzip: Box<Gunzip>,
    /// Bytes as they came.
    received: usize,
    /// Bytes of text.
    expanded: usize,
}

/// Memory that reading a page takes beside the part that is kept. Allocating that for each page would
/// cost more than reading does.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    gunzip: Box<Gunzip>,
    scratch: Box<Scratch>,
}

/// Buffers that are used again.
#[derive(Debug, Default)]
pub(super) struct Pool {
    free: Mutex<Vec<Buffers>>,
}

impl Pool {
    pub(super) fn take(&self) -> Buffers {
        self.free.lock().pop().unwrap_or_default()
    }

    /// Takes the memory of a page that is done with.
    pub(super) fn recycle(&self, page: Page) {
        if let Some(buffers) = self.free.lock().last_mut() {
            buffers.scratch.recycle(page);
        }
    }

    fn give_back(&self, mut used: Buffers) {
        used.gunzip.reset();
        let mut free = self.free.lock();
        if free.len() < KEPT {
            free.push(used);
        }
    }
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
    pub(super) fn new(metrics: &'m Metrics, room: Room, coding: Coding, buffers: Buffers) -> Self {
        let Buffers { gunzip, scratch } = buffers;
        let page = PageReader::new(metrics, room, scratch);
        Self { page, coding, gunzip, received: 0, expanded: 0 }
    }

    /// The bytes received, cut so that each piece takes a short time.
    pub(super) fn pieces<'d>(&self, data: &'d [u8]) -> std::slice::Chunks<'d, u8> {
        data.chunks(match self.coding {
            Coding::Plain => data.len().max(1),
            Coding::Gzip => COMPRESSED_PIECE,
        })
    }

    /// Reads the next piece. After an error the page is lost.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        self.received += piece.len();
        if self.received > MAX_PAGE_BYTES {
            return Err(BodyError::TooLarge);
        }
        let (page, expanded) = (&mut self.page, &mut self.expanded);
        match self.coding {
            Coding::Plain => Ok(page.push(piece)?),
            Coding::Gzip => self.gunzip.push(piece, |text| {
                *expanded += text.len();
                if *expanded > MAX_PAGE_BYTES {
                    return Err(BodyError::Bomb);
                }
                Ok(page.push(text)?)
            }),
        }
    }

    pub(super) fn page(&mut self) -> &mut PageReader<'m> {
        &mut self.page
    }

    pub(super) fn received(&self) -> usize {
        self.received
    }

    /// The page. The buffers go back to where they are from.
    pub(super) fn finish(self, pool: &Pool) -> Result<Page, BodyError> {
        let Self { page, coding, gunzip, .. } = self;
        if coding == Coding::Gzip {
            gunzip.finish()?;
        }
        let (page, scratch) = page.finish();
        pool.give_back(Buffers { gunzip, scratch });
        Ok(page?)
    }
}
