//! A server of echoes and of a byte pattern, both ways, that can be frozen on one host and go on on another one.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context, Result, anyhow};
use nix::poll::{PollFd, PollFlags, poll};
use socket2::{Domain, Socket, Type};

use super::checkpoint::Checkpoint;
use crate::{namespace::Namespace, notice::print_message, transfer::random_bytes};

/// A client that begins with this byte gets the pattern again and again.
pub const DOWNLOAD: u8 = b'd';
/// A client that begins with this byte sends the pattern again and again, and gets the number of its bytes (8 bytes,
/// big endian) when it ends. Any other client gets its bytes back.
pub const UPLOAD: u8 = b'u';
/// A client that begins with this byte gets a byte of the pattern at each turn of the server, every 20 ms or sooner.
pub const NEWS: u8 = b'n';
/// Length of the pattern, which is `random_bytes(PATTERN_SEED, PATTERN_BYTES)`. It is prime: a lost or repeated part
/// does not go unnoticed.
pub const PATTERN_BYTES: usize = 65_521;
pub const PATTERN_SEED: u64 = 7;
const TURN_MS: u16 = 20;
const BUFFER: usize = 16 * 1024;

/// A running server.
#[derive(Debug)]
pub struct Application {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Vec<Served>>>>,
    directory: PathBuf,
    port: u16,
}

/// A server between two hosts.
#[derive(Debug)]
pub struct Frozen {
    port: u16,
    connections: Vec<(Checkpoint, Task)>,
}

#[derive(Debug)]
struct Served {
    stream: TcpStream,
    task: Task,
}

/// What a client wants.
#[derive(Debug)]
enum Task {
    /// It has not said.
    Unknown,
    /// Its bytes back; these are not yet sent.
    Echo(Vec<u8>),
    /// The pattern, from here on.
    Download(usize),
    /// It sends the pattern, and has sent so much.
    Upload(u64),
    /// The pattern, slowly, from here on.
    News(usize),
}

impl Application {
    /// Starts a server in `namespace` on `port` of every address, over TCP and UDP.
    ///
    /// # Errors
    /// When the port is in use.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        Self::start_with(Some(namespace), port, Vec::new())
    }

    /// Starts such a server in the namespace of this thread.
    ///
    /// # Errors
    /// When the port is in use.
    pub fn start_here(port: u16) -> Result<Self> {
        Self::start_with(None, port, Vec::new())
    }

    fn start_with(
        namespace: Option<&Namespace>,
        port: u16,
        connections: Vec<(Checkpoint, Task)>,
    ) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let (serves, serving) = mpsc::channel();
        let work = move || {
            let mut server = ApplicationServer::open(port)?;
            for (checkpoint, task) in connections {
                let stream = checkpoint.restore()?;
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                server.connections.push(Served { stream, task });
            }
            serves.send(fs::read_link("/proc/thread-self")?)?;
            server.serve(&stopped)?;
            Ok(server.connections)
        };
        // Threads inherit the namespace of the thread that starts them, and here the table of open files, too.
        let thread = match namespace {
            Some(namespace) => namespace.enter(|| thread::spawn(work))?,
            None => thread::spawn(work),
        };
        let directory = serving.recv();
        let failed = directory.is_err();
        let mut application = Self {
            stop,
            thread: Some(thread),
            directory: directory.unwrap_or_default(),
            port,
        };
        if failed {
            application.end()?;
        }
        Ok(application)
    }

    /// Returns the directory below /proc of the thread that serves.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Takes the server off its host, with its connections. Their packets must not reach the host any more.
    ///
    /// # Errors
    /// When the server has failed, or a connection cannot be taken.
    pub fn freeze(mut self) -> Result<Frozen> {
        let served = self.end()?.into_iter();
        let take = |Served { stream, task }| Ok((Checkpoint::take(stream)?, task));
        Ok(Frozen {
            port: self.port,
            connections: served.map(take).collect::<Result<_>>()?,
        })
    }

    fn end(&mut self) -> Result<Vec<Served>> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return Ok(Vec::new());
        };
        thread.join().map_err(|_| anyhow!("the server panicked"))?
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            print_message(format_args!("the server has failed: {error:#}"));
        }
    }
}

impl Frozen {
    /// Goes on in `namespace`, which must have the server's address.
    ///
    /// # Errors
    /// When a connection cannot be restored.
    pub fn thaw(self, namespace: &Namespace) -> Result<Application> {
        Application::start_with(Some(namespace), self.port, self.connections)
    }

    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Returns how many bytes travel from host to host.
    pub fn bytes(&self) -> usize {
        let connections = self.connections.iter();
        connections.map(|(connection, _)| connection.bytes()).sum()
    }
}

struct ApplicationServer {
    listener: TcpListener,
    datagrams: UdpSocket,
    connections: Vec<Served>,
    pattern: Vec<u8>,
}

impl ApplicationServer {
    fn open(port: u16) -> Result<Self> {
        let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let listener = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        listener.set_reuse_address(true)?;
        listener
            .bind(&address.into())
            .with_context(|| format!("listen on port {port}"))?;
        listener.listen(1024)?;
        let datagrams = UdpSocket::bind(address)?;
        datagrams.set_nonblocking(true)?;
        Ok(Self {
            listener: listener.into(),
            datagrams,
            connections: Vec::new(),
            pattern: random_bytes(PATTERN_SEED, PATTERN_BYTES),
        })
    }

    fn serve(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.wait()?;
            self.accept()?;
            self.echo_datagrams()?;
            let pattern = &self.pattern;
            self.connections.retain_mut(|it| match it.proceed(pattern) {
                Ok(goes_on) => goes_on,
                Err(error) => error.kind() == ErrorKind::WouldBlock,
            });
        }
        Ok(())
    }

    fn wait(&self) -> Result<()> {
        let mut sockets = vec![
            PollFd::new(self.listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.datagrams.as_fd(), PollFlags::POLLIN),
        ];
        sockets.extend(self.connections.iter().map(|served| {
            let for_what = match &served.task {
                Task::Download(_) => PollFlags::POLLOUT,
                Task::Echo(rest) if !rest.is_empty() => PollFlags::POLLOUT,
                Task::Unknown | Task::Echo(_) | Task::Upload(_) | Task::News(_) => {
                    PollFlags::POLLIN
                }
            };
            PollFd::new(served.stream.as_fd(), for_what)
        }));
        match poll(&mut sockets, TURN_MS) {
            Err(nix::Error::EINTR) => Ok(()),
            other => Ok(other.map(drop)?),
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept a connection"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let task = Task::Unknown;
            self.connections.push(Served { stream, task });
        }
    }

    fn echo_datagrams(&self) -> Result<()> {
        let mut datagram = [0; 2048];
        loop {
            match self.datagrams.recv_from(&mut datagram) {
                Ok((length, client)) => {
                    // A client that is gone is not the server's fault.
                    _ = self.datagrams.send_to(&datagram[..length], client);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(error).context("receive a datagram"),
            }
        }
    }
}

impl Served {
    /// Does what is possible now. Returns whether the connection goes on.
    fn proceed(&mut self, pattern: &[u8]) -> io::Result<bool> {
        let mut buffer = [0; BUFFER];
        match &mut self.task {
            Task::Unknown => {
                let length = self.stream.read(&mut buffer)?;
                if length == 0 {
                    return Ok(false);
                }
                self.task = match buffer[0] {
                    DOWNLOAD => Task::Download(0),
                    UPLOAD => Task::Upload(verify(0, &buffer[1..length], pattern)?),
                    NEWS => Task::News(0),
                    _ => Task::Echo(buffer[..length].to_vec()),
                };
            }
            Task::Echo(rest) if !rest.is_empty() => {
                let written = self.stream.write(rest)?;
                rest.drain(..written);
            }
            Task::Echo(rest) => {
                let length = self.stream.read(&mut buffer)?;
                if length == 0 {
                    return Ok(false);
                }
                rest.extend(&buffer[..length]);
            }
            Task::Upload(position) => {
                let length = self.stream.read(&mut buffer)?;
                if length == 0 {
                    self.stream.write_all(&position.to_be_bytes())?;
                    return Ok(false);
                }
                *position = verify(*position, &buffer[..length], pattern)?;
            }
            Task::Download(position) => {
                let written = self.stream.write(&pattern[*position..])?;
                *position = (*position + written) % pattern.len();
            }
            Task::News(position) => {
                let written = self.stream.write(&pattern[*position..=*position])?;
                *position = (*position + written) % pattern.len();
            }
        }
        Ok(true)
    }
}

/// Returns how much of the pattern has come after `bytes`, before which so much had come.
///
/// # Errors
/// When they are not the pattern.
pub fn verify(position: u64, bytes: &[u8], pattern: &[u8]) -> io::Result<u64> {
    let mut start = (position % pattern.len() as u64) as usize;
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = rest.len().min(pattern.len() - start);
        if rest[..length] != pattern[start..start + length] {
            return Err(ErrorKind::InvalidData.into());
        }
        (start, rest) = (0, &rest[length..]);
    }
    Ok(position + bytes.len() as u64)
}
