//! Plots of a run as images: its loss curve, and its sample grids over time.

mod canvas;
mod curve;
mod strip;

pub use curve::LossCurve;
pub use strip::Strip;
