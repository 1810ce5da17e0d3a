//! Every network that there is, by its configuration.

use serde::{Deserialize, Serialize};

use crate::{ParamSpec, ResNetConfig, Result, TapeOptions, TinyDitConfig, cost::Ledger};

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

    /// Parameters, and operations of one forward pass over a picture of `side` pixels; a generator's pictures are of its own size.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) when the configuration describes no network, [`Error::Shape`](crate::Error::Shape) for a
    /// size out of bounds.
    pub fn cost(&self, side: usize) -> Result<Ledger> {
        match self {
            Network::TinyDit(config) => config.cost(),
            Network::ResNet(config) => config.cost(side),
        }
    }

    /// The most bytes that one training step of `batch` such pictures has in use, besides weights and batch.
    ///
    /// # Errors
    /// As [`cost`](Self::cost).
    pub fn training_bytes(&self, side: usize, batch: usize, options: TapeOptions) -> Result<u64> {
        match self {
            Network::TinyDit(config) => config.training_bytes(batch, options),
            Network::ResNet(config) => config.training_bytes(side, batch, options),
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

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Network::TinyDit(config) => config.fmt(f),
            Network::ResNet(config) => config.fmt(f),
        }
    }
}
