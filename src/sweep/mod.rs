//! Sweeps: one training with many settings, by a file that says which.
//!
//! ```toml
//! task = "dit"                 # or "classifier"
//! data = "data/cats"           # unset, what `train` takes
//! config = "smoke"             # a profile or file for `train --config`; may be left out
//! method = "grid"              # every combination; or "random", which needs `jobs` and takes `seed` (0)
//! metric = "validation_loss"   # what decides; a classifier's default is "validation_accuracy"
//! goal = "min"                 # or "max"; unset, by the metric's name
//!
//! [fixed]                      # flags of `train` without their dashes; `true` for one that takes no value
//! steps = 200
//!
//! [sweep]
//! lr = [1e-4, 3e-4, 1e-3]                                       # one of these
//! weight-decay = { low = 1e-4, high = 1e-1, scale = "log" }     # with "random": between these
//! ```
//!
//! `lr = { values = […] }` is the same as a list. A range of whole numbers has whole numbers, both ends among them; `scale` is `"linear"`
//! unless it is said otherwise. Paths are as on the command line, from where it is called.
//!
//! A file is [jobs](Sweep::jobs): each the arguments of one call of `tiny-cats`, and a name that depends on nothing but these. They can be
//! run anywhere; [`Runner`] does it here, one after the other.
//!
//! **What is drawn at random** for the key `k` of draw `i` is of stream `i` of [`Purpose::Order`](tiny_cats_models::random::Purpose), whose
//! seed is the first 8 bytes, little-endian, of the SHA-256 of `tiny-cats sweep`, the sweep's seed (8 bytes, little-endian) and `k`: other
//! keys change nothing. A uniform number `u` in (0, 1] makes `low + u (high − low)`, or with logarithms `low (high / low)^u`, rounded to
//! six digits (or a whole number) and kept within the range; of values, one is chosen. A draw that equals an earlier one is passed over.
//!
//! **The folder of a sweep** is `RUNS/sweeps/NAME`, where `NAME` is that of its file:
//!
//! ```text
//!     sweep.json            what is asked, and how each job stands; written anew, whole, whenever a job begins or ends
//!     lock                  held while a process works here
//!     JOB/lock              held by the job's process
//!     JOB/output.log        what the job said
//!     JOB/ID/               its run; JOB is its `--runs-dir`
//!     JOB/*.pt, *.safetensors   what it released
//! ```

mod error;
mod file;
mod job;
mod run;
mod state;

pub use error::{Error, Result};
pub use file::{Method, SearchSpace, Setting, Sweep, TaskKind};
pub use job::Job;
pub use run::{LOG, Runner, StopSignal, SweepEvent, SweepResult};
pub use state::{JobStatus, Outcome, STATE_FILE, SweepState};

/// The folder of all sweeps, among the runs.
pub const SWEEPS: &str = "sweeps";
