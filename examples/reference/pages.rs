//! Man pages and completions from the argument parser. Shared with `tests/offline/docs`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use clap_complete::Shell;
use gitlab_runner_webhook::names;
use gitlab_runner_webhook_cli::Cli;

/// Where shells and man look for them below a prefix such as `/usr`: what a package installs as it is.
const MAN: &str = "share/man/man1";
const COMPLETIONS: [(Shell, &str, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions", names::APP),
    (Shell::Zsh, "share/zsh/site-functions", "_gitlab-runner-webhook"),
    (Shell::Fish, "share/fish/vendor_completions.d", "gitlab-runner-webhook.fish"),
];

/// Writes all of them below a folder; says which.
pub fn write(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let manuals = folder.join(MAN);
    fs::create_dir_all(&manuals)?;
    // One page for the program, and one for each command.
    clap_mangen::generate_to(Cli::command(), &manuals)?;
    let mut written = fs::read_dir(&manuals)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    for (shell, place, name) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), names::APP, &mut script);
        let place = folder.join(place);
        fs::create_dir_all(&place)?;
        fs::write(place.join(name), script)?;
        written.push(place.join(name));
    }
    written.sort();
    Ok(written)
}
