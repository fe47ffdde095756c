//! Owns copies of the shared library that lack some calls, as an older driver's would.
//!
//! A call is taken away by spoiling its name in the table of exported symbols: the loader then
//! looks for it in vain, and nothing else changes place.

use std::path::{Path, PathBuf};

/// Section type of the exported symbols.
const DYNAMIC_SYMBOLS: u32 = 11;
/// What replaces the first letter of a name.
const SPOILER: u8 = b'-';

/// Why a library could not be written.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    #[error("cannot read library {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("cannot write library {path}: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a 64-bit little-endian ELF library with symbols")]
    NotALibrary { path: PathBuf },
    #[error("{path} exports no {symbol}")]
    NoSuchSymbol { path: PathBuf, symbol: String },
}

/// Copies the library at `source` to `target` without the named calls: whoever loads the copy
/// does not find them.
pub fn write_library_without(source: &Path, target: &Path, symbols: &[String]) -> Result<(), LibraryError> {
    let mut library = std::fs::read(source)
        .map_err(|error| LibraryError::Read { path: source.to_owned(), source: error })?;
    for symbol in symbols {
        let names =
            exported(&library).ok_or_else(|| LibraryError::NotALibrary { path: source.to_owned() })?;
        let at = names
            .into_iter()
            .find(|at| is_at(&library, *at, symbol))
            .ok_or_else(|| LibraryError::NoSuchSymbol { path: source.to_owned(), symbol: symbol.clone() })?;
        library[at] = SPOILER;
    }
    std::fs::write(target, library)
        .map_err(|error| LibraryError::Write { path: target.to_owned(), source: error })
}

/// Is a name, and its end, at a place in the file?
fn is_at(library: &[u8], at: usize, name: &str) -> bool {
    library
        .get(at..)
        .is_some_and(|rest| rest.strip_prefix(name.as_bytes()).is_some_and(|after| after.first() == Some(&0)))
}

/// Where in the file the names of the exported symbols begin. `None` if it is not such a file.
fn exported(library: &[u8]) -> Option<Vec<usize>> {
    // 64 bits, little-endian.
    if library.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let sections = word(library, 0x28)?;
    let (size, count) = (half(library, 0x3a)?, half(library, 0x3c)?);
    let section = |index: usize| sections.checked_add(index.checked_mul(size)?);
    let symbols = (0..count).filter_map(section).find(|at| int(library, at + 4) == Some(DYNAMIC_SYMBOLS))?;
    let strings = section(int(library, symbols + 0x28)? as usize)?;
    let names = word(library, strings + 0x18)?;
    let (start, length) = (word(library, symbols + 0x18)?, word(library, symbols + 0x20)?);
    let entry = word(library, symbols + 0x38)?.max(1);
    let name_of = |symbol: usize| names.checked_add(int(library, start + symbol * entry)? as usize);
    (0..length / entry).map(name_of).collect()
}

fn word(library: &[u8], at: usize) -> Option<usize> {
    let bytes = library.get(at..at.checked_add(8)?)?;
    usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
}

fn int(library: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(library.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn half(library: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(library.get(at..at.checked_add(2)?)?.try_into().ok()?).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_library_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (source, target) = (folder.path().join("a"), folder.path().join("b"));
        for content in [
            &b""[..],
            b"\x7fELF\x02\x01",
            b"\x7fELF\x02\x01................................................................",
        ] {
            std::fs::write(&source, content).unwrap();
            let error = write_library_without(&source, &target, &["nvmlInit_v2".into()]).unwrap_err();
            assert!(matches!(error, LibraryError::NotALibrary { .. }), "{error}");
        }
    }
}
