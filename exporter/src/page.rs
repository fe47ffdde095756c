//! Keeps the finished page: bytes that requests are answered with, compressed at most once, whole or
//! narrowed to the families that a scraper asks for.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use podgauge_common::http::gzip;

/// The parameter that names a family.
const PARAMETER: &str = "name[]";
/// Names of one request.
const MOST_NAMES: usize = 256;
/// Bytes of a name.
const LONGEST_NAME: usize = 256;
/// Selections that are remembered of one page. Each kind of scraper has one.
const SELECTIONS: usize = 8;
/// The beginning of a family's first line.
const FAMILY: &str = "# HELP ";

/// A page that has been rendered.
#[derive(Debug, Default)]
pub(crate) struct Page {
    plain: Bytes,
    gzip: OnceLock<Bytes>,
    /// Where each family begins.
    families: OnceLock<Vec<usize>>,
    /// By query.
    selections: Mutex<HashMap<String, Arc<Page>>>,
}

/// A page with some families alone.
#[derive(Debug)]
pub(crate) enum Selection {
    /// It is the same for the next request that asks for it.
    Kept(Arc<Page>),
    /// It is made for one request: too many different ones are asked for.
    Passing(Bytes),
}

/// Why a selection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadSelection {
    #[error("name[] is given more than {MOST_NAMES} times")]
    TooMany,
    #[error("a name[] is longer than {LONGEST_NAME} bytes")]
    TooLong,
}

impl Page {
    pub(crate) fn new(text: String) -> Self {
        Self { plain: Bytes::from(text), ..Self::default() }
    }

    pub(crate) fn plain(&self) -> Bytes {
        self.plain.clone()
    }

    /// Compressed at the first request that wants it so, not at every tick.
    pub(crate) fn compressed(&self) -> Bytes {
        self.gzip.get_or_init(|| gzip::compress(&self.plain)).clone()
    }

    /// The families that a query names; `None` if it names none. Names that the page does not have
    /// add nothing.
    pub(crate) fn select(&self, query: &str) -> Result<Option<Selection>, BadSelection> {
        if let Some(page) = self.selections.lock().get(query) {
            return Ok(Some(Selection::Kept(Arc::clone(page))));
        }
        let Some(names) = names(query)? else { return Ok(None) };
        let text = self.narrow(&names);
        let mut selections = self.selections.lock();
        if selections.len() >= SELECTIONS {
            return Ok(Some(Selection::Passing(text)));
        }
        let page = Arc::new(Self { plain: text, ..Self::default() });
        selections.insert(query.to_owned(), Arc::clone(&page));
        Ok(Some(Selection::Kept(page)))
    }

    fn narrow(&self, names: &HashSet<Cow<'_, str>>) -> Bytes {
        let text = self.text();
        let begins = self.families.get_or_init(|| families(text));
        let ends = begins.iter().skip(1).copied().chain([text.len()]);
        let chosen = begins.iter().zip(ends).map(|(begin, end)| &text[*begin..end]).filter(|family| {
            let name = family[FAMILY.len()..].split([' ', '\n']).next().unwrap_or_default();
            names.contains(name)
        });
        let mut narrow = String::new();
        chosen.for_each(|family| narrow.push_str(family));
        narrow.shrink_to_fit();
        Bytes::from(narrow)
    }

    fn text(&self) -> &str {
        // It was made of a String.
        std::str::from_utf8(&self.plain).unwrap_or_default()
    }
}

/// Where the families of a page begin. Neither a help text nor a label value has a line end in it.
fn families(text: &str) -> Vec<usize> {
    let first = text.starts_with(FAMILY).then_some(0);
    let further = text.match_indices("\n# HELP ").map(|(at, _)| at + 1);
    first.into_iter().chain(further).collect()
}

/// The names of a query, if it has any.
fn names(query: &str) -> Result<Option<HashSet<Cow<'_, str>>>, BadSelection> {
    let mut names = HashSet::new();
    let pairs = form_urlencoded::parse(query.as_bytes());
    for (count, (_, name)) in pairs.filter(|(key, _)| key == PARAMETER).enumerate() {
        if count >= MOST_NAMES {
            return Err(BadSelection::TooMany);
        }
        if name.len() > LONGEST_NAME {
            return Err(BadSelection::TooLong);
        }
        names.insert(name);
    }
    Ok((!names.is_empty()).then_some(names))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP a first\n# TYPE a gauge\na{x=\"# HELP b\\n\"} 1\na 2\n\
                        # HELP ab second\n# TYPE ab gauge\nab 3\n# HELP c third\n# TYPE c gauge\nc 4\n";

    fn selected(page: &Page, query: &str) -> Option<String> {
        let bytes = match page.select(query).unwrap()? {
            Selection::Kept(page) => page.plain(),
            Selection::Passing(bytes) => bytes,
        };
        Some(String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn families_are_chosen_by_their_whole_names() {
        let page = Page::new(TEXT.to_owned());
        let families: Vec<&str> =
            TEXT.split_inclusive("2\n").flat_map(|part| part.split_inclusive("3\n")).collect();
        let [a, ab, c] = families[..] else { panic!("{families:?}") };
        for (query, expected) in [
            ("name[]=a", Some(a.to_owned())),
            ("name%5B%5D=ab", Some(ab.to_owned())),
            ("name[]=c&other=1&name[]=a&name[]=a", Some(format!("{a}{c}"))),
            ("name[]=%61b", Some(ab.to_owned())),
            ("name[]=b", Some(String::new())),
            ("name[]=", Some(String::new())),
            ("name=a", None),
            ("", None),
        ] {
            assert_eq!(selected(&page, query), expected, "{query}");
        }
        assert_eq!(selected(&Page::default(), "name[]=a"), Some(String::new()));
    }

    #[test]
    fn a_selection_is_compressed_once_and_few_are_remembered() {
        let page = Page::new(TEXT.to_owned());
        let kept = |query: &str| match page.select(query).unwrap() {
            Some(Selection::Kept(page)) => Some(page),
            _ => None,
        };
        let (first, again) = (kept("name[]=a").unwrap(), kept("name[]=a").unwrap());
        assert!(Arc::ptr_eq(&first, &again));
        let all: Vec<String> = (0..20).map(|n| format!("name[]=a&n={n}")).collect();
        assert_eq!(all.iter().filter_map(|query| kept(query)).count(), SELECTIONS - 1);
        assert!(selected(&page, "name[]=c&last").unwrap().ends_with("c 4\n"));
        assert!(kept("name[]=a").is_some());
    }

    #[test]
    fn names_are_bounded_in_number_and_length() {
        let page = Page::new(TEXT.to_owned());
        let many = vec!["name[]=a"; MOST_NAMES + 1].join("&");
        assert_eq!(page.select(&many).unwrap_err(), BadSelection::TooMany);
        let long = format!("name[]={}", "a".repeat(LONGEST_NAME + 1));
        assert_eq!(page.select(&long).unwrap_err(), BadSelection::TooLong);
    }
}
