//! `tiny-cats cloud check`: checks what training at Modal requires.

use std::process::ExitCode;

use super::{app, list_volume};
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
    let mut say = |name: &str, found: Result<String, String>| {
        let (word, about) = match &found {
            Ok(about) => ("ok", about),
            Err(about) => ("missing", about),
        };
        ok &= found.is_ok();
        print(&format!("{word:<10}{name:<16}{about}\n")).map(|()| found.is_ok())
    };
    let text = |error: modal::Error| error.to_string();
    let there = say("modal", modal::version().map_err(text))?;
    if there {
        say("app", check_app())?;
        let token = modal::run_captured(&["token", "info"]).map(|_| "somebody is logged in".to_owned());
        if say("token", token.map_err(text))? {
            let (data, outputs) = (&settings.app.data_volume, &settings.app.output_volume);
            say("data", check_data(data))?;
            let found = match list_volume(outputs, "/") {
                Err(modal::Error::NotFound(_)) => Ok(format!("the first run makes the volume {outputs}")),
                found => found.map(|_| format!("volume {outputs}")).map_err(text),
            };
            say("outputs", found)?;
        }
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Checks that Modal's client can load the whole app; this also checks the program for its image.
fn check_app() -> Result<String, String> {
    let app = app().map_err(|error| error.to_string())?;
    modal::run_app_captured(&app, &["check"]).map_err(|error| error.to_string())?;
    let program = app.program.as_ref().map_or_else(
        || "whose program is built from this clone".to_owned(),
        |path| format!("with {}", path.display()),
    );
    Ok(format!("{}, {program}", app.file.display()))
}

fn check_data(volume: &str) -> Result<String, String> {
    let put = format!("modal volume put {volume} data/cats /cats");
    match list_volume(volume, "/") {
        Ok(entries) if entries.is_empty() => Err(format!("the volume {volume} is empty: {put}")),
        Ok(entries) => {
            let folders: Vec<String> = entries
                .iter()
                .filter(|entry| entry.1)
                .map(|entry| format!("data/{}", entry.0.escape_debug()))
                .collect();
            Ok(format!("volume {volume}: {}", folders.join(", ")))
        }
        Err(modal::Error::NotFound(_)) => {
            Err(format!("there is no volume {volume}: modal volume create {volume} && {put}"))
        }
        Err(error) => Err(error.to_string()),
    }
}
