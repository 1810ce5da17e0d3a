//! The configurations of all networks.

use serde::{Deserialize, Serialize};

use crate::{ParamSpec, ResNetConfig, Result, TapeOptions, TinyDitConfig, cost::CostSummary};

/// The configuration of a network, tagged with its kind. It is enough to build the definition again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum NetworkConfig {
    /// A class-conditional generator.
    TinyDit(TinyDitConfig),
    /// A classifier.
    #[serde(rename = "resnet")]
    ResNet(ResNetConfig),
}

impl NetworkConfig {
    /// Returns every parameter of the network, in the order of its definition.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid.
    pub fn specs(&self) -> Result<Vec<ParamSpec>> {
        match self {
            NetworkConfig::TinyDit(config) => Ok(config.cost()?.params),
            NetworkConfig::ResNet(config) => config.specs(),
        }
    }

    /// Returns the parameters and the operations of one forward pass over an image of `side` pixels. A generator ignores `side`,
    /// and has an image size of its own.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if the configuration is invalid, [`Error::Shape`](crate::Error::Shape) for
    /// a size out of bounds.
    pub fn cost(&self, side: usize) -> Result<CostSummary> {
        match self {
            NetworkConfig::TinyDit(config) => config.cost(),
            NetworkConfig::ResNet(config) => config.cost(side),
        }
    }

    /// Returns the peak memory of one training step of `batch` such images, in bytes, without weights and batch.
    ///
    /// # Errors
    /// As [`cost`](Self::cost).
    pub fn training_bytes(&self, side: usize, batch: usize, options: TapeOptions) -> Result<u64> {
        match self {
            NetworkConfig::TinyDit(config) => config.training_bytes(batch, options),
            NetworkConfig::ResNet(config) => config.training_bytes(side, batch, options),
        }
    }

    /// Returns the number of classes that the network generates or classifies.
    pub fn classes(&self) -> usize {
        match self {
            NetworkConfig::TinyDit(config) => config.classes,
            NetworkConfig::ResNet(config) => config.classes,
        }
    }

    /// Checks the configuration.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config) if it is invalid.
    pub fn validate(&self) -> Result<()> {
        match self {
            NetworkConfig::TinyDit(config) => config.validate(),
            NetworkConfig::ResNet(config) => config.validate(),
        }
    }
}

impl std::fmt::Display for NetworkConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NetworkConfig::TinyDit(config) => config.fmt(f),
            NetworkConfig::ResNet(config) => config.fmt(f),
        }
    }
}
