//! The flags, as the argument parser has them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use clap::{Arg, Command, CommandFactory as _};
use gitlab_runner_webhook_cli::Cli;
use test_support::repository;

use crate::docs::page::{self, cell, table};

fn parser() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn own(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
}

/// The flags of each command; those of serving are under "".
pub fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let parser = parser();
    let flags = |command: &Command| -> BTreeSet<_> {
        command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect()
    };
    let commands = parser.get_subcommands().map(|command| (command.get_name().to_owned(), flags(command)));
    commands.chain([(String::new(), flags(&parser))]).collect()
}

/// Every environment variable that a flag reads.
pub fn variables() -> BTreeSet<String> {
    let parser = parser();
    let all = [&parser].into_iter().chain(parser.get_subcommands()).flat_map(own);
    all.filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())).collect()
}

/// The options of `certs/issue.sh`, as its help lists them.
pub fn script_flags() -> BTreeSet<String> {
    let script = fs::read_to_string(repository().join("certs/issue.sh")).unwrap();
    let lines = script.lines().filter_map(|line| line.strip_prefix("  --"));
    lines.filter_map(|line| Some(format!("--{}", line.split_whitespace().next()?))).collect()
}

fn rows(command: &Command) -> String {
    let rows: Vec<_> = own(command)
        .map(|argument| {
            let takes = |argument: &Arg| {
                let names: Vec<_> = argument.get_value_names()?.iter().map(ToString::to_string).collect();
                argument.get_action().takes_values().then(|| names.join(" "))
            };
            let possible: Vec<_> =
                argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
            let value = takes(argument).map_or_else(String::new, |value| {
                if possible.is_empty() { format!(" {value}") } else { format!(" {}", possible.join("\\|")) }
            });
            let name = match argument.get_long() {
                Some(long) => format!("`--{long}{value}`"),
                None => format!("`{}`", argument.get_id()),
            };
            let code = |text: &str| format!("`{text}`");
            let environment = argument.get_env().map(|name| code(name.to_str().unwrap())).unwrap_or_default();
            let default: Vec<_> =
                argument.get_default_values().iter().map(|value| code(value.to_str().unwrap())).collect();
            let help = argument.get_long_help().or_else(|| argument.get_help());
            let help = cell(&help.map(ToString::to_string).unwrap_or_default());
            let stop = if help.is_empty() || help.ends_with('.') { "" } else { "." };
            let needed = if argument.is_required_set() { " Needed." } else { "" };
            let default = if argument.get_action().takes_values() { default.join(", ") } else { String::new() };
            vec![name, environment, default, format!("{help}{stop}{needed}")]
        })
        .collect();
    table(&["flag", "environment variable", "default", "meaning"], &rows)
}

/// The tables of `docs/configuration.md`.
pub fn hold(page: &mut page::Page) {
    let parser = parser();
    page.hold("flags", &rows(&parser));
    let commands = parser.get_subcommands().filter(|command| command.get_name() != "help").map(|command| {
        let about = cell(&command.get_about().map(ToString::to_string).unwrap_or_default());
        format!("\n### {} {}\n\n{about}.\n\n{}", parser.get_name(), command.get_name(), rows(command))
    });
    page.hold("commands", &(commands.collect::<String>() + "\n"));
}
