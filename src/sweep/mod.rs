//! Sweeps: many runs with different settings, from one file.
//!
//! ```toml
//! task = "dit"                 # or "classifier"
//! data = "data/cats"           # default: that of `train`
//! config = "smoke"             # a profile or file for `train --config`; optional
//! method = "grid"              # every combination; or "random", which needs `jobs` and takes `seed` (default 0)
//! metric = "validation_loss"   # compares the runs; a classifier's default is "validation_accuracy"
//! goal = "min"                 # or "max"; default: derived from the name of the metric
//!
//! [fixed]                      # flags of `train` without their dashes; `true` for one without a value
//! steps = 200
//!
//! [sweep]
//! lr = [1e-4, 3e-4, 1e-3]                                       # one of these values
//! weight-decay = { low = 1e-4, high = 1e-1, scale = "log" }     # with "random": a range
//! ```
//!
//! `lr = { values = […] }` is the same as a list. A range of integers yields integers and includes both bounds. `scale` is `"linear"`
//! by default. Paths are as on the command line, relative to the current directory.
//!
//! A sweep consists of [jobs](Sweep::jobs), each with the arguments of `tiny-cats` and a name that depends only on these. They can run
//! on any machine; a [`Runner`] runs them on this one, one after the other.
//!
//! **Random values.** The value of key `k` in draw `i` comes from stream `i` of [`Purpose::Order`](tiny_cats_models::random::Purpose). The
//! stream's seed is the first 8 bytes, little-endian, of a SHA-256. The hashed bytes are `tiny-cats sweep`, the sweep's seed (8 bytes,
//! little-endian) and `k`, so other keys have no effect. A uniform number `u` in (0, 1] gives `low + u (high − low)`, or with a logarithmic
//! scale `low (high / low)^u`. It is rounded to six digits (or to an integer) and clamped to the range. From a list, one value is chosen. A
//! draw that equals an earlier one is skipped.
//!
//! **The folder of a sweep** is `RUNS/sweeps/NAME`, where `NAME` is the name of its file without extension:
//!
//! ```text
//!     sweep.json            the sweep and the state of each job; rewritten whenever a job starts or ends
//!     lock                  held while a process works in this folder
//!     JOB/lock              held by the job's process
//!     JOB/output.log        the output of the job
//!     JOB/ID/               its run; JOB is its `--runs-dir`
//!     JOB/*.pt, *.safetensors   its released files
//! ```

mod error;
mod file;
mod job;
mod run;
mod state;

pub use error::{Error, Result};
pub use file::{Method, SearchSpace, Setting, Sweep};
pub use job::Job;
pub use run::{LOG, Runner, StopSignal, SweepEvent, SweepResult};
pub use state::{JobStatus, Outcome, STATE_FILE, SweepState};

pub use crate::train::folder::SWEEPS;
