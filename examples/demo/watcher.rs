//! Sees objects change the moment the API server says so.

use std::{fmt::Debug, time::Duration};

use anyhow::{Context as _, Result, anyhow, bail};
use futures::{StreamExt as _, TryStreamExt as _};
use kube::{
    Api, Resource, ResourceExt as _,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::mpsc::{self, UnboundedReceiver},
    time::{Instant, timeout_at},
};

/// Far more than anything takes: reaching it is a failure.
const PATIENCE: Duration = Duration::from_mins(1);

/// An open watch, as admin. States wait in order until somebody asks for them.
pub struct Watcher<K> {
    states: UnboundedReceiver<(std::time::Instant, K)>,
}

impl<K> Watcher<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    /// Opens a watch, of all objects or of those of one name.
    pub async fn open(api: Api<K>, name: Option<&str>) -> Result<Self> {
        let config = name.map_or_else(watcher::Config::default, |name| {
            watcher::Config::default().fields(&format!("metadata.name={name}"))
        });
        let mut events = watcher::watcher(api, config).default_backoff().boxed();
        while let Some(event) = events.try_next().await? {
            if matches!(event, Event::InitDone) {
                break;
            }
        }
        let (sender, states) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                if let Ok(Event::Apply(object) | Event::InitApply(object)) = event
                    && sender.send((std::time::Instant::now(), object)).is_err()
                {
                    break;
                }
            }
        });
        Ok(Self { states })
    }

    /// The first state of which `wanted` is true, and when it came.
    pub async fn sees(&mut self, what: &str, wanted: impl Fn(&K) -> bool) -> Result<(std::time::Instant, K)> {
        let give_up = Instant::now() + PATIENCE;
        let mut last = None;
        loop {
            match timeout_at(give_up, self.states.recv()).await {
                Ok(Some((when, object))) if wanted(&object) => return Ok((when, object)),
                Ok(Some((_, object))) => last = Some(object.name_any()),
                Ok(None) => bail!("the watch ended before this was seen: {what}"),
                Err(_) => {
                    let last = last.map_or_else(|| "nothing".to_owned(), |name| format!("another state of {name}"));
                    let patience = PATIENCE.as_secs();
                    return Err(anyhow!("not seen within {patience} s: {what} (last seen: {last})"));
                }
            }
        }
    }
}

/// The version of an object, which grows with each change to it.
pub fn version<K: Resource>(object: &K) -> Result<u64> {
    let version = object.meta().resource_version.as_deref().context("an object of the API server has a version")?;
    version.parse().with_context(|| format!("the version {version:?} is a number"))
}
