//! The networks that files may name by their kind.

use std::{
    any::TypeId,
    collections::BTreeMap,
    sync::{Arc, LazyLock, RwLock},
};

use serde_json::{Map, Value as Json};

use crate::{DynNetwork, Error, LoadableNetwork, Result};

type Parse = fn(&Map<String, Json>) -> Result<Arc<dyn DynNetwork>, String>;

struct Entry {
    type_id: TypeId,
    parse: Parse,
}

static REGISTRY: LazyLock<RwLock<BTreeMap<&'static str, Entry>>> = LazyLock::new(|| {
    #[cfg_attr(not(feature = "builtin"), allow(unused_mut))]
    let mut entries = BTreeMap::new();
    #[cfg(feature = "builtin")]
    {
        insert::<tiny_cats_models::TinyDitConfig>(&mut entries);
        insert::<tiny_cats_models::ResNetConfig>(&mut entries);
    }
    RwLock::new(entries)
});

fn insert<N: LoadableNetwork>(entries: &mut BTreeMap<&'static str, Entry>) {
    let parse: Parse = |fields| match serde_json::from_value::<N>(Json::Object(fields.clone())) {
        Ok(network) => Ok(Arc::new(network)),
        Err(e) => Err(e.to_string()),
    };
    entries.insert(N::KIND, Entry { type_id: TypeId::of::<N>(), parse });
}

/// Registers a network for this process, so that files that name its kind can be loaded by their definition, verified, and planned. Call it
/// once, at the start of the program. The networks of this project are registered already, unless the feature `builtin` is off.
///
/// # Errors
/// [`Error::Request`] if another type is registered under this kind.
pub fn register<N: LoadableNetwork>() -> Result<()> {
    let mut entries = REGISTRY.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    match entries.get(N::KIND) {
        Some(entry) if entry.type_id != TypeId::of::<N>() => {
            let message = format!("another network is registered as {}", N::KIND);
            Err(Error::request("kind", message))
        }
        Some(_) => Ok(()),
        None => {
            insert::<N>(&mut entries);
            Ok(())
        }
    }
}

/// Returns the kinds of all registered networks, sorted.
pub fn registered_kinds() -> Vec<&'static str> {
    let entries = REGISTRY.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    entries.keys().copied().collect()
}

/// Parses the configuration of a network; `None` if its kind is not registered.
pub(crate) fn parse(kind: &str, fields: &Map<String, Json>) -> Option<Result<Arc<dyn DynNetwork>, String>> {
    let entries = REGISTRY.read().unwrap_or_else(|poisoned| poisoned.into_inner());
    let parse = entries.get(kind)?.parse;
    drop(entries);
    Some(parse(fields))
}
