//! Writes docs/METRICS.md.

fn main() -> std::io::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
    std::fs::write(path, podgauge_common::catalogue::markdown::page())
}
