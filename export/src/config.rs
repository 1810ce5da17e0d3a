//! The configurations of networks, as files store them.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser::SerializeMap};
use serde_json::Value as Json;
use tiny_cats_models::{Network, ParamSpec, Role};

use crate::{DynNetwork, Error, LoadableNetwork, Result, excerpt, registry};

/// The configuration of a network of any kind, as files store it: its kind, and its fields. It is enough to build the definition again
/// if the kind is [registered](crate::register). Otherwise a program can run exported graphs of the network, and cannot verify them.
#[derive(Clone)]
pub struct NetworkConfig {
    kind: String,
    fields: Vec<(String, Json)>,
    network: Option<Arc<dyn DynNetwork>>,
}

/// The key of a network's kind.
const KIND: &str = "kind";

impl NetworkConfig {
    /// Returns the configuration of `network`. Its kind need not be registered.
    ///
    /// # Errors
    /// If the configuration does not serialize as a struct or map with string keys, or has a field called `kind`.
    pub fn new<N: LoadableNetwork>(network: N) -> Result<Self> {
        Self::from_dyn(Arc::new(network))
    }

    pub(crate) fn from_dyn(network: Arc<dyn DynNetwork>) -> Result<Self> {
        let fields = network.fields()?;
        if fields.iter().any(|(name, _)| name == KIND) {
            return Err(Error::file(network.kind(), "config", "expected no field called kind"));
        }
        Ok(Self { kind: network.kind().into(), fields, network: Some(network) })
    }

    /// Returns the kind of the network.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Returns the network.
    ///
    /// # Errors
    /// [`Error::UnknownKind`] if its kind is not registered.
    pub fn network(&self) -> Result<&dyn DynNetwork> {
        self.network.as_deref().ok_or_else(|| Error::UnknownKind { kind: self.kind.clone() })
    }

    /// True if the kind is registered, so that the definition is known.
    pub fn is_known(&self) -> bool {
        self.network.is_some()
    }

    /// Returns the network as an `N`, if that is its type.
    pub fn downcast<N: Network>(&self) -> Option<&N> {
        self.network.as_deref()?.as_any().downcast_ref()
    }

    /// Returns the role of the network; [`Role::Other`] if its kind is not registered.
    pub fn role(&self) -> Role {
        self.network.as_deref().map_or(Role::Other, DynNetwork::role)
    }

    /// Returns the parameters of the network.
    ///
    /// # Errors
    /// As [`network`](Self::network), and if the configuration is invalid.
    pub fn specs(&self) -> Result<Vec<ParamSpec>> {
        self.network()?.specs()
    }

    /// Reads a configuration. A registered network is built from the fields, and is not validated yet.
    fn from_json(json: Json) -> Result<Self, String> {
        let Json::Object(mut fields) = json else {
            return Err(format!("expected a map, found {}", excerpt(&json.to_string())));
        };
        let kind = match fields.remove(KIND) {
            Some(Json::String(kind)) => kind,
            Some(other) => {
                return Err(format!("kind: expected a name, found {}", excerpt(&other.to_string())));
            }
            None => return Err("missing field `kind`".into()),
        };
        match registry::parse(&kind, &fields) {
            Some(network) => Self::from_dyn(network?).map_err(|e| e.to_string()),
            None => Ok(Self { kind, fields: fields.into_iter().collect(), network: None }),
        }
    }
}

impl PartialEq for NetworkConfig {
    fn eq(&self, other: &Self) -> bool {
        let sorted = |config: &Self| {
            let mut fields = config.fields.clone();
            fields.sort_by(|a, b| a.0.cmp(&b.0));
            fields
        };
        self.kind == other.kind && sorted(self) == sorted(other)
    }
}

impl fmt::Debug for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct(&self.kind);
        for (name, value) in &self.fields {
            out.field(name, value);
        }
        out.finish()
    }
}

impl fmt::Display for NetworkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.network {
            Some(network) => f.write_str(&network.describe()),
            None => write!(f, "a network of the unknown kind {}", excerpt(&self.kind)),
        }
    }
}

impl Serialize for NetworkConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1 + self.fields.len()))?;
        map.serialize_entry(KIND, &self.kind)?;
        self.fields.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for NetworkConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_json(Json::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
