//! Downloading the files of a finished run.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tiny_cats_export::strip_temp_name;

use super::{CloudRun, CloudSettings, Error, Result, modal, volume::list_volume};
use crate::{
    checkpoint::verify::{VerifyOptions, verify},
    train::folder::{Lock, RunRecord},
};

/// The extensions of downloaded files.
const EXTENSIONS: [&str; 8] = [".pt", ".safetensors", ".json", ".jsonl", ".toml", ".log", ".png", ".onnx"];

/// The files of a run that were downloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedRun {
    /// The folder of the run on this machine.
    pub folder: PathBuf,
    /// The number of files.
    pub files: usize,
}

/// Downloads all files except training states to a temporary folder in `runs`, verifies the released files, and moves all files to the
/// run's folder in `runs`. Calls `on_verified` with the name of each verified file.
///
/// # Errors
/// If Modal cannot be reached, the run has not finished, the folder contains another run or is in use, or the downloaded files differ from
/// the released ones.
pub fn fetch(run: &CloudRun, runs: &Path, on_verified: &mut dyn FnMut(&str)) -> Result<FetchedRun> {
    let location = &run.location;
    if !run.is_finished() {
        let status = tiny_cats_export::escape(run.status(), 20).into_owned();
        let message = format!("expected a finished run, found {status} at step {}", run.steps());
        return Err(Error::state(&location.id, message));
    }
    let folder = runs.join(Path::new(&location.folder).file_name().unwrap_or_default());
    if let Ok(local) = RunRecord::load(&folder)
        && Some(local.started) != run.record.as_ref().map(|record| record.started)
    {
        return Err(Error::OtherRun { folder });
    }
    let (temp_folder, names) = download(run, runs)?;
    verify_released(&location.id, temp_folder.path(), &names, on_verified)?;
    std::fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    let lock = Lock::acquire(&folder)?;
    if lock.is_none() {
        let message = "another process trains in this folder";
        return Err(Error::state(folder.display().to_string(), message));
    }
    for name in &names {
        let to = folder.join(name);
        std::fs::rename(temp_folder.path().join(name), &to).map_err(Error::io(&to))?;
    }
    Ok(FetchedRun { folder, files: names.len() })
}

/// Downloads the files of a run to a new temporary folder in `runs`. Also returns their names.
fn download(run: &CloudRun, runs: &Path) -> Result<(TempDir, Vec<String>)> {
    let (location, volume) = (&run.location, CloudSettings::default().app.output_volume);
    let entries = list_volume(&volume, &format!("/runs/{}", location.folder))?;
    let files = entries.into_iter().filter(|(_, is_folder)| !is_folder).map(|entry| entry.0);
    let names: Vec<String> = files.filter(|name| is_wanted(name)).collect();
    std::fs::create_dir_all(runs).map_err(Error::io(runs))?;
    let temp_folder = tempfile::Builder::new().prefix(".fetch-").tempdir_in(runs);
    let temp_folder = temp_folder.map_err(strip_temp_name).map_err(Error::io(runs))?;
    for name in &names {
        let (from, to) = (format!("runs/{}/{name}", location.folder), temp_folder.path().join(name));
        modal::run_captured(&["volume", "get", &volume, &from, &to.to_string_lossy()])?;
        if !to.is_file() {
            return Err(Error::state(&location.id, format!("{name} was not downloaded")));
        }
    }
    Ok((temp_folder, names))
}

/// True for a file that is downloaded: all but training states, hidden files and those with an unusual name.
fn is_wanted(name: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    name.chars().all(is_safe)
        && !name.starts_with('.')
        && !name.contains("_step_")
        && EXTENSIONS.iter().any(|extension| name.ends_with(extension))
}

/// Verifies the released files of the run `id` among `names` in `folder`.
fn verify_released(
    id: &str,
    folder: &Path,
    names: &[String],
    on_verified: &mut dyn FnMut(&str),
) -> Result<()> {
    let is_released = |name: &&String| name.ends_with(".pt") || name.ends_with(".safetensors");
    let released: Vec<&String> = names.iter().filter(is_released).collect();
    if released.is_empty() {
        return Err(Error::state(id, "expected a released file, found none"));
    }
    for name in released {
        let report = verify(&folder.join(name), &VerifyOptions::default());
        if let Some(problem) = report.problems.first() {
            return Err(Error::state(name, format!("verification failed: {problem}")));
        }
        on_verified(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn training_states_and_unusual_names_are_not_downloaded() {
        for name in ["tinydit_final.pt", "run.json", "metrics.jsonl", "loss.png", "training.log"] {
            assert!(is_wanted(name), "{name}");
        }
        for name in
            ["dit_step_00001000.safetensors", ".lock.json", "a b.json", "../x.json", "parent.lock", "x.sh"]
        {
            assert!(!is_wanted(name), "{name}");
        }
    }
}
