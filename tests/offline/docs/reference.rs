//! Man pages and completions, as `make docs` writes them.

#[path = "../../../examples/reference/pages.rs"]
mod pages;

use std::{fs, path::Path, process::Command};

use crate::docs::flags;

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn man_pages_and_completions_know_every_command_and_flag() {
    let folder = tempfile::tempdir().unwrap();
    let written = pages::write(folder.path()).unwrap();
    let commands = flags::commands();
    for (command, flags) in &commands {
        let name = if command.is_empty() { String::new() } else { format!("-{command}") };
        let page = folder.path().join(format!("share/man/man1/gitlab-runner-webhook{name}.1"));
        if command == "help" {
            continue;
        }
        assert!(written.contains(&page), "{written:?}");
        let text = read(&page);
        assert!(text.contains(".TH ") && text.contains("SYNOPSIS"), "{}", page.display());
        // In roff, a hyphen is written as an escape.
        for flag in flags {
            assert!(text.contains(&flag.replace('-', "\\-")), "{}: {flag}", page.display());
        }
    }
    for name in [
        "share/bash-completion/completions/gitlab-runner-webhook",
        "share/zsh/site-functions/_gitlab-runner-webhook",
        "share/fish/vendor_completions.d/gitlab-runner-webhook.fish",
    ] {
        let path = folder.path().join(name);
        assert!(written.contains(&path), "{written:?}");
        let text = read(&path);
        for (command, flags) in &commands {
            assert!(text.contains(command), "{name}: {command}");
            for flag in flags {
                assert!(text.contains(flag.trim_start_matches('-')), "{name}: {flag}");
            }
        }
    }
    let bash = folder.path().join("share/bash-completion/completions/gitlab-runner-webhook");
    let checked = Command::new("bash").arg("-n").arg(&bash).output();
    if let Ok(output) = checked {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
