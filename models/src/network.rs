//! Every network that there is, by its configuration.

use serde::{Deserialize, Serialize};

use crate::{ParamSpec, ResNetConfig, Result, TinyDitConfig};

/// The configuration of a network, tagged with its kind, from which the definition can be built again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Network {
    /// A class-conditional generator.
    TinyDit(TinyDitConfig),
    /// A classifier.
    #[serde(rename = "resnet")]
    ResNet(ResNetConfig),
}

impl Network {
    /// Every parameter of the network, in the order of its definition.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the configuration describes no network.
    pub fn specs(&self) -> Result<Vec<ParamSpec>> {
        match self {
            Network::TinyDit(config) => Ok(config.cost()?.params),
            Network::ResNet(config) => config.specs(),
        }
    }

    /// Number of classes that it draws or tells apart.
    pub fn classes(&self) -> usize {
        match self {
            Network::TinyDit(config) => config.classes,
            Network::ResNet(config) => config.classes,
        }
    }

    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the configuration describes no network.
    pub fn validate(&self) -> Result<()> {
        match self {
            Network::TinyDit(config) => config.validate(),
            Network::ResNet(config) => config.validate(),
        }
    }
}
