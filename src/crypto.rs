//! The one cryptographic provider: AWS-LC. PURE.

use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// What all TLS of this process is made with, to the API server and from it.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}
