//! Every make target, path, flag and variable that is named is there.

use std::{collections::BTreeSet, fs};

use test_support::repository;

use crate::docs::{
    flags::{self, script_flags},
    page,
};

/// Folders of the repository: what begins like this is a path in it.
const FOLDERS: [&str; 12] = [
    "src/",
    "cli/",
    "tests/",
    "manifests/",
    "certs/",
    "docs/",
    "image/",
    "benches/",
    "examples/",
    "fuzz/",
    ".ci/",
    "target/",
];
/// Paths that are there only after a command, or only in an example.
const MADE: [&str; 6] = ["certs/issued", "fuzz/corpus", "fuzz/artifacts", "target/", "docs/man", "manifests/mine"];
/// Flags of other programs that the prose names on their own.
const FOREIGN: [&str; 4] = ["--label", "--admission-control-config-file", "--ca-certificate", "--cert-dir"];

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|character: char| character.is_whitespace() || "\"'`(),;=".contains(character))
        .map(|word| word.trim_end_matches([':', '.']))
        .filter(|word| !word.is_empty())
}

/// Simple commands: each as its words, without what is set before it.
fn simple(line: &str) -> Vec<Vec<String>> {
    let parts = line.replace("&&", "\n").replace("||", "\n").replace([';', '|'], "\n");
    let parts = parts.lines().map(|part| {
        let words = part.split_whitespace().map(|word| word.trim_matches(['\'', '"']).to_owned());
        let is_setting = |word: &String| {
            word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
        };
        words.skip_while(is_setting).collect::<Vec<_>>()
    });
    parts.filter(|words| !words.is_empty()).collect()
}

#[test]
fn every_make_target_is_there() {
    let makefile = fs::read_to_string(repository().join("Makefile")).unwrap();
    let targets: BTreeSet<_> = makefile.lines().filter_map(|line| Some(line.split_once(':')?.0)).collect();
    let mut named = BTreeSet::new();
    for page in page::all() {
        for command in page.commands().iter().flat_map(|command| simple(command)) {
            if command[0] != "make" {
                continue;
            }
            for target in command[1..].iter().filter(|word| !word.contains('=') && !word.starts_with('-')) {
                assert!(targets.contains(target.as_str()), "{}: make {target}", page.path);
                named.insert(target.clone());
            }
        }
    }
    assert!(named.len() > 5, "{named:?} are too few: are they still found?");
}

#[test]
fn every_path_is_there() {
    let mut count = 0;
    for page in page::all() {
        let code: Vec<_> = page.commands();
        for word in code.iter().flat_map(|code| words(code)) {
            let is_path = FOLDERS.iter().any(|folder| word.starts_with(folder)) && !word.contains(['<', '{', '$']);
            if !is_path || MADE.iter().any(|made| word.starts_with(made)) {
                continue;
            }
            count += 1;
            assert!(exists(word), "{}: {word} is not there", page.path);
        }
    }
    assert!(count > 30, "{count} paths are too few: are they still found?");
}

/// Whether a path is there; a `*` in its last part stands for anything.
fn exists(path: &str) -> bool {
    let Some((head, tail)) = path.split_once('*') else { return repository().join(path).exists() };
    let (folder, start) = head.rsplit_once('/').unwrap();
    let Ok(entries) = fs::read_dir(repository().join(folder)) else { return false };
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .any(|name| name.starts_with(start) && name.ends_with(tail.trim_start_matches(['*', '/'])))
}

#[test]
fn every_flag_and_command_is_there() {
    let commands = flags::commands();
    let script = script_flags();
    let known: BTreeSet<_> = commands.values().flatten().chain(&script).map(String::as_str).collect();
    let mut count = 0;
    for page in page::all() {
        for words in page.commands().iter().flat_map(|command| simple(command)) {
            let name = |word: &str| word.split_once('=').map_or(word, |(name, _)| name).to_owned();
            let said = words.iter().filter(|word| word.starts_with("--")).map(|word| name(word));
            let given: Vec<_> = match words[0].as_str() {
                // On its own, in the prose.
                word if word.starts_with("--") => {
                    let flag = name(word);
                    count += 1;
                    assert!(
                        known.contains(flag.as_str()) || FOREIGN.contains(&flag.as_str()),
                        "{}: {flag}: neither a flag of ours nor one of tests/offline/docs/commands.rs",
                        page.path
                    );
                    continue;
                }
                "certs/issue.sh" | "issue.sh" => {
                    for flag in said {
                        assert!(script.contains(&flag), "{}: issue.sh {flag}", page.path);
                    }
                    continue;
                }
                word if word.rsplit('/').next() == Some("gitlab-runner-webhook") => words[1..].to_vec(),
                "cargo" if words.get(1).is_some_and(|word| word == "run") => {
                    let other = words.iter().any(|word| ["-p", "--package", "--example"].contains(&word.as_str()));
                    match words.iter().position(|word| word == "--") {
                        Some(position) if !other => words[position + 1..].to_vec(),
                        _ => continue,
                    }
                }
                _ => continue,
            };
            let command = given.first().filter(|word| !word.starts_with('-')).map_or("", String::as_str);
            let flags = commands.get(command).unwrap_or_else(|| panic!("{}: command {words:?}", page.path));
            for flag in given.iter().filter(|word| word.starts_with("--")).map(|word| name(word)) {
                count += 1;
                assert!(flags.contains(&flag), "{}: {command:?} has no {flag}", page.path);
            }
        }
    }
    assert!(count > 20, "{count} flags are too few: are they still found?");
}

#[test]
fn every_environment_variable_is_one_of_a_flag() {
    let known = flags::variables();
    for page in page::all() {
        let names = page.text.split(|character: char| !(character.is_ascii_alphanumeric() || character == '_'));
        for name in names.filter(|name| name.starts_with("GITLAB_RUNNER_WEBHOOK_")) {
            assert!(known.contains(name), "{}: {name}", page.path);
        }
    }
}

#[test]
fn the_version_of_the_image_is_the_present_one() {
    let mut count = 0;
    for page in page::all() {
        for rest in page.text.split("gitlab-runner-webhook:").skip(1).filter(|rest| rest.starts_with(char::is_numeric))
        {
            let version = rest.split(|character: char| !(character.is_ascii_digit() || character == '.')).next();
            count += 1;
            assert_eq!(version.unwrap().trim_end_matches('.'), env!("CARGO_PKG_VERSION"), "{}", page.path);
        }
    }
    assert!(count > 2, "{count} are too few: are they still found?");
}

#[test]
fn what_is_said_to_be_measured_was_measured() {
    let numbers = |text: &str| -> BTreeSet<String> {
        let text = text.replace(',', "");
        let parts = text.split(|character: char| !(character.is_ascii_digit() || character == '.'));
        parts.map(|part| part.trim_matches('.').to_owned()).filter(|part| !part.is_empty()).collect()
    };
    let measured = numbers(&page::named("docs/benchmarks.md").text);
    let mut tables = 0;
    for page in page::all() {
        for table in page.text.split("<!-- numbers: benchmarks -->").skip(1) {
            tables += 1;
            let (table, _) = table.split_once("<!-- end -->").unwrap();
            for number in numbers(table) {
                assert!(measured.contains(&number), "{}: {number} is not in docs/benchmarks.md", page.path);
            }
        }
    }
    assert_eq!(tables, 2);
}
