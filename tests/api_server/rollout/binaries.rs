//! Another build of the program.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, sync::LazyLock};

use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use super::BINARY;

/// A build that knows another set of public roots, as two releases do: one byte of one root differs. So each trust bundle
/// that it writes differs from what [`BINARY`] writes.
pub static ANOTHER: LazyLock<String> = LazyLock::new(|| {
    let mut program = fs::read(BINARY).unwrap();
    let root = TLS_SERVER_ROOT_CERTS[0].as_ref();
    let at = program.windows(root.len()).position(|bytes| bytes == root).expect("the roots are compiled in");
    // Within its signature, which nobody verifies.
    program[at + root.len() - 1] ^= 1;
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("another-gitlab-runner-webhook");
    // One that is running is not written to.
    let new = path.with_extension(std::process::id().to_string());
    fs::write(&new, program).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(new, &path).unwrap();
    path.to_str().unwrap().to_owned()
});
