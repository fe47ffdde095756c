//! Splits the text of a counters file into records, each with the line that it begins on.
//!
//! The grammar is Go's for CSV, and milder: blanks around columns do not count, and a `#` may be
//! indented. A quoted help text may go over several lines.

/// A line with columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    /// Of its first line, from 1.
    pub(super) line: u64,
    /// As it is written, for messages.
    pub(super) text: String,
    /// The columns, or why it has none.
    pub(super) columns: Result<Vec<String>, String>,
}

/// Decodes the bytes of a file. Files that Excel and old editors wrote are read too; the second is
/// true if the bytes are not UTF-8 and were taken for Latin-1.
pub(super) fn decode(bytes: Vec<u8>) -> Result<(String, bool), String> {
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err("the file is UTF-16; save it as UTF-8".to_owned());
    }
    // Here as well as in `records`: as Latin-1 it would be three letters.
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").map(<[u8]>::to_vec).unwrap_or(bytes);
    match String::from_utf8(bytes) {
        Ok(text) => Ok((text, false)),
        Err(error) => Ok((error.as_bytes().iter().map(|byte| char::from(*byte)).collect(), true)),
    }
}

/// The records of a text, comments and empty lines left out.
pub(super) fn records(text: &str) -> Vec<Record> {
    let lines: Vec<&str> = text.trim_start_matches('\u{feff}').lines().collect();
    let mut records = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let first = lines[at].trim();
        if first.is_empty() || first.starts_with('#') {
            at += 1;
            continue;
        }
        let (used, columns) = match quoted_until(&lines[at..]) {
            Some(used) => (used, split(&lines[at..at + used].join("\n"))),
            None => (1, Err("the quote that begins in it is not closed".to_owned())),
        };
        records.push(Record { line: at as u64 + 1, text: first.to_owned(), columns });
        at += used;
    }
    records
}

/// How many lines the first record takes; `None` if a quote in it is never closed.
fn quoted_until(lines: &[&str]) -> Option<usize> {
    let mut state = Quote::default();
    for (used, line) in (1..).zip(lines) {
        line.chars().for_each(|character| state.take(character));
        if !state.is_open {
            return Some(used);
        }
        state.take('\n');
    }
    None
}

/// Where a quote is open: one counts only at the beginning of a column.
#[derive(Debug, Default)]
struct Quote {
    is_open: bool,
    /// There is something other than blanks in the column before this place.
    in_column: bool,
}

impl Quote {
    fn take(&mut self, character: char) {
        match character {
            '"' if self.is_open => self.is_open = false,
            // Two quotes in a quoted column are one of its text.
            '"' if !self.in_column => (self.is_open, self.in_column) = (true, true),
            ',' if !self.is_open => self.in_column = false,
            ' ' | '\t' => {}
            _ => self.in_column = true,
        }
    }
}

/// The columns of one record. The csv crate reads a quote only at the very beginning of a column,
/// and people write a blank before it.
fn split(record: &str) -> Result<Vec<String>, String> {
    let mut text = String::with_capacity(record.len());
    let mut quote = Quote::default();
    for character in record.chars() {
        let leading = !quote.is_open && !quote.in_column && matches!(character, ' ' | '\t');
        quote.take(character);
        if !leading {
            text.push(character);
        }
    }
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(text.as_bytes());
    let mut columns = csv::StringRecord::new();
    reader.read_record(&mut columns).map_err(|error| error.to_string())?;
    Ok(columns.iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(text: &str) -> Vec<(u64, Vec<String>)> {
        records(text).into_iter().map(|record| (record.line, record.columns.unwrap())).collect()
    }

    fn row(line: u64, columns: [&str; 3]) -> (u64, Vec<String>) {
        (line, columns.map(str::to_owned).to_vec())
    }

    #[test]
    fn what_people_and_their_editors_write() {
        assert_eq!(
            columns(
                "\u{feff}# a comment behind a BOM\r\n  # an indented one\n\nA , gauge, plain\r\n\tB, counter, \
                 \"with, comma\"\nC, gauge,\"over\ntwo \"\"lines\"\"\"\nD, gauge, a 5\" disk\n"
            ),
            [
                row(4, ["A", "gauge", "plain"]),
                row(5, ["B", "counter", "with, comma"]),
                row(6, ["C", "gauge", "over\ntwo \"lines\""]),
                row(8, ["D", "gauge", "a 5\" disk"]),
            ]
        );
        assert_eq!(records(""), []);
        assert_eq!(records("\u{feff}\n # x\n"), []);
    }

    #[test]
    fn a_quote_that_is_not_closed_is_the_mistake_of_its_own_line() {
        let all = records("A, gauge, \"open\nB, gauge, fine\n");
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].line, all[0].columns.is_err()), (1, true));
        assert_eq!((all[1].line, all[1].columns.is_ok()), (2, true));
    }

    #[test]
    fn bytes_that_are_no_utf_8() {
        assert_eq!(decode(b"25 \xb0C".to_vec()), Ok(("25 °C".to_owned(), true)));
        assert_eq!(decode(b"\xef\xbb\xbf25 \xb0C".to_vec()), Ok(("25 °C".to_owned(), true)));
        assert_eq!(decode("25 °C".into()), Ok(("25 °C".to_owned(), false)));
        assert!(decode(vec![0xff, 0xfe, 0x41, 0x00]).unwrap_err().contains("UTF-16"));
    }
}
