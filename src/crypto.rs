//! The one cryptographic provider: AWS-LC, with feature `fips` its FIPS module. PURE.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// Why the cryptography of this process cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("this program was built with feature fips, and its cryptographic module is not in FIPS mode; build it anew")]
pub struct NotFips;

/// What all TLS of this process is made with, to the API server and from it.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Makes it the one that the kube client takes, which asks for the process-wide one. A second call changes nothing.
pub fn install() {
    let _ = Arc::unwrap_or_clone(provider()).install_default();
}

/// Whether the provider is in FIPS mode.
///
/// # Errors
/// It is not, and this program was built to be.
pub fn fips_mode() -> Result<bool, NotFips> {
    match provider().fips() {
        false if cfg!(feature = "fips") => Err(NotFips),
        mode => Ok(mode),
    }
}
