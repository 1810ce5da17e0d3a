//! The margins and assumptions of all estimates, which `tiny-cats plan` prints.

/// Factor on the expected duration of a run that gives its timeout.
pub const TIMEOUT_MARGIN: f64 = 1.2;

/// Seconds from a container's start to the first step: loading image, program and data, and decoding images. Assumed.
pub const START_S: f64 = 180.0;

/// Preemptions of a container per hour. At Modal, everything except CPUs is preemptible, at an unpublished rate. Assumed.
pub const PREEMPTIONS_PER_HOUR: f64 = 0.05;

/// Billed seconds of a preemption in addition to a new start: the time that a container has to save its state.
pub const PREEMPTION_S: f64 = 30.0;

/// Hours of a run that finishes overnight: the cheapest GPU within this limit is chosen, or the fastest.
pub const OVERNIGHT_H: f64 = 12.0;

/// The relative speed of each of several GPUs, since gradients are exchanged after each step. Assumed.
pub const MULTI_GPU_EFFICIENCY: f64 = 0.9;

/// Nanoseconds for a CPU core to prepare a value of an image, for the generator, which needs noise, and for the classifier.
///
/// Measured by `plan --calibrate` on a core of an AMD EPYC (Zen 4), 2026-11-24: 24 to 35 and 5.5 to 5.9 at 32 to 128 pixels.
pub const PREPARE_NS: [f64; 2] = [25.0, 6.0];
