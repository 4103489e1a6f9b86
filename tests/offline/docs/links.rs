//! Every link leads somewhere.

use std::path::{Component, Path, PathBuf};

use test_support::repository;

use crate::docs::page;

/// Without `..`, relative to the repository.
fn normal(path: &Path) -> String {
    let mut parts = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => assert!(parts.pop(), "{} leaves the repository", path.display()),
            component => parts.push(component),
        }
    }
    parts.to_str().unwrap().to_owned()
}

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut relative = 0;
    for page in page::all() {
        for link in page.links() {
            if link.starts_with("https://") {
                continue;
            }
            relative += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = Path::new(&page.path).parent().unwrap();
            let path = if path.is_empty() { page.path.clone() } else { normal(&folder.join(path)) };
            assert!(repository().join(&path).exists(), "{}: {link} leads nowhere", page.path);
            if !anchor.is_empty() {
                let there = page::named(&path).anchors();
                assert!(there.contains(anchor), "{}: {link}: no such heading among {there:?}", page.path);
            }
        }
    }
    assert!(relative > 50, "{relative} links are too few: are they still found?");
}
