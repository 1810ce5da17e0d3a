//! Every network that there is, by its configuration.

use serde::{Deserialize, Serialize};

use crate::{ParamSpec, Result, TinyDitConfig};

/// The configuration of a network, tagged with its kind, from which the definition can be built again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Network {
    /// A class-conditional generator.
    TinyDit(TinyDitConfig),
}

impl Network {
    /// Every parameter of the network, in the order of its definition.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the configuration describes no network.
    pub fn specs(&self) -> Result<Vec<ParamSpec>> {
        match self {
            Network::TinyDit(config) => Ok(config.cost()?.params),
        }
    }
}
