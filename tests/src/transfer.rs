//! Bulk data of which every byte is checked, and transfers that can be held half-way.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::Namespace;

/// How long a single step of [`transfer_both_ways`] may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

/// Downloads and uploads `size` bytes as a client whose server has this `root`, and looks at each of them.
///
/// # Errors
/// When one is refused, or does not arrive whole.
pub fn transfer_both_ways(
    client: &Namespace,
    service: SocketAddr,
    root: &Path,
    size: usize,
) -> Result<()> {
    let blob = random_bytes(7, size);
    fs::write(root.join("blob"), &blob)?;
    let (down, up) = client.enter(|| -> io::Result<_> {
        let download = Download::begin(service, "/blob", PATIENCE)?.finish()?;
        let upload = Upload::begin(service, "/upload/bulk", &blob, PATIENCE)?.finish()?;
        Ok((download, upload))
    })??;
    ensure!(down == blob, "the download is broken");
    ensure!(up.starts_with("HTTP/1.1 20"), "{up}");
    let uploaded = root.join("upload/bulk");
    ensure!(fs::read(&uploaded)? == blob, "the upload is broken");
    Ok(fs::remove_file(uploaded)?)
}

/// Returns bytes without any pattern, the same for the same `seed` (xorshift64*).
pub fn random_bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut state = 2 * seed + 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A download that goes on only as far as it is told.
#[derive(Debug)]
pub struct Download {
    stream: TcpStream,
    received: Vec<u8>,
}

impl Download {
    /// Asks `server` for `path`, from the namespace this thread is in. Every
    /// later step may take `patience` too before it fails.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub fn begin(server: SocketAddr, path: &str, patience: Duration) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: memlb\r\nConnection: close\r\n\r\n"
        )?;
        Ok(Self {
            stream,
            received: Vec::new(),
        })
    }

    /// Goes on until `bytes`, header included, are there. The server fills its
    /// and this end's buffers and then has to wait.
    ///
    /// # Errors
    /// When the connection breaks or ends first.
    pub fn go_on_to(&mut self, bytes: usize) -> io::Result<()> {
        let missing = bytes.saturating_sub(self.received.len());
        let start = self.received.len();
        self.received.resize(start + missing, 0);
        self.stream.read_exact(&mut self.received[start..])
    }

    /// Goes on to the end and returns the body.
    ///
    /// # Errors
    /// When the connection breaks, ends early, or the answer is not a page.
    pub fn finish(mut self) -> io::Result<Vec<u8>> {
        self.stream.read_to_end(&mut self.received)?;
        let Self { mut received, .. } = self;
        let broken = |what: &str| io::Error::new(ErrorKind::InvalidData, what.to_owned());
        let head = received
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .ok_or_else(|| broken("no header"))?;
        let text = String::from_utf8_lossy(&received[..head]).to_ascii_lowercase();
        if !text.starts_with("http/1.1 200 ") {
            return Err(broken(&text));
        }
        let length: usize = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length:"))
            .and_then(|length| length.trim().parse().ok())
            .ok_or_else(|| broken("no length"))?;
        received.drain(..head + 4);
        if received.len() == length {
            Ok(received)
        } else {
            Err(broken(&format!("{} bytes of {length}", received.len())))
        }
    }
}

/// An upload that goes on only as far as it is told.
#[derive(Debug)]
pub struct Upload<'a> {
    stream: TcpStream,
    rest: &'a [u8],
}

impl<'a> Upload<'a> {
    /// Announces `body` for `path` to `server`, from the namespace this thread
    /// is in. Every later step may take `patience` too before it fails.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub fn begin(
        server: SocketAddr,
        path: &str,
        body: &'a [u8],
        patience: Duration,
    ) -> io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&server, patience)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        write!(
            stream,
            "PUT {path} HTTP/1.1\r\nHost: memlb\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )?;
        Ok(Self { stream, rest: body })
    }

    /// Sends the next `bytes`.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn send(&mut self, bytes: usize) -> io::Result<()> {
        let (now, later) = self.rest.split_at(bytes.min(self.rest.len()));
        self.stream.write_all(now)?;
        self.rest = later;
        Ok(())
    }

    /// Sends all that is left, and returns the status line of the answer.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn finish(mut self) -> io::Result<String> {
        self.send(usize::MAX)?;
        let mut answer = Vec::new();
        self.stream.read_to_end(&mut answer)?;
        let line = answer.split(|byte| *byte == b'\r').next();
        Ok(String::from_utf8_lossy(line.unwrap_or_default()).into_owned())
    }
}
