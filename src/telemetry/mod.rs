//! How the program explains itself: logs, metrics, health.

pub mod health;
pub mod logs;
pub mod metrics;
