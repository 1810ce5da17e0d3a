//! Calls of Modal's command line, which does all work at Modal. It stores the token; this program never reads it.

use std::{
    io,
    process::{Command, ExitStatus, Stdio},
};

use super::{ModalApp, app::BINARY};

/// The oldest client that the app supports.
const MIN_VERSION: [u32; 2] = [1, 6];
const PROGRAM: &str = "modal";

/// An error of Modal's command line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program `modal` is not installed.
    #[error("the program modal was not found; run pip install 'modal>={}.{}'", MIN_VERSION[0], MIN_VERSION[1])]
    Missing,
    /// The program `modal` is too old.
    #[error("modal {0} is too old; run pip install --upgrade 'modal>={1}.{2}'", found, MIN_VERSION[0], MIN_VERSION[1])]
    Old {
        /// The installed version.
        found: String,
    },
    /// The user is not logged in.
    #[error("modal: not logged in; run modal token new")]
    Token,
    /// Modal's servers cannot be reached.
    #[error("modal: cannot reach the servers; check the network")]
    Network,
    /// A file, volume or other object does not exist.
    #[error("modal: {0}")]
    NotFound(String),
    /// Any other error.
    #[error("modal {command}: {message}")]
    Failed {
        /// The first words of the arguments.
        command: String,
        /// The last line of the output.
        message: String,
    },
}

/// The result of a call of `modal`.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Returns Modal's version if it is new enough.
///
/// # Errors
/// Returns an error if `modal` is missing or too old.
pub fn version() -> Result<String> {
    let output = run_captured(&["--version"])?;
    let output = String::from_utf8_lossy(&output);
    let version = output.split_whitespace().next_back().unwrap_or_default().to_owned();
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().unwrap_or(0));
    let found = [numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)];
    if found < MIN_VERSION { Err(Error::Old { found: version }) } else { Ok(version) }
}

/// Checks that `modal` is installed, new enough and logged in.
///
/// # Errors
/// Returns an error if it is not, or if Modal cannot be reached.
pub fn check_login() -> Result<()> {
    version()?;
    run_captured(&["token", "info"]).map(|_| ())
}

/// Calls `modal ARGUMENTS` and returns its output.
///
/// # Errors
/// Returns the error that `modal` reports if it fails.
pub fn run_captured(arguments: &[&str]) -> Result<Vec<u8>> {
    output(command(arguments), arguments)
}

/// Calls `modal run APP ARGUMENTS` and returns its output.
///
/// # Errors
/// Returns errors as [`run_captured`] does.
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

/// Calls `modal ARGUMENTS` with the terminal of this program.
///
/// # Errors
/// Returns an error if `modal` cannot be started.
pub fn run(arguments: &[&str]) -> Result<ExitStatus> {
    command(arguments).status().map_err(|e| spawn_error(arguments, &e))
}

/// Calls `modal ARGUMENTS`, which concern the app, with this program's terminal.
///
/// # Errors
/// Returns errors as [`run`] does.
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
    // A wide terminal keeps messages on one line.
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

/// Converts the messages of a failed call to an error.
fn parse_error(arguments: &[&str], output: &str, status: ExitStatus) -> Error {
    let lowercase = output.to_lowercase();
    let contains_any = |words: &[&str]| words.iter().any(|word| lowercase.contains(word));
    if contains_any(&[
        "token missing",
        "token validation",
        "unauthenticated",
        "invalid token",
        "must both be configured",
    ]) {
        return Error::Token;
    }
    if contains_any(&["could not connect", "connection refused", "name resolution", "network is unreachable"])
    {
        return Error::Network;
    }
    let line = output.lines().rev().find(|line| line.chars().any(char::is_alphanumeric));
    let message = line.map_or_else(|| status.to_string(), clean);
    let is_missing = contains_any(&["not found", "no such file", "does not exist"]);
    if is_missing && !message.starts_with("Environment") {
        return Error::NotFound(message);
    }
    Error::Failed { command: first_words(arguments), message }
}

/// Makes a line printable, and removes its frame and anything that may be a token.
fn clean(line: &str) -> String {
    let line = line.trim_matches(|c: char| c.is_whitespace() || ('\u{2500}'..='\u{257f}').contains(&c));
    let line = line.trim_start_matches("Error: ");
    // A word may contain a token anywhere; tokens have these prefixes.
    let has_token = |word: &str| {
        ["ak-", "as-"].iter().flat_map(|prefix| word.match_indices(prefix)).any(|(position, _)| {
            let is_word_start = !word[..position].ends_with(|c: char| c.is_ascii_alphanumeric());
            let token_chars = word[position + 3..].chars().take_while(|c| c.is_ascii_alphanumeric()).count();
            is_word_start && token_chars >= 8
        })
    };
    let words = line.split(' ').map(|word| if has_token(word) { "…" } else { word });
    let line: String = words.collect::<Vec<_>>().join(" ").chars().take(300).collect();
    line.escape_debug().to_string().replace("\\'", "'").replace("\\\"", "\"")
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn errors_are_parsed_and_tokens_are_removed() {
        let message_of =
            |output: &str| parse_error(&["volume", "ls", "x"], output, ExitStatus::from_raw(256)).to_string();
        // Messages of the client 1.6.4.
        let missing =
            "Error: Token missing. Could not authenticate client. If you have token credentials, see";
        assert!(message_of(missing).ends_with("modal token new"));
        assert!(message_of("Error: Could not connect to the Modal server.\n").contains("network"));
        assert_eq!(
            message_of("Error: Volume 'x' not found in environment 'main'."),
            "modal: Volume 'x' not found in environment 'main'."
        );
        assert_eq!(
            message_of("╭─ Error ─╮\n│ Something (ak-0123456789abc) else │\n╰─────╯\n"),
            "modal volume ls: Something … else"
        );
        let tokens = "token_id=ak-0123456789abcdef secret:as-0123456789abcdef break-0123456789 ok";
        assert_eq!(message_of(tokens), "modal volume ls: … … break-0123456789 ok");
        assert_eq!(
            message_of("Error: Environment 'prod' not found."),
            "modal volume ls: Environment 'prod' not found."
        );
        assert_eq!(message_of(""), "modal volume ls: exit status: 1");
        assert_eq!(message_of("Error: a\u{1b}[31m"), "modal volume ls: a\\u{1b}[31m");
    }
}
