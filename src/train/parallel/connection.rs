//! The messages between two processes of a run: one byte for the kind, eight for the length, then the content.

use std::io::{self, Read, Write};

/// A connection for both directions.
pub(super) struct Connection {
    read: Box<dyn Read>,
    write: Box<dyn Write>,
}

/// A message between two processes.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    /// The run's position and settings, as JSON.
    Start(Vec<u8>),
    /// The process has its data and weights.
    Ready,
    /// The id of the NCCL communicator.
    #[cfg_attr(not(feature = "nccl"), allow(dead_code, reason = "only NCCL needs it"))]
    Id(Vec<u8>),
    /// A share of the step's loss, or its sum: memory was sufficient.
    Loss(f64),
    /// Memory was too small.
    OutOfMemory,
    /// A share of the gradients, or their sum.
    Values(Vec<f32>),
    /// The process ends with this error, transient or not.
    Failed { transient: bool, message: String },
}

/// Maximum bytes of a message without values, which is a page of settings.
pub(super) const MAX_MESSAGE_BYTES: usize = 1 << 20;

impl Connection {
    pub(super) fn new(read: impl Read + 'static, write: impl Write + 'static) -> Self {
        Self { read: Box::new(read), write: Box::new(write) }
    }

    /// The connection to the parent process, over standard input and output.
    pub(super) fn current_process() -> Self {
        Self::new(io::stdin(), io::stdout())
    }

    pub(super) fn send(&mut self, message: &Message) -> io::Result<()> {
        match message {
            Message::Start(bytes) => self.frame(b's', bytes),
            Message::Ready => self.frame(b'r', &[]),
            Message::Id(bytes) => self.frame(b'i', bytes),
            Message::Loss(loss) => self.frame(b'l', &loss.to_le_bytes()),
            Message::OutOfMemory => self.frame(b'o', &[]),
            Message::Values(values) => self.send_values(values),
            Message::Failed { transient, message } => {
                self.frame(b'f', &[&[u8::from(*transient)], message.as_bytes()].concat())
            }
        }
    }

    pub(super) fn send_values(&mut self, values: &[f32]) -> io::Result<()> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.frame(b'v', &bytes)
    }

    fn frame(&mut self, kind: u8, bytes: &[u8]) -> io::Result<()> {
        self.write.write_all(&[kind])?;
        self.write.write_all(&(bytes.len() as u64).to_le_bytes())?;
        self.write.write_all(bytes)?;
        self.write.flush()
    }

    /// Receives the next message, of at most `max` bytes or [`MAX_MESSAGE_BYTES`], if that is more.
    ///
    /// So an error message always fits.
    pub(super) fn receive(&mut self, max: usize) -> io::Result<Message> {
        let broken = |reason: &str| io::Error::new(io::ErrorKind::InvalidData, reason.to_owned());
        let (mut kind, mut len) = ([0], [0; 8]);
        self.read.read_exact(&mut kind)?;
        self.read.read_exact(&mut len)?;
        let len = usize::try_from(u64::from_le_bytes(len)).unwrap_or(usize::MAX);
        if len > max.max(MAX_MESSAGE_BYTES) {
            return Err(broken("message too long"));
        }
        let mut bytes = vec![0; len];
        self.read.read_exact(&mut bytes)?;
        Ok(match (kind[0], &bytes[..]) {
            (b's', _) => Message::Start(bytes),
            (b'r', []) => Message::Ready,
            (b'i', _) => Message::Id(bytes),
            (b'l', loss) => {
                Message::Loss(f64::from_le_bytes(loss.try_into().map_err(|_| broken("incomplete loss"))?))
            }
            (b'o', []) => Message::OutOfMemory,
            (b'v', bytes) => {
                let (values, []) = bytes.as_chunks::<4>() else { return Err(broken("incomplete value")) };
                Message::Values(values.iter().map(|&value| f32::from_le_bytes(value)).collect())
            }
            (b'f', [transient, message @ ..]) => {
                let message = String::from_utf8_lossy(message).into_owned();
                Message::Failed { transient: *transient == 1, message }
            }
            _ => return Err(broken("unknown kind of message")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_round_trip_and_invalid_ones_are_rejected() {
        let (read, write) = io::pipe().unwrap();
        let mut connection = Connection::new(read, write);
        let failed = Message::Failed { transient: true, message: "ä".into() };
        let values = Message::Values(vec![1.5, f32::MIN_POSITIVE, -0.0, f32::INFINITY]);
        for message in [Message::Start(vec![7]), Message::Ready, Message::Id(vec![]), Message::Loss(0.1)]
            .into_iter()
            .chain([Message::OutOfMemory, values, failed])
        {
            connection.send(&message).unwrap();
            assert_eq!(connection.receive(16).unwrap(), message);
        }
        let frame = |kind: u8, len: u64, bytes: &[u8]| [&[kind][..], &len.to_le_bytes(), bytes].concat();
        for bytes in [
            frame(b'x', 0, b""),
            frame(b'l', 3, b"abc"),
            frame(b'v', 5, b"abcde"),
            frame(b'f', 0, b""),
            frame(b'v', u64::MAX, b""),
            frame(b'r', 1, b"a"),
            frame(b'v', 8, b"abcd"),
            vec![b'r', 0],
            vec![],
        ] {
            let error = Connection::new(io::Cursor::new(bytes.clone()), io::sink()).receive(8);
            assert!(error.is_err(), "{bytes:?}");
        }
    }
}
