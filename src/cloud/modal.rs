//! Modal's command line, which does all that there is to do there. It keeps the token; this program never sees it.

use std::{
    io,
    process::{Command, ExitStatus, Stdio},
};

use super::{ModalApp, app::BINARY};

/// The oldest client that the app was written for.
const MIN_VERSION: [u32; 2] = [1, 6];
const PROGRAM: &str = "modal";

/// Why Modal could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no such program.
    #[error("the program modal is not found: pip install 'modal>={}.{}'", MIN_VERSION[0], MIN_VERSION[1])]
    Missing,
    /// It is too old.
    #[error("modal {0} is too old: pip install --upgrade 'modal>={1}.{2}'", found, MIN_VERSION[0], MIN_VERSION[1])]
    Old {
        /// Its version.
        found: String,
    },
    /// Nobody is logged in.
    #[error("modal: nobody is logged in: modal token new")]
    Token,
    /// Its servers are not reached.
    #[error("modal: its servers cannot be reached from here; is there a network?")]
    Network,
    /// What was asked for is not there.
    #[error("modal: {0}")]
    NotFound(String),
    /// Anything else.
    #[error("modal {command}: {message}")]
    Failed {
        /// What it was called with, the first words.
        command: String,
        /// What it said last.
        message: String,
    },
}

/// What came of asking Modal.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Modal's version, if it is new enough.
///
/// # Errors
/// When it is not there, or too old.
pub fn version() -> Result<String> {
    let said = run_captured(&["--version"])?;
    let said = String::from_utf8_lossy(&said);
    let version = said.split_whitespace().next_back().unwrap_or_default().to_owned();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    if found < MIN_VERSION { Err(Error::Old { found: version }) } else { Ok(version) }
}

/// What `modal ARGUMENTS` prints.
///
/// # Errors
/// When it fails, as far as what it says tells why.
pub fn run_captured(arguments: &[&str]) -> Result<Vec<u8>> {
    output(command(arguments), arguments)
}

/// What `modal run APP ARGUMENTS` prints.
///
/// # Errors
/// As [`ask`].
pub fn run_app_captured(app: &ModalApp, arguments: &[&str]) -> Result<Vec<u8>> {
    let file = app.file.to_string_lossy();
    let arguments = [&["run", &file], arguments].concat();
    output(app_command(app, &arguments), &arguments)
}

fn output(mut command: Command, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().map_err(|e| spawn_error(arguments, &e))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(parse_error(arguments, &String::from_utf8_lossy(&output.stderr), output.status))
}

/// Runs `modal ARGUMENTS` before the user's eyes.
///
/// # Errors
/// When it cannot be begun.
pub fn run(arguments: &[&str]) -> Result<ExitStatus> {
    command(arguments).status().map_err(|e| spawn_error(arguments, &e))
}

/// Runs `modal ARGUMENTS`, which are about the app, before the user's eyes.
///
/// # Errors
/// As [`run`].
pub fn run_app(app: &ModalApp, arguments: &[&str]) -> Result<ExitStatus> {
    app_command(app, arguments).status().map_err(|e| spawn_error(arguments, &e))
}

fn app_command(app: &ModalApp, arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    if let Some(program) = &app.program {
        command.env(BINARY, program);
    }
    command
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    // Messages are not to be broken into lines.
    command.args(arguments).env("COLUMNS", "1000");
    command
}

fn spawn_error(arguments: &[&str], error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::Missing,
        _ => Error::Failed { command: first_words(arguments), message: error.to_string() },
    }
}

fn first_words(arguments: &[&str]) -> String {
    arguments.iter().take(2).copied().collect::<Vec<_>>().join(" ")
}

/// What its messages mean.
fn parse_error(arguments: &[&str], said: &str, status: ExitStatus) -> Error {
    let lower = said.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| lower.contains(word));
    if has(&[
        "token missing",
        "token validation",
        "unauthenticated",
        "invalid token",
        "must both be configured",
    ]) {
        return Error::Token;
    }
    if has(&["could not connect", "connection refused", "name resolution", "network is unreachable"]) {
        return Error::Network;
    }
    let line = said.lines().rev().find(|line| line.chars().any(char::is_alphanumeric));
    let message = line.map_or_else(|| status.to_string(), clean);
    let is_missing = has(&["not found", "no such file", "does not exist"]);
    if is_missing && !message.starts_with("Environment") {
        return Error::NotFound(message);
    }
    Error::Failed { command: first_words(arguments), message }
}

/// A line as it can be shown: without the frame that is drawn around it, and without what may be a token.
fn clean(line: &str) -> String {
    let line = line.trim_matches(|c: char| c.is_whitespace() || ('\u{2500}'..='\u{257f}').contains(&c));
    let line = line.trim_start_matches("Error: ");
    // Tokens begin so, wherever they stand.
    let secret = |word: &str| {
        ["ak-", "as-"].iter().flat_map(|prefix| word.match_indices(prefix)).any(|(at, _)| {
            let begins = !word[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
            let rest = word[at + 3..].chars().take_while(|c| c.is_ascii_alphanumeric()).count();
            begins && rest >= 8
        })
    };
    let words = line.split(' ').map(|word| if secret(word) { "…" } else { word });
    let line: String = words.collect::<Vec<_>>().join(" ").chars().take(300).collect();
    line.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn what_modal_says_is_understood_and_no_token_is_repeated() {
        let why =
            |said: &str| parse_error(&["volume", "ls", "x"], said, ExitStatus::from_raw(256)).to_string();
        // As the client 1.6.4 says it.
        let missing =
            "Error: Token missing. Could not authenticate client. If you have token credentials, see";
        assert!(why(missing).ends_with("modal token new"));
        assert!(why("Error: Could not connect to the Modal server.\n").contains("network"));
        assert_eq!(
            why("Error: Volume 'x' not found in environment 'main'."),
            "modal: Volume 'x' not found in environment 'main'."
        );
        assert_eq!(
            why("╭─ Error ─╮\n│ Something (ak-0123456789abc) else │\n╰─────╯\n"),
            "modal volume ls: Something … else"
        );
        let tokens = "token_id=ak-0123456789abcdef secret:as-0123456789abcdef break-0123456789 ok";
        assert_eq!(why(tokens), "modal volume ls: … … break-0123456789 ok");
        assert_eq!(
            why("Error: Environment 'prod' not found."),
            "modal volume ls: Environment 'prod' not found."
        );
        assert_eq!(why(""), "modal volume ls: exit status: 1");
        assert_eq!(why("Error: a\u{1b}[31m"), "modal volume ls: a\\u{1b}[31m");
    }
}
