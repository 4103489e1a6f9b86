//! Issues leaves, in the loop or in a handshake.

use std::sync::Arc;

use super::{
    authority::{Authority, AuthorityError, Leaf},
    clock::Clock,
    options::Options,
};
use crate::server::Served;

/// Issues leaves, in the loop or in a handshake.
#[derive(Clone)]
pub struct LeafIssuer {
    /// The CA.
    pub issuer: Arc<Authority>,
    /// Names and lifetimes.
    pub options: Options,
    /// The API server's.
    pub clock: Arc<Clock>,
}

impl LeafIssuer {
    /// A new leaf.
    ///
    /// # Errors
    /// It could not be issued.
    pub fn mint(&self) -> Result<Leaf, AuthorityError> {
        self.issuer.issue(&self.options.names, self.options.lifetimes.leaf, self.clock.now())
    }

    /// A leaf as it is served. A process that was stopped wakes up with an expired leaf, and a handshake may come before the loop's next look.
    pub fn served(&self, leaf: &Leaf) -> Served {
        let (minter, validity) = (self.clone(), leaf.validity);
        let successor = move || {
            let now = minter.clock.now();
            let can_help = !validity.holds(now) && minter.issuer.validity().holds(now);
            can_help.then(|| minter.mint().ok().map(|leaf| minter.served(&leaf))).flatten()
        };
        Served {
            key: Arc::clone(&leaf.key),
            not_after: leaf.validity.not_after.as_second(),
            successor: Some(Box::new(successor)),
        }
    }
}
