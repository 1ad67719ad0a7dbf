//! A TCP server that does with each connection what its client asks for.

use std::{
    collections::HashMap,
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result, anyhow, bail};
use nix::{
    libc,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags},
};
use socket2::{Domain, Socket, Type};

use super::{ANSWER_BYTES, BACKLOG, SHARDS, attempt::reset};
use crate::{namespace::Namespace, notice::print_message};

/// The listening socket's mark among the events; the others' are file descriptors.
const LISTENER: u64 = u64::MAX;
const EVENTS: usize = 1024;
const TURN_MS: u16 = 20;

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Server {
    /// Starts a server in `namespace` on `port` of every address.
    ///
    /// # Errors
    /// When the port is in use.
    pub fn start(namespace: &Namespace, port: u16) -> Result<Self> {
        let mut server = Self {
            stop: Arc::default(),
            threads: Vec::new(),
        };
        for _ in 0..SHARDS {
            let stop = Arc::clone(&server.stop);
            let (listens, listening) = mpsc::channel();
            let thread = namespace.spawn(move || {
                let listener = listen(port)?;
                // It waits for this.
                listens.send(())?;
                Serving::new(listener)?.serve(&stop)
            })?;
            server.threads.push(thread);
            if listening.recv().is_err() {
                server.end()?;
                bail!("no server at port {port} in {}", namespace.name());
            }
        }
        Ok(server)
    }

    fn end(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a server panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            print_message(format_args!("a server has failed: {error:#}"));
        }
    }
}

fn listen(port: u16) -> io::Result<Socket> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    listener.set_reuse_address(true)?;
    listener.set_reuse_port(true)?;
    listener.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
    listener.listen(BACKLOG)?;
    Ok(listener)
}

#[derive(Debug)]
struct Serving {
    listener: Socket,
    epoll: Epoll,
    connections: HashMap<u64, Socket>,
}

impl Serving {
    fn new(listener: Socket) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self {
            listener,
            epoll,
            connections: HashMap::new(),
        })
    }

    fn serve(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        while !stop.load(Ordering::Relaxed) {
            let count = match self.epoll.wait(&mut events, TURN_MS) {
                Err(nix::Error::EINTR) => 0,
                other => other?,
            };
            for event in &events[..count] {
                match event.data() {
                    LISTENER => self.accept()?,
                    connection => self.handle_request(connection),
                }
            }
        }
        Ok(())
    }

    /// Accepts some connections: more may come as fast as these are accepted, and ended ones must be closed meanwhile.
    fn accept(&mut self) -> Result<()> {
        for _ in 0..EVENTS {
            let accepted = self
                .listener
                .accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC);
            let connection = match accepted {
                Ok((connection, _)) => connection,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client has reset it before.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("accept a connection"),
            };
            let key = connection.as_raw_fd() as u64;
            let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP;
            self.epoll
                .add(&connection, EpollEvent::new(readable, key))?;
            self.connections.insert(key, connection);
        }
        Ok(())
    }

    /// Answers a request, or closes a connection that its client has ended.
    fn handle_request(&mut self, key: u64) {
        let Some(connection) = self.connections.get(&key) else {
            return;
        };
        let mut request = [0; 16];
        let goes_on = match (&mut &*connection).read(&mut request) {
            Ok(0) => false,
            Ok(_) => respond(connection, request[0]),
            Err(error) => error.kind() == ErrorKind::WouldBlock,
        };
        if !goes_on {
            self.connections.remove(&key);
        }
    }
}

/// Sends the answer, and returns whether the connection stays open until the client ends it.
fn respond(connection: &Socket, request: u8) -> bool {
    let answer = [b'.'; ANSWER_BYTES];
    let sent = (&mut &*connection).write(&answer);
    match request {
        b'f' => false,
        b'r' => {
            reset(connection);
            false
        }
        _ => sent.is_ok(),
    }
}
