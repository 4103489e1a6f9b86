//! The warning at the start of the program: what is installed does not follow from its configuration.

use std::{sync::Arc, time::Duration};

use k8s_openapi::api::{
    admissionregistration::v1::{
        MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
        ValidatingWebhookConfiguration,
    },
    authentication::v1::SelfSubjectReview,
    authorization::v1::{ResourceRule, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec},
    rbac::v1::PolicyRule,
};
use kube::Resource;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time;

use super::{
    Program, Role, differences,
    expected::roles,
    rights::{Needed, Right, expand, told},
};
use crate::{
    cluster::{Problem, Reason, Requests},
    config::{Config, NamespaceName},
    names::GUARDS,
    shutdown::Shutdown,
};

/// Between two looks. Somebody may be applying the manifests right now: what disagrees is told when two looks agree.
const PAUSE: Duration = Duration::from_secs(10);
/// Looks at most, while what they find goes on changing.
const LOOKS: usize = 6;

/// Looks at what is installed until that is settled, and says what does not follow from the configuration.
pub struct AtStart {
    config: Arc<Config>,
    program: Program,
    requests: Requests,
}

/// An object, and what is wrong with it.
type Disagreement = (String, String);

impl AtStart {
    /// Of the program as it was started.
    pub fn new(config: Arc<Config>, program: Program, requests: Requests) -> Self {
        Self { config, program, requests }
    }

    /// Says it, and then does nothing until shutdown.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        tokio::select! {
            () = shutdown.requested() => return,
            () = self.tell() => {}
        }
        shutdown.requested().await;
    }

    async fn tell(&mut self) {
        let mut found = self.patient_look().await;
        for _ in 1..LOOKS {
            if found.is_empty() {
                break;
            }
            time::sleep(PAUSE).await;
            let former = std::mem::replace(&mut found, self.patient_look().await);
            if former == found {
                break;
            }
        }
        for (object, disagreement) in &found {
            let mend = "gitlab-runner-webhook check";
            tracing::warn!(object, disagreement, mend, "does not follow from the configuration");
        }
        if found.is_empty() {
            tracing::info!("webhooks, guards and rights follow from the configuration");
        }
    }

    async fn patient_look(&mut self) -> Vec<Disagreement> {
        loop {
            match self.look().await {
                Ok(found) => return found,
                Err(problem) => {
                    tracing::debug!(detail = %problem, "what is installed could not be looked at");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }

    async fn look(&mut self) -> Result<Vec<Disagreement>, Problem> {
        let mut found = Vec::new();
        let name = self.program.webhook_configuration.clone();
        let of_webhooks = |object: &serde_json::Value, kind: &str| {
            differences::of_webhooks(kind, object, &self.program, &self.config)
        };
        found.extend(self.compare::<MutatingWebhookConfiguration>(&name, of_webhooks).await?);
        found.extend(self.compare::<ValidatingWebhookConfiguration>(&name, of_webhooks).await?);
        let Some(account) = self.own_account().await? else { return Ok(found) };
        self.program.service_account = account;
        for name in GUARDS {
            let of_guard = |object: &serde_json::Value, kind: &str| {
                differences::of_guard(kind, name, object, &self.program, &self.config)
            };
            found.extend(self.compare::<ValidatingAdmissionPolicy>(name, of_guard).await?);
            found.extend(self.compare::<ValidatingAdmissionPolicyBinding>(name, of_guard).await?);
        }
        found.extend(self.rights().await?);
        Ok(found)
    }

    /// Whoever may not read an object cannot tell; that the right is missing is told with the rights.
    async fn compare<K>(
        &self,
        name: &str,
        differences: impl Fn(&serde_json::Value, &str) -> Vec<String>,
    ) -> Result<Option<Disagreement>, Problem>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
    {
        let kind = K::kind(&());
        let object = match self.requests.get_cluster::<K>(name).await {
            Err(problem) if problem.reason == Reason::Forbidden => return Ok(None),
            object => object?,
        };
        let disagreement = match object.and_then(|object| serde_json::to_value(object).ok()) {
            None => "is not there".to_owned(),
            Some(there) => match differences(&there, &kind) {
                differing if differing.is_empty() => return Ok(None),
                differing => format!("differs in {}", differing.join(", ")),
            },
        };
        Ok(Some((format!("{kind} {name}"), disagreement)))
    }

    /// Our `ServiceAccount`; `None`: we are somebody else, such as a developer with a kubeconfig.
    async fn own_account(&self) -> Result<Option<String>, Problem> {
        let review = self.requests.ask(&SelfSubjectReview::default()).await?;
        let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username).unwrap_or_default();
        let account = user.strip_prefix(&format!("system:serviceaccount:{}:", self.program.namespace));
        Ok(account.map(str::to_owned))
    }

    async fn rights(&self) -> Result<Vec<Disagreement>, Problem> {
        let own = &self.program.namespace;
        let Some(rules) = self.rules(own).await? else { return Ok(Vec::new()) };
        let in_own: Vec<Right> = expand(Some(own.as_str()), &rules).collect();
        let mut compared = Vec::new();
        for form in &roles(&self.program, &self.config) {
            // What is given in our own namespace may be given everywhere; what Roles elsewhere give is asked for there.
            let mut given: Vec<Right> = expand(None, &rules).collect();
            for namespace in namespaces(form).filter(|namespace| namespace != own) {
                let Some(there) = self.rules(&namespace).await? else { return Ok(Vec::new()) };
                given.extend(expand(Some(namespace.as_str()), &there));
            }
            let needed = Needed::of(form);
            let lacking: Vec<Right> = needed.missing(&given).into_iter().map(|(_, right)| right).collect();
            let surplus = in_own.iter().filter(|right| !needed.covers(right) && is_ours(form, right));
            let surplus: Vec<Right> = surplus.cloned().collect();
            let is_right = lacking.is_empty() && surplus.is_empty();
            compared.push([("lacks", lacking), ("may, without need,", surplus)]);
            if is_right {
                break;
            }
        }
        let least = compared.into_iter().min_by_key(|both| both.iter().map(|(_, rights)| rights.len()).sum::<usize>());
        let account = format!("ServiceAccount {own}/{}", self.program.service_account);
        let wrong = least.into_iter().flatten().filter(|(_, rights)| !rights.is_empty());
        let wrong = wrong
            .map(|(what, rights)| (account.clone(), format!("{what} {}", told(&rights.iter().collect::<Vec<_>>()))));
        Ok(wrong.collect())
    }

    /// What we may do in a namespace; `None`: the API server does not know all of it.
    async fn rules(&self, namespace: &NamespaceName) -> Result<Option<Vec<PolicyRule>>, Problem> {
        let spec = SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_string()) };
        let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
        let Some(status) = self.requests.ask(&review).await?.status else { return Ok(None) };
        let is_whole = !status.incomplete && status.evaluation_error.is_none();
        Ok(is_whole.then(|| status.resource_rules.into_iter().map(rule).collect()))
    }
}

fn rule(rule: ResourceRule) -> PolicyRule {
    let ResourceRule { api_groups, resource_names, resources, verbs } = rule;
    PolicyRule { api_groups, resource_names, resources, verbs, ..PolicyRule::default() }
}

fn namespaces(form: &[Role]) -> impl Iterator<Item = NamespaceName> {
    form.iter().filter_map(|role| role.named.namespace.as_deref()?.parse().ok())
}

/// Whether a right is on a kind of thing that we have to do with. What a cluster gives to everybody is not ours to judge.
fn is_ours(form: &[Role], right: &Right) -> bool {
    let mut resources = form.iter().flat_map(|role| &role.rules).flat_map(|rule| rule.resources.iter().flatten());
    right.resource.as_ref().is_none_or(|resource| resources.any(|ours| ours == resource))
}
