//! A session: two hellos over a TCP connection, then frames with the session's keys.

use std::{io, time::Duration};

use thiserror::Error;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

use super::wire::{
    FrameSigner, FrameVerifier, Hello, MAX_FRAME, MAX_HELLO, Message, PeerRefusal, Role,
    SessionKeys, common_protocol,
};
use crate::keys::PeerKeys;

/// How long the other side may take to send its hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_millis(700);

/// Why a session ends, or does not begin.
#[derive(Debug, Error)]
pub enum SessionError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(#[from] PeerRefusal),
    /// The listener does not send a reason.
    #[error(
        "it closed the connection without an answer: it has no [[peer]] with this manager's name, or another key \
         for it; its log says which"
    )]
    Unanswered,
    #[error("it has closed the connection")]
    Closed,
    #[error("it does not answer")]
    Silent,
}

/// An established session.
#[derive(Debug)]
pub struct Session {
    pub hello: Hello,
    pub protocol: u16,
    pub frames: FrameReader,
    pub writer: OwnedWriteHalf,
    pub signer: FrameSigner,
}

/// Opens a session with a peer of this name.
///
/// # Errors
///
/// Says why there is none.
pub async fn connect(
    stream: TcpStream,
    own: &Hello,
    keys: &PeerKeys,
    expected: &str,
) -> Result<Session, SessionError> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let key = keys.signing();
    let sent = own.sign(Role::Connector, key);
    writer.write_all(&sent).await?;
    let mut buffer = Vec::new();
    let answer = timeout(HELLO_TIMEOUT, read_hello(&mut reader, &mut buffer));
    let length = match answer.await.map_err(|_| SessionError::Silent)? {
        Err(SessionError::Closed) => return Err(SessionError::Unanswered),
        length => length?,
    };
    let keys_of = |name: &str| match name == expected {
        true => Ok(keys),
        false => Err(PeerRefusal::OtherName {
            name: name.to_owned(),
            expected: expected.to_owned(),
        }),
    };
    let received = &buffer[..length];
    let (hello, signed_with) = Hello::verify(received, Role::Listener, keys_of)?;
    if signed_with.id() != key.id() {
        return Err(PeerRefusal::OtherKey.into());
    }
    if hello.echoed_nonce != own.nonce {
        return Err(PeerRefusal::Replayed.into());
    }
    let protocol = common_protocol(hello.protocols)?;
    let (signer, verifier) = SessionKeys::derive(key, &sent, received).of(Role::Connector);
    Ok(Session {
        hello,
        protocol,
        frames: FrameReader::new(reader, buffer, length, verifier),
        writer,
        signer,
    })
}

/// Answers a connection. `keys_of` returns the keys of the peer with a name.
///
/// Only its first frame proves that the connector is not a replayed recording.
///
/// # Errors
///
/// Says why there is no session.
pub async fn accept<'k>(
    stream: TcpStream,
    own: &Hello,
    keys_of: impl FnOnce(&str) -> Result<&'k PeerKeys, PeerRefusal>,
) -> Result<Session, SessionError> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = stream.into_split();
    let mut buffer = Vec::new();
    let length = timeout(HELLO_TIMEOUT, read_hello(&mut reader, &mut buffer));
    let length = length.await.map_err(|_| PeerRefusal::Late)??;
    let received = &buffer[..length];
    let (hello, key) = Hello::verify(received, Role::Connector, keys_of)?;
    let answer = Hello {
        echoed_nonce: hello.nonce,
        ..own.clone()
    };
    let sent = answer.sign(Role::Listener, key);
    writer.write_all(&sent).await?;
    let protocol = common_protocol(hello.protocols)?;
    let (signer, verifier) = SessionKeys::derive(key, received, &sent).of(Role::Listener);
    Ok(Session {
        hello,
        protocol,
        frames: FrameReader::new(reader, buffer, length, verifier),
        writer,
        signer,
    })
}

/// Reads until the buffer holds a complete hello; returns its length.
async fn read_hello(
    reader: &mut OwnedReadHalf,
    buffer: &mut Vec<u8>,
) -> Result<usize, SessionError> {
    loop {
        if let Some(length) = Hello::length(buffer)?
            && buffer.len() >= length
        {
            return Ok(length);
        }
        buffer.reserve(MAX_HELLO);
        if reader.read_buf(buffer).await? == 0 {
            return Err(match buffer.is_empty() {
                true => SessionError::Closed,
                false => PeerRefusal::Cut.into(),
            });
        }
    }
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader {
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
    /// Number of bytes of the buffer that are read.
    read: usize,
    verifier: FrameVerifier,
}

impl FrameReader {
    fn new(reader: OwnedReadHalf, buffer: Vec<u8>, read: usize, verifier: FrameVerifier) -> Self {
        Self {
            reader,
            buffer,
            read,
            verifier,
        }
    }

    /// Waits for more bytes; returns their number.
    ///
    /// # Errors
    ///
    /// The connection has ended, perhaps within a frame.
    pub async fn read_more(&mut self) -> Result<usize, SessionError> {
        self.buffer.drain(..self.read);
        self.read = 0;
        // Room for the rest of the longest frame.
        self.buffer.reserve(MAX_FRAME);
        match self.reader.read_buf(&mut self.buffer).await? {
            0 if self.buffer.is_empty() => Err(SessionError::Closed),
            0 => Err(PeerRefusal::Cut.into()),
            bytes => Ok(bytes),
        }
    }

    /// Returns the next complete frame: its sequence and, if this memlb knows its type, its content.
    ///
    /// # Errors
    ///
    /// Says what is wrong with the frame. The session must end.
    pub fn next(&mut self) -> Result<Option<(u64, Option<Message>)>, PeerRefusal> {
        let Some((frame, length)) = self.verifier.verify(&self.buffer[self.read..])? else {
            return Ok(None);
        };
        let message = (frame.sequence, Message::decode(&frame)?);
        self.read += length;
        Ok(Some(message))
    }
}
