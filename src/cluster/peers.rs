//! Which other replicas serve.

use std::time::Duration;

use k8s_openapi::api::core::v1::Endpoints;

use super::{Problem, Requests};
use crate::config::{NamespaceName, ServiceName};

/// Longest wait for the answer: the next look is due a second later.
const DEADLINE: Duration = Duration::from_millis(800);

/// The other replicas behind our own Service.
///
/// # RBAC
/// `get` of `endpoints` of the Service's name in our own namespace. Endpoints, and not their successor
/// `EndpointSlices`: those have generated names, which no role can be bound to.
pub struct Peers {
    requests: Requests,
    namespace: NamespaceName,
    service: ServiceName,
    pod: Option<String>,
}

impl Peers {
    /// Those behind this Service, other than the pod of this name; without one nobody can be told from ourselves.
    pub fn new(requests: Requests, namespace: NamespaceName, service: ServiceName, pod: Option<String>) -> Self {
        Self { requests: requests.within(DEADLINE), namespace, service, pod }
    }

    /// Whether another replica is known to serve.
    pub async fn serve(&self) -> bool {
        match self.ask().await {
            Ok(serve) => serve,
            Err(problem) => {
                tracing::info!(%problem, "not known whether another replica serves");
                false
            }
        }
    }

    async fn ask(&self) -> Result<bool, Problem> {
        let Some(pod) = &self.pod else { return Ok(false) };
        let endpoints = self.requests.get(&self.namespace, self.service.as_str()).await?;
        Ok(endpoints.is_some_and(|endpoints| has_another(&endpoints, pod)))
    }
}

/// Whether a pod other than this one is ready. A pod that terminates is not among the ready ones.
fn has_another(endpoints: &Endpoints, pod: &str) -> bool {
    let ready = endpoints.subsets.iter().flatten().flat_map(|subset| subset.addresses.iter().flatten());
    let mut pods =
        ready.filter_map(|address| address.target_ref.as_ref()).filter(|target| is("Pod", target.kind.as_ref()));
    pods.any(|target| target.name.is_some() && !is(pod, target.name.as_ref()))
}

fn is(wanted: &str, value: Option<&String>) -> bool {
    value.is_some_and(|value| value == wanted)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn another_one_is_a_ready_pod_of_another_name() {
        let pod = |name: &str| json!({"ip": "10.0.0.1", "targetRef": {"kind": "Pod", "name": name}});
        let table: [(Value, bool); 6] = [
            (json!({}), false),
            (json!({"subsets": [{"addresses": [pod("us")]}]}), false),
            (json!({"subsets": [{"addresses": [pod("us"), pod("them")]}]}), true),
            (json!({"subsets": [{"addresses": [pod("us")]}, {"addresses": [pod("them")]}]}), true),
            (json!({"subsets": [{"addresses": [pod("us")], "notReadyAddresses": [pod("them")]}]}), false),
            // Whoever wrote that by hand does not say who it is.
            (json!({"subsets": [{"addresses": [{"ip": "10.0.0.2"}]}]}), false),
        ];
        for (endpoints, expected) in table {
            let parsed = serde_json::from_value(endpoints.clone()).unwrap();
            assert_eq!(has_another(&parsed, "us"), expected, "{endpoints}");
        }
    }
}
