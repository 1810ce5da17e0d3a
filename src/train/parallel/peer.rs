//! Another process of the run, as process 0 sees it.

use std::{
    io,
    process::{Child, Command, Stdio},
};

use super::{
    connection::{Connection, MAX_MESSAGE_BYTES, Message},
    unexpected,
};
use crate::train::{Error, Result};

/// A child process that follows this one. Dropping it ends the process.
pub(super) struct Peer {
    rank: usize,
    connection: Connection,
    child: Option<Child>,
}

impl Peer {
    /// Starts the process; it inherits standard error.
    pub(super) fn start(rank: usize, mut command: Command) -> Result<Self> {
        let failed = |error: io::Error| Error::process(rank, format!("cannot be started: {error}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Self { rank, connection: Connection::new(output, input), child: Some(child) })
    }

    /// A peer that is a thread, for tests.
    #[cfg(test)]
    pub(super) fn from_connection(rank: usize, connection: Connection) -> Self {
        Self { rank, connection, child: None }
    }

    pub(super) fn send(&mut self, message: &Message) -> Result<()> {
        self.connection.send(message).map_err(|error| self.exit_error(error))
    }

    pub(super) fn send_values(&mut self, values: &[f32]) -> Result<()> {
        self.connection.send_values(values).map_err(|error| self.exit_error(error))
    }

    /// Waits until the process has its data and weights.
    pub(super) fn ready(&mut self) -> Result<()> {
        match self.receive(MAX_MESSAGE_BYTES)? {
            Message::Ready => Ok(()),
            _ => Err(unexpected(self.rank)),
        }
    }

    /// Receives its share of the loss; `None` if it ran out of memory.
    pub(super) fn loss(&mut self) -> Result<Option<f64>> {
        match self.receive(MAX_MESSAGE_BYTES)? {
            Message::Loss(loss) => Ok(Some(loss)),
            Message::OutOfMemory => Ok(None),
            _ => Err(unexpected(self.rank)),
        }
    }

    /// Receives its `n` values.
    pub(super) fn values(&mut self, n: usize) -> Result<Vec<f32>> {
        match self.receive(n.saturating_mul(4))? {
            Message::Values(values) if values.len() == n => Ok(values),
            _ => Err(unexpected(self.rank)),
        }
    }

    /// Checks that the process has not ended.
    #[cfg(feature = "nccl")]
    pub(super) fn check_alive(&mut self) -> Result<()> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(_))) => Err(self.exit_error(io::ErrorKind::BrokenPipe.into())),
            _ => Ok(()),
        }
    }

    fn receive(&mut self, max_bytes: usize) -> Result<Message> {
        match self.connection.receive(max_bytes) {
            Ok(Message::Failed { transient, message }) => {
                Err(Error::Process { rank: self.rank, message, transient })
            }
            Ok(message) => Ok(message),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// The error of a failed write: the last message of the process, if any, has the reason.
    fn exit_error(&mut self, error: io::Error) -> Error {
        match self.connection.receive(MAX_MESSAGE_BYTES) {
            Ok(Message::Failed { transient, message }) => {
                Error::Process { rank: self.rank, message, transient }
            }
            _ => self.lost(&error),
        }
    }

    /// The error of a process that has ended or sends messages that cannot be parsed.
    fn lost(&mut self, error: &io::Error) -> Error {
        let reason = match self.end() {
            Some(Ok(status)) if error.kind() != io::ErrorKind::InvalidData => status.to_string(),
            _ => error.to_string(),
        };
        Error::process(self.rank, format!("exited unexpectedly ({reason})"))
    }

    /// Ends the process unless it has ended, and returns its exit status.
    fn end(&mut self) -> Option<io::Result<std::process::ExitStatus>> {
        let child = self.child.as_mut()?;
        // A follower has nothing to save.
        let _ = child.kill();
        Some(child.wait())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
