//! Keeps GitLab Runner's token Secret and CA certificates where its pods need them.
//!
//! One process, two flows, each one way, but for what the gate reads and the watches do not know:
//!
//! ```text
//!   API server ──watch──▶ stores (Observed) ──plan──▶ Plan ──write──▶ API server           sync
//!                           │
//!                       Snapshot         (the one place where the flows meet)
//!                           │
//!   API server ──review──▶ inject, gate or warn ──▶ response                              admission
//! ```
//!
//! **Sync** ([`sync`]) keeps each *clone* (a Secret in a *runner namespace*) equal to its *source*. It is
//! level-triggered: an event only says "look again", and what is stored decides. A write happens after
//! a quorum read of the source that began later than the event; a create fails if the object exists, an update if it has
//! changed since it was seen. So several replicas need no leader.
//!
//! **Admission** ([`admission`], [`server`]) answers the API server's reviews from memory: certificates for
//! *manager pods* and *job pods*, a warning for a runner namespace whose source is missing. It writes
//! nothing; only the *gate* asks the API server, for pods that use a clone: are clone and source equal now?
//!
//! **Certificates** ([`pki`]) stand beside both: a loop keeps the serving CA in its Secret, the leaf in memory, and
//! `caBundle` in the webhook configurations in step.
//!
//! All may know `names` and the small ones without brackets.
//!
//! | module | what it is | may know |
//! |---|---|---|
//! | [`names`] | every name that code and manifests share | nothing |
//! | [`config`] | file and flags, parsed into what can be acted on | nothing |
//! | [`trust`] | what is known of `certsSecretName`, and the trust bundle that follows | `config` |
//! | [`cluster`] | clients, watches, requests, Events, what errors mean, which revision writes | `config`, `shutdown`, `telemetry` |
//! | [`snapshot`] | what the stores publish for admission | `config`, `trust` |
//! | [`sync`] | observe, plan, queue, write, driver; its subjects are clones and trust bundles | `cluster`, `config`, `shutdown`, `snapshot`, `telemetry`, `trust` |
//! | [`admission`] | review, kind, inject, namespace, gate | `cluster`, `config`, `snapshot`, `sync`, `telemetry`, `trust` |
//! | [`pki`] | our own CA, the leaf, `caBundle` | `cluster`, `config`, `server`, `shutdown`, `telemetry` |
//! | [`server`] | TLS, timers, caps, routes | `admission`, `cluster`, `config`, `shutdown`, `snapshot`, `telemetry` |
//! | [`telemetry`] | logs, metrics, health | `config` |
//! | [`shutdown`] | the phases from serving to stopped | nothing |
//! | `backoff`, `brake`, `crypto`, `digest`, `pem`, `wiped` | when something is tried or written again; cryptography, content, certificates, Secret data that is overwritten | nothing |
//! | [`run`] | puts the parts together | everything |
//!
//! Files that say PURE in their first line import no tokio, axum or kube client and take the time as an
//! argument; they are tested by tables and properties, the rest against a real API server.

pub mod admission;
mod backoff;
mod brake;
pub mod cluster;
pub mod config;
mod crypto;
mod digest;
#[cfg(test)]
mod explore;
pub mod names;
pub mod pem;
pub mod pki;
pub mod run;
pub mod server;
pub mod shutdown;
pub mod snapshot;
pub mod sync;
pub mod telemetry;
pub mod trust;
mod wiped;
