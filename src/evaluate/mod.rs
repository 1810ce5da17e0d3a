//! How good a trained network is.

mod confusion;

pub use confusion::Confusion;
