//! What the house rules say of the sources, where a compiler does not.

#![allow(clippy::unwrap_used, reason = "the lints spare test functions, not what they share")]

use std::{fs, path::Path};

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn pure_files_import_no_input_or_output() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    let of_head =
        |text: &str| text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.contains("PURE."));
    let pure: Vec<_> = found.iter().filter(|(_, text)| of_head(text)).collect();
    assert!(pure.len() >= 8, "{} PURE files", pure.len());
    for (path, text) in pure {
        for word in ["tokio", "axum", "hyper", "std::fs", "std::net", "kube::Api", "kube::Client", "SystemTime::now"] {
            assert!(!text.contains(word), "{path} says PURE and has {word}");
        }
    }
}

#[test]
fn files_stay_short_enough_to_read() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    for (path, text) in found {
        assert!(text.lines().count() <= 500, "{path} has {} lines", text.lines().count());
    }
}

/// cargo chooses a `syn` for each of the two by itself, whenever something else in the lock changes; of two kinds, they
/// do not compile, and only the build with feature `fips` has them.
#[test]
fn the_lock_holds_what_feature_fips_is_built_with_together() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).unwrap();
    let syn_of = |name: &str| {
        let package =
            lock.split("[[package]]").find(|package| package.contains(&format!("name = \"{name}\""))).unwrap();
        package.lines().find(|line| line.starts_with(" \"syn")).unwrap()
    };
    assert_eq!(syn_of("bindgen"), syn_of("prettyplease"), "in Cargo.lock, give bindgen the syn of prettyplease");
}
