//! `gitlab-runner-webhook manifests`: the configuration as rights, guard and webhooks.

use std::{
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use gitlab_runner_webhook::run::read_config;

use crate::manifests::{HEADER, PATHS, render};

/// What it is told.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Configuration file (YAML); an empty one means the defaults.
    #[arg(long, value_name = "FILE", env = "GITLAB_RUNNER_WEBHOOK_CONFIG")]
    pub config: PathBuf,

    /// Folder to write, for kustomize. Without it, the objects are printed.
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
}

/// Writes the manifests.
///
/// # Errors
/// The configuration cannot be used, or the folder cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (config, text) = read_config(&arguments.config)?;
    let files = render(&config, &text);
    let Some(folder) = &arguments.output else {
        let objects = files.iter().filter(|file| ["rbac.yaml", "guard.yaml", "webhooks.yaml"].contains(&file.path));
        let objects: Vec<_> = objects.map(|file| file.content.as_str()).collect();
        return io::stdout().write_all(objects.join("---\n").as_bytes()).context("standard output");
    };
    refuse_foreign(folder)?;
    for path in PATHS {
        let file = files.iter().find(|file| file.path == path);
        write(&folder.join(path), file.map(|file| file.content.as_str()))
            .with_context(|| format!("{} cannot be written; name another folder with --output", folder.display()))?;
    }
    Ok(())
}

/// A folder whose kustomization somebody else wrote is not ours to overwrite.
fn refuse_foreign(folder: &Path) -> Result<()> {
    let path = folder.join("kustomization.yaml");
    match fs::read_to_string(&path) {
        Ok(text) if !text.starts_with(HEADER) => bail!(
            "{} was not written by this command and would be overwritten; name another folder with --output",
            path.display()
        ),
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("{} cannot be read; name another folder with --output", path.display()))
        }
        _ => Ok(()),
    }
}

/// Without content, the file goes, and with its last file its folder.
fn write(path: &Path, content: Option<&str>) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    match content {
        Some(content) => {
            fs::create_dir_all(folder)?;
            fs::write(path, content)
        }
        None => match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) if fs::read_dir(folder)?.next().is_none() => fs::remove_dir(folder),
            Ok(()) => Ok(()),
        },
    }
}
