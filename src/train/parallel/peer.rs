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

/// A process that follows this one. It is ended when this is dropped.
pub(super) struct Peer {
    rank: usize,
    connection: Connection,
    child: Option<Child>,
}

impl Peer {
    /// Begins it; its log goes where this process's goes.
    pub(super) fn begin(rank: usize, mut command: Command) -> Result<Self> {
        let failed = |error: io::Error| Error::process(rank, format!("cannot be begun: {error}"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(io::ErrorKind::BrokenPipe.into()));
        };
        Ok(Self { rank, connection: Connection::new(output, input), child: Some(child) })
    }

    /// A thread that plays one.
    #[cfg(test)]
    pub(super) fn at(rank: usize, connection: Connection) -> Self {
        Self { rank, connection, child: None }
    }

    pub(super) fn send(&mut self, message: &Message) -> Result<()> {
        self.connection.send(message).map_err(|error| self.exit_error(error))
    }

    pub(super) fn send_values(&mut self, values: &[f32]) -> Result<()> {
        self.connection.send_values(values).map_err(|error| self.exit_error(error))
    }

    /// Waits until it has its data and weights.
    pub(super) fn ready(&mut self) -> Result<()> {
        match self.receive(MAX_MESSAGE_BYTES)? {
            Message::Ready => Ok(()),
            _ => Err(unexpected(self.rank)),
        }
    }

    /// Its share of the loss; none where memory was too small for it.
    pub(super) fn loss(&mut self) -> Result<Option<f64>> {
        match self.receive(MAX_MESSAGE_BYTES)? {
            Message::Loss(loss) => Ok(Some(loss)),
            Message::OutOfMemory => Ok(None),
            _ => Err(unexpected(self.rank)),
        }
    }

    /// Its `n` values.
    pub(super) fn values(&mut self, n: usize) -> Result<Vec<f32>> {
        match self.receive(n.saturating_mul(4))? {
            Message::Values(values) if values.len() == n => Ok(values),
            _ => Err(unexpected(self.rank)),
        }
    }

    /// Whether it still runs.
    #[cfg(feature = "nccl")]
    pub(super) fn check_alive(&mut self) -> Result<()> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(_))) => Err(self.exit_error(io::ErrorKind::BrokenPipe.into())),
            _ => Ok(()),
        }
    }

    fn receive(&mut self, most: usize) -> Result<Message> {
        match self.connection.receive(most) {
            Ok(Message::Failed { transient, message }) => {
                Err(Error::Process { rank: self.rank, message, transient })
            }
            Ok(message) => Ok(message),
            Err(error) => Err(self.lost(&error)),
        }
    }

    /// It does not listen any more: what it said last may say why.
    fn exit_error(&mut self, error: io::Error) -> Error {
        match self.connection.receive(MAX_MESSAGE_BYTES) {
            Ok(Message::Failed { transient, message }) => {
                Error::Process { rank: self.rank, message, transient }
            }
            _ => self.lost(&error),
        }
    }

    /// It is gone, or says what cannot be understood.
    fn lost(&mut self, error: &io::Error) -> Error {
        let how = match self.end() {
            Some(Ok(status)) if error.kind() != io::ErrorKind::InvalidData => status.to_string(),
            _ => error.to_string(),
        };
        Error::process(self.rank, format!("is gone ({how})"))
    }

    /// Ends it, unless it has ended; how it did.
    fn end(&mut self) -> Option<io::Result<std::process::ExitStatus>> {
        let child = self.child.as_mut()?;
        // It has nothing to save.
        let _ = child.kill();
        Some(child.wait())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
