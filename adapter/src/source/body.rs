//! Reads the body of an answer into a page, compressed or not, within limits for both.

use http::HeaderValue;

use super::gunzip::{Gunzip, Gunzips, GzipError};
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
    Gzip(#[from] GzipError),
    #[error(transparent)]
    Page(#[from] PageError),
}

/// A body that is being read.
#[derive(Debug)]
pub(super) struct BodyReader<'m> {
    page: PageReader<'m>,
    /// `None`: it is not compressed.
    gunzip: Option<Expander<'m>>,
    /// Bytes as they came.
    received: usize,
    /// Bytes of text.
    expanded: usize,
}

/// An expander that is given back.
#[derive(Debug)]
struct Expander<'m> {
    /// Always there until it is dropped.
    gunzip: Option<Box<Gunzip>>,
    all: &'m Gunzips,
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
    pub(super) fn new(page: PageReader<'m>, coding: Coding, all: &'m Gunzips) -> Self {
        let gunzip = match coding {
            Coding::Plain => None,
            Coding::Gzip => Some(Expander { gunzip: Some(all.take()), all }),
        };
        Self { page, gunzip, received: 0, expanded: 0 }
    }

    /// What was received, cut so that each piece takes a short time.
    pub(super) fn pieces<'d>(&self, data: &'d [u8]) -> std::slice::Chunks<'d, u8> {
        data.chunks(if self.gunzip.is_some() { COMPRESSED_PIECE } else { data.len().max(1) })
    }

    /// Reads the next piece. After an error the page is lost.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), BodyError> {
        self.received += piece.len();
        if self.received > MAX_PAGE_BYTES {
            return Err(BodyError::TooLarge);
        }
        let Some(gunzip) = self.gunzip.as_mut().and_then(|expander| expander.gunzip.as_mut()) else {
            return Ok(self.page.push(piece)?);
        };
        let (page, expanded) = (&mut self.page, &mut self.expanded);
        gunzip.push(piece, |text| {
            *expanded += text.len();
            if *expanded > MAX_PAGE_BYTES {
                return Err(BodyError::Bomb);
            }
            Ok(page.push(text)?)
        })
    }

    pub(super) fn page(&mut self) -> &mut PageReader<'m> {
        &mut self.page
    }

    pub(super) fn received(&self) -> usize {
        self.received
    }

    pub(super) fn finish(self) -> Result<Page, BodyError> {
        if let Some(gunzip) = self.gunzip.as_ref().and_then(|expander| expander.gunzip.as_ref()) {
            gunzip.finish()?;
        }
        Ok(self.page.finish()?)
    }
}

impl Drop for Expander<'_> {
    fn drop(&mut self) {
        if let Some(gunzip) = self.gunzip.take() {
            self.all.give_back(gunzip);
        }
    }
}
