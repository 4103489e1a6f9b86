//! The bodies of the fuzz targets, on their seeds and on what is left of each when it is cut off: they cannot rot between
//! two runs of `make fuzz`.

#[path = "../../fuzz/bodies/config.rs"]
mod config;
#[path = "../../fuzz/bodies/der.rs"]
mod der;
#[path = "../../fuzz/bodies/pem.rs"]
mod pem;
#[path = "../../fuzz/bodies/review.rs"]
mod review;
#[path = "../../fuzz/bodies/timeout.rs"]
mod timeout;
#[path = "../../fuzz/bodies/world.rs"]
mod world;

use std::fs;

/// Into how many pieces a seed is cut: each beginning is an input.
const CUTS: usize = 40;

fn run(target: &str, check: fn(&[u8])) {
    let folder = test_support::repository().join("fuzz/seeds").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&folder).expect("the seeds") {
        let seed = fs::read(entry.expect("a seed").path()).expect("a seed");
        check(&seed);
        for cut in 0..CUTS {
            check(&seed[..seed.len() * cut / CUTS]);
        }
        count += 1;
    }
    assert!(count > 1, "{} has {count} seeds", folder.display());
}

#[test]
fn review() {
    run("review", review::check);
}

#[test]
fn pem() {
    run("pem", pem::check);
}

#[test]
fn der() {
    run("der", der::check);
}

#[test]
fn config() {
    run("config", config::check);
}

#[test]
fn timeout() {
    run("timeout", timeout::check);
}

#[test]
fn each_target_is_tested_here_and_run_by_make() {
    let read = |path: &str| fs::read_to_string(test_support::repository().join(path)).expect("a file");
    let (here, makefile) = (read("tests/offline/fuzz_seeds.rs"), read("Makefile"));
    let cargo = read("fuzz/Cargo.toml");
    let targets: Vec<_> = cargo.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")).collect();
    let run = makefile.lines().find_map(|line| line.strip_prefix("FUZZ_TARGETS ?= ")).expect("FUZZ_TARGETS");
    assert_eq!(targets.len(), run.split(' ').count());
    for target in targets.iter().map(|file| file.trim_end_matches(".rs\"")) {
        assert!(here.contains(&format!("run(\"{target}\"")) && run.split(' ').any(|one| one == target), "{target}");
    }
}
