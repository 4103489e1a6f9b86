//! A trust store for the JVM. PURE.
//!
//! JKS, which JVMs read without a password, and whatever their default type is (`keystore.type.compat`); PKCS #12 without a
//! password is newer than many. What is in it is public: the digest at its end guards nothing, and JVMs look at it only
//! when they are given the password, which is everybody's "changeit".
//!
//! Source: `JavaKeyStore.engineStore` in `OpenJDK`'s `sun.security.provider`.

use std::collections::BTreeSet;

use aws_lc_rs::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const TRUSTED_CERTIFICATE: u32 = 2;
const PASSWORD: &str = "changeit";
const WHITENER: &[u8] = b"Mighty Aphrodite";

/// The trust store of these certificates: the same, whatever their order.
pub(super) fn trust_store<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let certificates: BTreeSet<&[u8]> = certificates.into_iter().collect();
    let mut store = Vec::new();
    for number in [MAGIC, VERSION, length(certificates.len())] {
        store.extend(number.to_be_bytes());
    }
    for (index, der) in certificates.into_iter().enumerate() {
        store.extend(TRUSTED_CERTIFICATE.to_be_bytes());
        text(&mut store, &format!("ca-{index}"));
        // When the entry was made: at no time, lest the bytes change.
        store.extend(0_u64.to_be_bytes());
        text(&mut store, "X.509");
        store.extend(length(der.len()).to_be_bytes());
        store.extend(der);
    }
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(&PASSWORD.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<_>>());
    digest.update(WHITENER);
    digest.update(&store);
    store.extend(digest.finish().as_ref());
    store
}

/// Of what a `ConfigMap` can hold, no length is larger.
fn length(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// As `DataOutput.writeUTF` has it; here it is ASCII.
fn text(store: &mut Vec<u8>, text: &str) {
    store.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    store.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

    use super::*;

    #[test]
    fn the_order_does_not_count_and_nothing_is_there_twice() {
        let all: Vec<&[u8]> = TLS_SERVER_ROOT_CERTS.iter().map(AsRef::as_ref).collect();
        let reversed = all.iter().rev().copied().chain([all[0]]);
        let store = trust_store(all.iter().copied());
        assert_eq!(store, trust_store(reversed));
        assert_eq!(store[..8], [0xfe, 0xed, 0xfe, 0xed, 0, 0, 0, 2]);
        assert!(store.len() < 256 * 1024, "{}", store.len());
    }

    #[test]
    fn a_jvm_reads_it() {
        let store = tempfile::NamedTempFile::new().unwrap();
        let all = TLS_SERVER_ROOT_CERTS.iter().map(AsRef::as_ref);
        std::fs::write(store.path(), trust_store(all)).unwrap();
        let mut keytool = Command::new("keytool");
        keytool.args(["-list", "-storepass", PASSWORD, "-keystore"]).arg(store.path());
        let Ok(output) = keytool.output() else { return eprintln!("SKIPPED: keytool is not on this machine") };
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && said.matches("trustedCertEntry").count() == TLS_SERVER_ROOT_CERTS.len(),
            "{said}"
        );
    }
}
