//! The metrics: every one that the program exports.

use test_support::metrics::after_everything;

use crate::docs::page::{self, cell, table};

#[test]
fn the_table_of_metrics_is_what_the_program_exports() {
    let exported = after_everything().encode();
    let about = |word: &'static str| {
        exported.lines().filter_map(move |line| line.strip_prefix("# ")?.strip_prefix(word)?.trim().split_once(' '))
    };
    let mut rows = Vec::new();
    for (name, help) in about("HELP") {
        let (_, kind) = about("TYPE").find(|(typed, _)| *typed == name).unwrap();
        let series = match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        rows.push(vec![format!("`{series}`"), kind.to_owned(), cell(help.trim_end_matches('.'))]);
    }
    assert!(rows.len() > 10, "{exported}");
    rows.sort();
    page::named("docs/observability.md").hold("metrics", &table(&["metric", "type", "what it says"], &rows));
}
