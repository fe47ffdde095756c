//! Owns docs/PERFORMANCE.md: reads the misses that it explains, writes the last run's table.
//!
//! An explanation is a row of the table under `## Misses`: the missed row's name in backquotes, up
//! to which figure it holds, and the reason. A figure beyond that is not explained.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context as _;

const SECTION: &str = "## Misses";
const TABLE_BEGINS: &str = "<!-- the last run's table begins -->";
const TABLE_ENDS: &str = "<!-- the last run's table ends -->";

/// Misses that have a reason.
#[derive(Debug, Default)]
pub(crate) struct Explanations {
    /// By the row's name, the largest figure that the reason holds for.
    up_to: HashMap<String, f64>,
}

impl Explanations {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        Ok(Self::parse(&text))
    }

    pub(crate) fn parse(text: &str) -> Self {
        let section = text
            .lines()
            .skip_while(|line| *line != SECTION)
            .skip(1)
            .take_while(|line| !line.starts_with("## "));
        Self { up_to: section.filter_map(explanation).collect() }
    }

    /// Whether a reason is given for this figure of this row.
    pub(crate) fn cover(&self, id: &str, measured: f64) -> bool {
        self.up_to.get(id).is_some_and(|limit| measured <= *limit)
    }
}

/// A row with a name, a figure and a reason.
fn explanation(line: &str) -> Option<(String, f64)> {
    let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
    let id = cells.next()?.strip_prefix('`')?.strip_suffix('`')?;
    let limit = cells.next()?.split(' ').next()?.parse().ok()?;
    cells.next().filter(|reason| !reason.is_empty())?;
    Some((id.to_owned(), limit))
}

/// Replaces the last run's table.
pub(crate) fn write_table(path: &Path, table: &str) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let parts = text
        .split_once(TABLE_BEGINS)
        .and_then(|(before, rest)| Some((before, rest.split_once(TABLE_ENDS)?.1)))
        .with_context(|| format!("{}: has no place for the table", path.display()))?;
    let text = format!("{}{TABLE_BEGINS}\n\n{}\n\n{TABLE_ENDS}{}", parts.0, table.trim_end(), parts.1);
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rows_of_their_section_with_a_reason_explain() {
        let text = "| `a` | 1 | x |\n## Misses\n| row | up to | why |\n|---|---|---|\n\
                    | `b` | 2.5 ms | because |\n| `c` | 3 |  |\n## Other\n| `d` | 4 | x |\n";
        let found = Explanations::parse(text);
        assert!(found.cover("b", 2.5) && !found.cover("b", 2.6));
        assert!(["a", "c", "d"].iter().all(|id| !found.cover(id, 0.0)));
    }
}
