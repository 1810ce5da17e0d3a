//! The margins, and what is assumed: all of it is here, and `tiny-cats plan` says it.

/// A run's timeout is what it should take, times this.
pub const TIMEOUT_MARGIN: f64 = 1.2;

/// From a container's start to the first step: image, program and data are brought, pictures decoded. Assumed.
pub const START_S: f64 = 180.0;

/// How often a container is taken away. Everything but processors is preemptible at Modal, which does not say how often it happens: assumed.
pub const PREEMPTIONS_AN_HOUR: f64 = 0.05;

/// What is paid for a preemption besides a new start: the seconds that a container has left to save.
pub const PREEMPTED_S: f64 = 30.0;

/// A run is to be done in the morning: the cheapest GPU that takes no longer is chosen, or where none is, the fastest.
pub const OVERNIGHT_H: f64 = 12.0;

/// The share of a GPU's speed that one of several adds, gradients being exchanged after each step. Assumed.
pub const MULTI_GPU_EFFICIENCY: f64 = 0.9;

/// Nanoseconds in which one core prepares a value of a picture for the generator, which takes noise, and for the classifier: measured by
/// `plan --calibrate` on a core of an AMD EPYC (Zen 4), 2026-11-24, 24 to 35 and 5.5 to 5.9 at 32 to 128 pixels.
pub const PREPARE_NS: [f64; 2] = [25.0, 6.0];
