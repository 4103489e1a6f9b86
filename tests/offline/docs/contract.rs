//! Each row of the contract names a test on a real API server, and that test is there.

use std::{collections::BTreeSet, fs, path::Path};

use syn::{Attribute, Item};
use test_support::repository;

use crate::docs::page;

#[test]
fn every_row_names_a_test_that_is_there() {
    let mut there = BTreeSet::new();
    collect(&repository().join("tests/api_server"), "", &mut there);
    assert!(there.len() > 100, "only {} tests are found", there.len());
    let contract = page::named("docs/contract.md");
    let rows = contract.text.lines().filter(|line| line.starts_with("| ")).skip(1);
    let mut count = 0;
    for row in rows {
        let cell = row.trim_end_matches(" |").rsplit("| ").next().unwrap();
        let named: Vec<_> = cell.split(", ").map(|name| name.trim_matches('`')).collect();
        for name in &named {
            assert!(there.contains(*name), "{name}: no such test in tests/api_server, in row: {row}");
        }
        count += 1;
    }
    assert!(count > 25, "{count} rows are too few: are they still found?");
}

/// The paths of the tests that always run in a folder, as cargo names them.
fn collect(folder: &Path, prefix: &str, tests: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        if path.is_dir() {
            collect(&path, &format!("{prefix}{name}::"), tests);
            continue;
        }
        let prefix = if matches!(name, "main" | "mod") { prefix.to_owned() } else { format!("{prefix}{name}::") };
        for item in syn::parse_file(&fs::read_to_string(&path).unwrap()).unwrap().items {
            if let Item::Fn(function) = item
                && has(&function.attrs, "test")
                && !has(&function.attrs, "ignore")
            {
                tests.insert(format!("{prefix}{}", function.sig.ident));
            }
        }
    }
}

/// Whether an attribute of this name is there, such as `#[test]` or `#[tokio::test(...)]`.
fn has(attributes: &[Attribute], name: &str) -> bool {
    attributes.iter().any(|attribute| attribute.path().segments.last().is_some_and(|last| last.ident == name))
}
