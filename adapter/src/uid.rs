//! The UID of an object: there are as many as pods, so that those of the common form are kept in their bytes.

use std::fmt;

/// A UID, as the API server and exporters give it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Uid {
    /// Of the form `c0ffee00-0000-4000-8000-000000000001`, in lower case.
    Uuid([u8; 16]),
    /// Any other; a mirror pod's is a hash.
    Text(Box<str>),
}

/// Hexadecimal digits before each hyphen.
const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];

impl Uid {
    /// Length of its text, bytes.
    pub fn text_bytes(&self) -> usize {
        match self {
            Self::Uuid(_) => GROUPS.iter().sum::<usize>() + GROUPS.len() - 1,
            Self::Text(text) => text.len(),
        }
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        bytes(text).map_or_else(|| Self::Text(text.into()), Self::Uuid)
    }
}

impl PartialEq<str> for Uid {
    fn eq(&self, text: &str) -> bool {
        match self {
            Self::Uuid(known) => bytes(text).is_some_and(|bytes| bytes == *known),
            Self::Text(known) => **known == *text,
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match self {
            Self::Uuid(bytes) => bytes,
            Self::Text(text) => return f.write_str(text),
        };
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The bytes of a UUID whose text is made of them again.
fn bytes(text: &str) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    let mut digits = 0;
    for (at, byte) in text.iter().enumerate() {
        let digit = match (at, byte) {
            (8 | 13 | 18 | 23, b'-') => continue,
            (8 | 13 | 18 | 23, _) => return None,
            (_, b'0'..=b'9') => byte - b'0',
            (_, b'a'..=b'f') => byte - b'a' + 10,
            _ => return None,
        };
        bytes[digits / 2] = bytes[digits / 2] << 4 | digit;
        digits += 1;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_comes_back_as_it_was() {
        for text in [
            "c0ffee00-0123-4567-89ab-cdefcdefcdef",
            "C0FFEE00-0123-4567-89ab-cdefcdefcdef",
            "c0ffee00-0123-4567-89abxcdefcdefcdef",
            "c0ffee000-123-4567-89ab-cdefcdefcdef",
            "6a2f41a3c54c7f2a8a1a3c5e0b9d7f11",
            "u1",
            "",
        ] {
            let uid = Uid::from(text);
            assert_eq!((uid.to_string(), uid.text_bytes()), (text.to_owned(), text.len()));
            assert!(uid == *text && uid != *"c0ffee00-0123-4567-89ab-cdefcdefcdee");
        }
        assert!(matches!(Uid::from("c0ffee00-0123-4567-89ab-cdefcdefcdef"), Uid::Uuid(_)));
        assert_eq!(size_of::<Option<Uid>>(), 24);
    }
}
