//! Expands gzip piece by piece, with buffers that can be used again for the next page.
//!
//! `flate2` expands. Its own gzip readers allocate 75 KiB for each stream, and allocating that
//! thousands of times a second costs more than expanding.

use std::fmt;

use flate2::{Crc, Decompress, FlushDecompress, Status};

/// Most bytes of a stream's head: its name and comment.
const MAX_HEAD: usize = 4 << 10;
/// Bytes that are expanded at once.
const OUT: usize = 32 << 10;

/// Why a stream is no gzip.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GzipError {
    #[error("it does not begin as gzip")]
    NoGzip,
    #[error("its head is longer than {MAX_HEAD} bytes")]
    LongHead,
    #[error("it is damaged")]
    Damaged,
    #[error("its checksum is wrong")]
    Checksum,
    #[error("something follows its end")]
    More,
    #[error("it ends too early")]
    Cut,
}

/// A stream that is being expanded.
pub(super) struct Gunzip {
    inflate: Decompress,
    crc: Crc,
    stage: Stage,
    /// The head or the tail as far as it came.
    frame: Vec<u8>,
    out: Box<[u8]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head,
    Body,
    Tail,
    End,
}

impl Default for Gunzip {
    fn default() -> Self {
        Self {
            inflate: Decompress::new(false),
            crc: Crc::new(),
            stage: Stage::Head,
            frame: Vec::new(),
            out: vec![0; OUT].into(),
        }
    }
}

impl fmt::Debug for Gunzip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gunzip").field("stage", &self.stage).finish_non_exhaustive()
    }
}

impl Gunzip {
    /// Makes it ready for another stream.
    pub(super) fn reset(&mut self) {
        self.inflate.reset(false);
        self.crc.reset();
        self.stage = Stage::Head;
        self.frame.clear();
    }

    /// Expands the next piece, cut wherever it may be, into `text`, which may refuse it.
    pub(super) fn push<E: From<GzipError>>(
        &mut self,
        mut piece: &[u8],
        mut text: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while !piece.is_empty() {
            piece = match self.stage {
                Stage::Head => self.head(piece)?,
                Stage::Body => self.body(piece, &mut text)?,
                Stage::Tail => self.tail(piece)?,
                Stage::End => return Err(GzipError::More.into()),
            };
        }
        Ok(())
    }

    /// Whether all of it came.
    pub(super) fn finish(&self) -> Result<(), GzipError> {
        match self.stage {
            Stage::End => Ok(()),
            _ => Err(GzipError::Cut),
        }
    }

    fn head<'p>(&mut self, piece: &'p [u8]) -> Result<&'p [u8], GzipError> {
        let before = self.frame.len();
        self.frame.extend_from_slice(&piece[..piece.len().min(MAX_HEAD - before)]);
        match head_length(&self.frame)? {
            Some(length) => {
                self.stage = Stage::Body;
                self.frame.clear();
                Ok(&piece[length - before..])
            }
            None if self.frame.len() == MAX_HEAD => Err(GzipError::LongHead),
            None => Ok(&[]),
        }
    }

    fn body<'p, E: From<GzipError>>(
        &mut self,
        piece: &'p [u8],
        text: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<&'p [u8], E> {
        let mut rest = piece;
        loop {
            let (taken, given) = (self.inflate.total_in(), self.inflate.total_out());
            // A stream that ends within the call is not copied to be looked back at.
            let status = self.inflate.decompress(rest, &mut self.out, FlushDecompress::Finish);
            let status = status.map_err(|_| GzipError::Damaged)?;
            rest = &rest[(self.inflate.total_in() - taken) as usize..];
            let out = &self.out[..(self.inflate.total_out() - given) as usize];
            self.crc.update(out);
            text(out)?;
            match status {
                Status::StreamEnd => {
                    self.stage = Stage::Tail;
                    return Ok(rest);
                }
                // More may wait inside as long as the output was filled.
                _ if out.len() < self.out.len() && rest.is_empty() => return Ok(rest),
                Status::BufError if out.is_empty() => return Err(GzipError::Damaged.into()),
                Status::Ok | Status::BufError => {}
            }
        }
    }

    fn tail<'p>(&mut self, piece: &'p [u8]) -> Result<&'p [u8], GzipError> {
        let missing = 8 - self.frame.len();
        let (taken, rest) = piece.split_at(piece.len().min(missing));
        self.frame.extend_from_slice(taken);
        if let [c0, c1, c2, c3, n0, n1, n2, n3] = self.frame[..] {
            let (sum, length) = (u32::from_le_bytes([c0, c1, c2, c3]), u32::from_le_bytes([n0, n1, n2, n3]));
            if sum != self.crc.sum() || length != self.crc.amount() {
                return Err(GzipError::Checksum);
            }
            self.stage = Stage::End;
        }
        Ok(rest)
    }
}

/// How long the head of a gzip stream is (RFC 1952, 2.3); `None` if it goes on.
fn head_length(bytes: &[u8]) -> Result<Option<usize>, GzipError> {
    const MAGIC_AND_DEFLATE: [u8; 3] = [0x1f, 0x8b, 8];
    let known = bytes.len().min(3);
    if bytes[..known] != MAGIC_AND_DEFLATE[..known] {
        return Err(GzipError::NoGzip);
    }
    let Some(flags) = bytes.get(3).copied() else { return Ok(None) };
    let [header_sum, extra, name, comment] = [2, 4, 8, 16].map(|flag| flags & flag != 0);
    let mut at = 10;
    if extra {
        let Some([low, high]) = bytes.get(at..at + 2).and_then(|length| <[u8; 2]>::try_from(length).ok())
        else {
            return Ok(None);
        };
        at += 2 + usize::from(u16::from_le_bytes([low, high]));
    }
    for _ in 0..usize::from(name) + usize::from(comment) {
        let Some(end) = bytes.get(at..).and_then(|text| text.iter().position(|byte| *byte == 0)) else {
            return Ok(None);
        };
        at += end + 1;
    }
    at += if header_sum { 2 } else { 0 };
    Ok((at <= bytes.len()).then_some(at))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};
    use proptest::prelude::*;

    use super::*;

    fn expand(gunzip: &mut Gunzip, gzip: &[u8], piece: usize) -> Result<Vec<u8>, GzipError> {
        let mut text = Vec::new();
        for piece in gzip.chunks(piece) {
            gunzip.push(piece, |out| {
                text.extend_from_slice(out);
                Ok::<(), GzipError>(())
            })?;
        }
        gunzip.finish()?;
        Ok(text)
    }

    fn compressed(text: &[u8], builder: GzBuilder) -> Vec<u8> {
        let mut writer = builder.write(Vec::new(), Compression::fast());
        writer.write_all(text).unwrap();
        writer.finish().unwrap()
    }

    proptest! {
        // A page each.
        #![proptest_config(ProptestConfig::with_cases(30))]

        #[test]
        fn what_was_compressed_comes_back_wherever_it_is_cut(
            words in proptest::collection::vec("[a-c]{0,9}", 0..3000),
            piece in 1usize..300,
            named: bool,
        ) {
            let text = words.concat().into_bytes();
            let builder = match named {
                true => GzBuilder::new().filename("page.txt").comment("a comment").extra(vec![7; 300]),
                false => GzBuilder::new(),
            };
            let gzip = compressed(&text, builder);
            let mut gunzip = Gunzip::default();
            prop_assert_eq!(expand(&mut gunzip, &gzip, piece), Ok(text.clone()));
            // Another page with the same.
            gunzip.reset();
            prop_assert_eq!(expand(&mut gunzip, &gzip, piece), Ok(text));
        }

        #[test]
        fn noise_is_refused_and_ends(mut noise in proptest::collection::vec(any::<u8>(), 0..2000), framed: bool) {
            if framed {
                noise.splice(0..0, [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0]);
            }
            let _ = expand(&mut Gunzip::default(), &noise, 64);
        }
    }

    #[test]
    fn what_is_no_gzip_is_refused() {
        let good = compressed(&b"a 1\n".repeat(10_000), GzBuilder::new());
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = good.clone();
            change(&mut bytes);
            expand(&mut Gunzip::default(), &bytes, 100).unwrap_err()
        };
        assert_eq!(with(&|bytes| bytes[0] = b'a'), GzipError::NoGzip);
        assert_eq!(with(&|bytes| bytes.truncate(12)), GzipError::Cut);
        assert_eq!(with(&|bytes| bytes.truncate(5)), GzipError::Cut);
        assert_eq!(with(&|bytes| bytes.truncate(bytes.len() - 1)), GzipError::Cut);
        assert_eq!(with(&|bytes| bytes.push(0)), GzipError::More);
        assert_eq!(with(&|bytes| *bytes.last_mut().unwrap() ^= 1), GzipError::Checksum);
        let at = good.len() - 8;
        assert_eq!(with(&|bytes| bytes[at] ^= 1), GzipError::Checksum);
        let named = compressed(b"a", GzBuilder::new().filename(vec![b'x'; 5000]));
        assert_eq!(expand(&mut Gunzip::default(), &named, 100), Err(GzipError::LongHead));
        assert_eq!(expand(&mut Gunzip::default(), b"", 1), Err(GzipError::Cut));
    }

    #[test]
    fn a_page_that_is_refused_ends_the_stream() {
        let gzip = compressed(&vec![b'#'; 1 << 20], GzBuilder::new());
        let mut seen = 0;
        let refused = Gunzip::default().push(&gzip, |out| {
            seen += out.len();
            if seen > 100_000 { Err(GzipError::Damaged) } else { Ok(()) }
        });
        assert!(refused.is_err() && seen < 200_000, "{seen}");
    }
}
