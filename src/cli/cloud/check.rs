//! `tiny-cats cloud check`: checks the requirements of training at Modal.

use std::process::ExitCode;

use super::{find_app, list_volume};
use crate::{
    cli::common::print,
    cloud::{CloudSettings, modal},
};

/// Prints a line for each check, and the command that fixes a failed one.
///
/// # Errors
/// If standard output cannot be written.
pub fn run() -> anyhow::Result<ExitCode> {
    let settings = CloudSettings::default();
    let mut ok = true;
    let mut print_check = |name: &str, result: Result<String, String>| {
        let (status, details) = match &result {
            Ok(details) => ("ok", details),
            Err(details) => ("missing", details),
        };
        ok &= result.is_ok();
        print(&format!("{status:<10}{name:<16}{details}\n")).map(|()| result.is_ok())
    };
    let text = |error: modal::Error| error.to_string();
    let is_installed = print_check("modal", modal::version().map_err(text))?;
    if is_installed {
        print_check("app", check_app())?;
        let token = modal::run_captured(&["token", "info"]).map(|_| "logged in".to_owned());
        if print_check("token", token.map_err(text))? {
            let (data, outputs) = (&settings.app.data_volume, &settings.app.output_volume);
            print_check("data", check_data(data))?;
            let result = match list_volume(outputs, "/") {
                Err(modal::Error::NotFound(_)) => Ok(format!("the first run creates the volume {outputs}")),
                result => result.map(|_| format!("volume {outputs}")).map_err(text),
            };
            print_check("outputs", result)?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks that Modal's client can load the app, including the program for its image.
fn check_app() -> Result<String, String> {
    let app = find_app().map_err(|error| error.to_string())?;
    modal::run_app_captured(&app, &["check"]).map_err(|error| error.to_string())?;
    let program = app.program.as_ref().map_or_else(
        || "program built from this clone".to_owned(),
        |path| format!("program {}", path.display()),
    );
    Ok(format!("{}, {program}", app.file.display()))
}

fn check_data(volume: &str) -> Result<String, String> {
    let upload_command = format!("modal volume put {volume} data/cats /cats");
    match list_volume(volume, "/") {
        Ok(entries) if entries.is_empty() => {
            Err(format!("the volume {volume} is empty; run {upload_command}"))
        }
        Ok(entries) => {
            let folders: Vec<String> = entries
                .iter()
                .filter(|entry| entry.1)
                .map(|entry| format!("data/{}", entry.0.escape_debug()))
                .collect();
            Ok(format!("volume {volume}: {}", folders.join(", ")))
        }
        Err(modal::Error::NotFound(_)) => Err(format!(
            "the volume {volume} does not exist; run modal volume create {volume} && {upload_command}"
        )),
        Err(error) => Err(error.to_string()),
    }
}
