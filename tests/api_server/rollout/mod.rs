//! Two configurations side by side, as in every rollout that changes one: of two revisions of the Deployment one writes,
//! and where there is no Deployment to tell, the brakes bound what a disagreement costs.

mod binaries;
mod contention;
mod history;
mod leftovers;
mod revisions;
mod transitions;

use crate::{
    BINARY,
    mission::{CERTS, TRUST},
};

const APP: &str = "gitlab-runner-webhook";
