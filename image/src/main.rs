//! `make image`: the image of this program, from its static binary.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use image_archive::{Entry, Image, Program};
use jiff::Timestamp;

const NAME: &str = "gitlab-runner-webhook";
/// The user that Dockerfile and Deployment name, too.
const USER: &str = "65532:65532";

/// What registries and nodes should not have to carry more than, in bytes.
const MOST: (u64, u64) = (15_000_000, 6_000_000);

/// Writes the image of gitlab-runner-webhook as an archive that docker, podman, ctr, kind and k3d load.
#[derive(Debug, Parser)]
#[command(name = "image-archive")]
struct Arguments {
    /// The program, linked statically.
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,

    /// The archive to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,

    /// Version of the program: the label, and the tag unless --reference names another.
    #[arg(long, value_name = "VERSION")]
    image_version: String,

    /// Name and tag of the image.
    #[arg(long, value_name = "NAME:TAG")]
    reference: Option<String>,

    /// Commit of the sources, for the label.
    #[arg(long, value_name = "COMMIT")]
    revision: Option<String>,

    /// A further label; may be given more than once.
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,

    /// When the image counts as made, in seconds since 1970.
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", default_value = "0", hide_env_values = true)]
    created: i64,
}

fn main() -> ExitCode {
    match write(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("image-archive: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(arguments: Arguments) -> Result<(), String> {
    let path = arguments.binary.display();
    let binary = fs::read(&arguments.binary).map_err(|error| format!("cannot read {path}: {error}"))?;
    let program = Program::read(&binary)
        .ok_or_else(|| format!("{path} is no Linux program for amd64 or arm64: `make image` builds one"))?;
    if !program.is_static {
        return Err(format!(
            "{path} needs a dynamic loader, which an image from scratch has not: build it with \
             RUSTFLAGS='-C target-feature=+crt-static' and --target, or run `make image`"
        ));
    }
    let created = Timestamp::from_second(arguments.created)
        .map_err(|_| format!("--created {}: out of range", arguments.created))?;
    let mut labels: BTreeMap<String, String> = [
        ("title", NAME),
        ("description", "Keeps GitLab Runner's token Secret and CA certificates where its pods need them"),
        ("version", &arguments.image_version),
        ("licenses", "Apache-2.0"),
        ("created", &created.to_string()),
    ]
    .map(|(key, value)| (format!("org.opencontainers.image.{key}"), value.to_owned()))
    .into();
    if let Some(revision) = arguments.revision.filter(|revision| !revision.is_empty()) {
        labels.insert("org.opencontainers.image.revision".to_owned(), revision);
    }
    labels.extend(arguments.label);
    let image = Image {
        reference: arguments.reference.unwrap_or_else(|| format!("{NAME}:{}", arguments.image_version)),
        architecture: program.architecture.to_owned(),
        created,
        entrypoint: vec![format!("/{NAME}")],
        user: USER.to_owned(),
        ports: vec![8080, 10250],
        labels,
        entries: [(NAME.to_owned(), Entry::Program(binary))].into(),
    };
    let size = image.write(&arguments.output).map_err(|error| error.to_string())?;
    println!(
        "{} ({}): {:.1} MB, {:.1} MB compressed, in {}",
        image.reference,
        program.architecture,
        megabytes(size.unpacked),
        megabytes(size.compressed),
        arguments.output.display()
    );
    if size.unpacked > MOST.0 || size.compressed > MOST.1 {
        return Err(format!(
            "the image is larger than {} MB, {} MB compressed",
            MOST.0 / 1_000_000,
            MOST.1 / 1_000_000
        ));
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "one digit is printed")]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKERFILE: &str = include_str!("../Dockerfile");

    #[test]
    fn dockerfile_makes_the_same_image() {
        for line in [
            format!("USER {USER}"),
            "EXPOSE 8080 10250".to_owned(),
            format!("ENTRYPOINT [\"/{NAME}\"]"),
            format!("/{NAME} /{NAME}"),
        ] {
            assert!(DOCKERFILE.lines().any(|found| found.ends_with(&line)), "{line}");
        }
    }

    #[test]
    fn dockerfile_builds_with_the_toolchain_and_version_of_the_repository() {
        let toolchain = include_str!("../../rust-toolchain.toml");
        let (_, channel) = toolchain.split_once("channel = \"").expect("a channel");
        let (channel, _) = channel.split_once('"').expect("its end");
        assert!(DOCKERFILE.contains(&format!("/rust:{channel}-slim")) && DOCKERFILE.contains(&format!("={channel}\n")));
        let manifest = include_str!("../../Cargo.toml");
        let (_, version) = manifest.split_once("\nversion = \"").expect("a version");
        let (version, _) = version.split_once('"').expect("its end");
        assert!(DOCKERFILE.contains(&format!("ARG VERSION={version}\n")), "{version}");
    }

    #[test]
    fn deployment_runs_as_the_user_of_the_image() {
        let deployment = include_str!("../../manifests/base/deployment.yaml");
        let (user, group) = USER.split_once(':').expect("user and group");
        assert!(
            deployment.contains(&format!("runAsUser: {user}\n"))
                && deployment.contains(&format!("runAsGroup: {group}\n"))
        );
    }

    #[test]
    fn labels_have_a_key() {
        assert_eq!(label("a=b=c"), Ok(("a".to_owned(), "b=c".to_owned())));
        assert!(label("=b").is_err() && label("a").is_err());
    }
}
