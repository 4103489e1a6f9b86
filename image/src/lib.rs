//! Writes container images of static programs as archives, without a container runtime.
//!
//! An archive is an OCI image layout in a tar file, with the `manifest.json` of `docker save` beside it, as
//! Docker itself writes it today. So `docker load`, `podman load`, `ctr images import`, `kind load
//! image-archive`, skopeo and crane all take it. The same input gives the same bytes: times, owners, order and
//! compression are fixed.
//!
//! Format: <https://github.com/opencontainers/image-spec>, `image-layout.md`, `config.md`, `layer.md`.

mod elf;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use crate::elf::Program;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image with one layer.
#[derive(Clone, Debug)]
pub struct Image {
    /// `name:tag`; a name without a registry means `docker.io/library`, as everywhere.
    pub reference: String,
    /// Of the first program among [`Image::entries`]: [`Program::architecture`].
    pub architecture: String,
    /// When it was made: the same for the same input, so not now.
    pub created: Timestamp,
    /// The command line of a container.
    pub entrypoint: Vec<String>,
    /// `uid` or `uid:gid`; a number, so that `runAsNonRoot` can be judged. Empty means root.
    pub user: String,
    /// TCP ports that the program listens on, for people to read.
    pub ports: Vec<u16>,
    /// `org.opencontainers.image.*` and others.
    pub labels: BTreeMap<String, String>,
    /// The files, by their paths without a leading slash.
    pub entries: BTreeMap<String, Entry>,
}

/// One entry of an image's file system, owned by root. Folders above it need no entry.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A file that anybody may run.
    Program(Vec<u8>),
    /// A file that anybody may read.
    File(Vec<u8>),
    /// A symbolic link.
    Link(String),
    /// A folder that anybody may write to, like `/tmp`.
    Scratch,
}

/// How large an image became, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Unpacked: the layer as a tar.
    pub unpacked: u64,
    /// What a registry holds and a node pulls: the layer, compressed.
    pub compressed: u64,
}

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference has no tag, or characters that no reference has.
    #[error("'{0}' is no image reference: expected name:tag, such as gitlab-runner-webhook:0.1.0")]
    Reference(String),
    /// The file system refused.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Image {
    /// Writes the archive, in one step: what was at `path` before stays until the new one is whole.
    ///
    /// # Errors
    /// When the reference has no tag, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<Size, Error> {
        let failed = |source| Error::Write { path: path.to_owned(), source };
        let (archive, size) = self.archive()?.map_err(failed)?;
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        let fresh = path.with_extension("tar.fresh");
        fs::write(&fresh, archive).and_then(|()| fs::rename(&fresh, path)).map_err(failed)?;
        Ok(size)
    }

    fn archive(&self) -> Result<io::Result<(Vec<u8>, Size)>, Error> {
        let (name, tag) = full_name(&self.reference).ok_or_else(|| Error::Reference(self.reference.clone()))?;
        Ok(self.layer().and_then(|layer| {
            let compressed = gzip(&layer)?;
            let size = Size { unpacked: layer.len() as u64, compressed: compressed.len() as u64 };
            Ok((self.layout(&name, tag, &digest(&layer), compressed)?, size))
        }))
    }

    /// The files as a tar.
    fn layer(&self) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut made = BTreeSet::new();
        for (path, entry) in &self.entries {
            for (end, _) in path.match_indices('/') {
                if made.insert(&path[..end]) {
                    tar.append_data(
                        &mut header(tar::EntryType::Directory, 0o755, 0),
                        folder(&path[..end]),
                        io::empty(),
                    )?;
                }
            }
            made.insert(path);
            match entry {
                Entry::Program(data) => {
                    tar.append_data(&mut header(tar::EntryType::Regular, 0o755, data.len()), path, data.as_slice())?;
                }
                Entry::File(data) => {
                    tar.append_data(&mut header(tar::EntryType::Regular, 0o644, data.len()), path, data.as_slice())?;
                }
                Entry::Link(target) => {
                    tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), path, target)?;
                }
                Entry::Scratch => {
                    tar.append_data(&mut header(tar::EntryType::Directory, 0o1777, 0), folder(path), io::empty())?;
                }
            }
        }
        tar.into_inner()
    }

    fn layout(&self, name: &str, tag: &str, diff_id: &str, layer: Vec<u8>) -> io::Result<Vec<u8>> {
        let created = self.created.to_string();
        let ports: serde_json::Map<String, Value> =
            self.ports.iter().map(|port| (format!("{port}/tcp"), json!({}))).collect();
        let config = json!({
            "created": created,
            "architecture": self.architecture,
            "os": "linux",
            "config": {
                "User": self.user,
                "ExposedPorts": ports,
                "Entrypoint": self.entrypoint,
                "WorkingDir": "/",
                "Labels": self.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            "history": [{"created": created, "created_by": "image-archive"}],
        });
        let mut blobs = BTreeMap::new();
        let mut blob = |media: &str, bytes: Vec<u8>| {
            let digest = digest(&bytes);
            let descriptor = json!({"mediaType": media, "digest": digest, "size": bytes.len()});
            let path = format!("blobs/{}", digest.replace(':', "/"));
            blobs.insert(path.clone(), bytes);
            (descriptor, path)
        };
        let (layer, layer_path) = blob(LAYER, layer);
        let (config, config_path) = blob(CONFIG, config.to_string().into_bytes());
        // Labels of the image, for registries and people that look at the manifest only.
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": [layer],
            "annotations": self.labels,
        });
        let (mut manifest, _) = blob(MANIFEST, manifest.to_string().into_bytes());
        manifest["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        manifest["annotations"] = json!({
            // containerd reads the first, everybody else the second.
            "io.containerd.image.name": format!("{name}:{tag}"),
            "org.opencontainers.image.ref.name": tag,
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest]});
        let docker = json!([{"Config": config_path, "RepoTags": [self.reference], "Layers": [layer_path]}]);

        let mut files = blobs;
        files.insert("index.json".to_owned(), index.to_string().into_bytes());
        files.insert("manifest.json".to_owned(), docker.to_string().into_bytes());
        files.insert("oci-layout".to_owned(), json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes());
        let mut tar = tar::Builder::new(Vec::new());
        for path in ["blobs", "blobs/sha256"] {
            tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), folder(path), io::empty())?;
        }
        for (path, bytes) in files {
            tar.append_data(&mut header(tar::EntryType::Regular, 0o644, bytes.len()), path, bytes.as_slice())?;
        }
        tar.into_inner()
    }
}

/// An owner of 0, the first second of time, and no names: the same on every machine.
fn header(kind: tar::EntryType, mode: u32, size: usize) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn folder(path: &str) -> String {
    format!("{path}/")
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Name with registry, and tag.
///
/// The first part of a name is a registry if it has a dot or a port, or is `localhost`
/// (<https://github.com/distribution/reference>).
fn full_name(reference: &str) -> Option<(String, &str)> {
    let (name, tag) = reference.rsplit_once(':')?;
    let plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c) || more.contains(c))
    };
    if !plain(tag, "") || !plain(name, "/:") || name.starts_with('/') || name.ends_with('/') {
        return None;
    }
    Some((
        match name.split_once('/') {
            Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => name.to_owned(),
            Some(_) => format!("docker.io/{name}"),
            None => format!("docker.io/library/{name}"),
        },
        tag,
    ))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn image() -> Image {
        let entries = [
            ("usr/bin/app".to_owned(), Entry::Program(b"binary".to_vec())),
            ("usr/bin/alias".to_owned(), Entry::Link("app".to_owned())),
            ("etc/motd".to_owned(), Entry::File(b"hello".to_vec())),
            ("tmp".to_owned(), Entry::Scratch),
        ];
        Image {
            reference: "app:1.0".to_owned(),
            architecture: "amd64".to_owned(),
            created: Timestamp::UNIX_EPOCH,
            entrypoint: vec!["/usr/bin/app".to_owned()],
            user: "65532:65532".to_owned(),
            ports: vec![8080],
            labels: [("org.opencontainers.image.title".to_owned(), "app".to_owned())].into(),
            entries: entries.into(),
        }
    }

    fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(archive);
        let mut files = BTreeMap::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let head = entry.header();
            assert_eq!((head.mtime().unwrap(), head.uid().unwrap(), head.gid().unwrap()), (0, 0, 0));
            let path = entry.path().expect("a path").display().to_string();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("content");
            assert!(files.insert(path.clone(), bytes).is_none(), "{path} is there twice");
        }
        files
    }

    fn blob<'a>(files: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let name = descriptor["digest"].as_str().expect("a digest");
        let bytes = &files[&format!("blobs/{}", name.replace(':', "/"))];
        assert_eq!(digest(bytes), name);
        assert_eq!(descriptor["size"], bytes.len());
        bytes
    }

    #[test]
    fn layout_and_docker_manifest_lead_to_the_same_layer() {
        let (archive, size) = image().archive().expect("a reference").expect("an archive");
        let files = files(&archive);
        let index: Value = serde_json::from_slice(&files["index.json"]).expect("an index");
        let found = &index["manifests"][0];
        assert_eq!(found["annotations"]["io.containerd.image.name"], "docker.io/library/app:1.0");
        let manifest: Value = serde_json::from_slice(blob(&files, found)).expect("a manifest");
        let config: Value = serde_json::from_slice(blob(&files, &manifest["config"])).expect("a config");
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["config"]["ExposedPorts"], json!({"8080/tcp": {}}));
        assert_eq!(config["config"]["Labels"]["org.opencontainers.image.title"], "app");
        let layer = blob(&files, &manifest["layers"][0]);
        assert_eq!(size.compressed, layer.len() as u64);
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(layer).read_to_end(&mut unpacked).expect("gzip");
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&unpacked)]));
        assert_eq!(size.unpacked, unpacked.len() as u64);

        let docker: Value = serde_json::from_slice(&files["manifest.json"]).expect("a manifest");
        assert_eq!(docker[0]["RepoTags"], json!(["app:1.0"]));
        assert_eq!(files[docker[0]["Layers"][0].as_str().unwrap()], layer);
        assert!(files.contains_key(docker[0]["Config"].as_str().unwrap()));
    }

    #[test]
    fn layer_has_folders_before_files() {
        let layer = image().layer().expect("a layer");
        let mut archive = tar::Archive::new(layer.as_slice());
        let seen: Vec<_> = archive
            .entries()
            .expect("a tar")
            .map(|entry| {
                let entry = entry.expect("an entry");
                (entry.path().expect("a path").display().to_string(), entry.header().mode().expect("a mode"))
            })
            .collect();
        let expected = [
            ("etc/", 0o755),
            ("etc/motd", 0o644),
            ("tmp/", 0o1777),
            ("usr/", 0o755),
            ("usr/bin/", 0o755),
            ("usr/bin/alias", 0o777),
            ("usr/bin/app", 0o755),
        ];
        assert_eq!(seen, expected.map(|(path, mode)| (path.to_owned(), mode)));
    }

    #[test]
    fn same_input_same_bytes() {
        let bytes = || image().archive().expect("a reference").expect("an archive").0;
        assert_eq!(bytes(), bytes());
    }

    #[test]
    fn references() {
        for (reference, expected) in [
            ("app:1", Some(("docker.io/library/app", "1"))),
            ("team/app:1", Some(("docker.io/team/app", "1"))),
            ("registry.example.com/app:v1.2-rc", Some(("registry.example.com/app", "v1.2-rc"))),
            ("localhost:5000/a/b:1", Some(("localhost:5000/a/b", "1"))),
            ("localhost/app:1", Some(("localhost/app", "1"))),
            ("app", None),
            ("localhost:5000/app", None),
            (":1", None),
            ("app:", None),
            ("a b:1", None),
            ("/app:1", None),
        ] {
            assert_eq!(full_name(reference), expected.map(|(name, tag)| (name.to_owned(), tag)), "{reference}");
        }
    }
}
