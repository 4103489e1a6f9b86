//! How the program's own Deployment does, by its status. PURE.

use serde_json::Value;

use crate::json::{at, items};

/// A Deployment on its way to the replicas that it is to have.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    /// How many replicas there are to be.
    pub wanted: i64,
    /// How many there are, of any version.
    pub total: i64,
    /// How many serve.
    pub available: i64,
    /// How many are of the latest version of its template.
    pub updated: i64,
    /// Whether these numbers are about its latest version.
    pub is_observed: bool,
    /// The version of the program, by its label.
    pub version: Option<String>,
    /// What its conditions say is wrong.
    pub problem: Option<String>,
}

impl Rollout {
    /// Reads a Deployment.
    pub fn of(deployment: &Value) -> Self {
        let number = |path: &[&str]| at(deployment, path).as_i64();
        let status = |field: &str| number(&["status", field]).unwrap_or_default();
        let is_bad = |condition: &&Value| match at(condition, &["type"]).as_str() {
            Some("ReplicaFailure") => at(condition, &["status"]) == "True",
            Some("Available" | "Progressing") => at(condition, &["status"]) == "False",
            _ => false,
        };
        // The most telling first.
        let mut problems: Vec<_> = items(at(deployment, &["status", "conditions"])).filter(is_bad).collect();
        problems.sort_by_key(|condition| at(condition, &["type"]) != "ReplicaFailure");
        let word = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            wanted: number(&["spec", "replicas"]).unwrap_or(1),
            total: status("replicas"),
            available: status("availableReplicas"),
            updated: status("updatedReplicas"),
            is_observed: status("observedGeneration") >= number(&["metadata", "generation"]).unwrap_or_default(),
            version: word(at(deployment, &["metadata", "labels", "app.kubernetes.io/version"])),
            problem: problems.first().and_then(|condition| word(at(condition, &["message"]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_read_with_its_most_telling_problem() {
        let condition = |kind: &str, status: &str| json!({"type": kind, "status": status, "message": kind});
        let rollout = Rollout::of(&json!({
            "metadata": {"generation": 3, "labels": {"app.kubernetes.io/version": "1.2.3"}},
            "spec": {"replicas": 4},
            "status": {
                "observedGeneration": 2, "replicas": 5, "availableReplicas": 1, "updatedReplicas": 2,
                "conditions": [
                    condition("Available", "True"), condition("Progressing", "False"), condition("ReplicaFailure", "True"),
                ],
            },
        }));
        assert_eq!((rollout.wanted, rollout.total, rollout.available, rollout.updated), (4, 5, 1, 2));
        assert_eq!((rollout.version.as_deref(), rollout.problem.as_deref()), (Some("1.2.3"), Some("ReplicaFailure")));
        assert!(!rollout.is_observed);
        let new = Rollout::of(&json!({"spec": {}}));
        assert_eq!((new.wanted, new.available, new.is_observed, new.problem), (1, 0, true, None));
    }
}
