//! The course of a run as pictures: its loss curve, and its sample grids over time.

mod canvas;
mod curve;
mod strip;

pub use curve::LossCurve;
pub use strip::Strip;
