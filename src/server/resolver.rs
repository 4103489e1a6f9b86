//! The serving certificate, replaced while connections go on.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use crate::telemetry::metrics::Metrics;

/// A certificate to serve.
pub struct Served {
    /// Certificate chain and key.
    pub key: Arc<CertifiedKey>,
    /// When it expires, in seconds since the epoch.
    pub not_after: i64,
    /// Asked in each handshake: what to serve instead from now on, if this one is no longer valid and another can be
    /// had at once.
    pub successor: Option<Box<dyn Fn() -> Option<Served> + Send + Sync>>,
}

/// What is served in each handshake. There is nothing at first: handshakes fail.
pub struct Certificate {
    served: ArcSwapOption<Served>,
    metrics: Metrics,
}

impl Certificate {
    /// Nothing yet.
    pub fn new(metrics: Metrics) -> Arc<Self> {
        Arc::new(Self { served: ArcSwapOption::empty(), metrics })
    }

    /// Serves this from the next handshake on.
    pub fn set(&self, served: Served) {
        self.metrics.certificate_not_after.set(served.not_after);
        self.served.store(Some(Arc::new(served)));
    }

    /// What is served now.
    pub fn key(&self) -> Option<Arc<CertifiedKey>> {
        let served = self.served.load_full()?;
        match served.successor.as_ref().and_then(|successor| successor()) {
            Some(successor) => {
                let key = Arc::clone(&successor.key);
                self.set(successor);
                Some(key)
            }
            None => Some(Arc::clone(&served.key)),
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.key()
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").finish_non_exhaustive()
    }
}
