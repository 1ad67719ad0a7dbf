//! An HTTP client inside a namespace, without a process for each request.

use std::{
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

use crate::namespace::Namespace;

/// One HTTP/1.1 connection, kept alive until dropped.
#[derive(Debug)]
pub struct Connection {
    stream: BufReader<TcpStream>,
}

/// What the server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Connection {
    /// Connects from `namespace`. `patience` is the timeout of this and of each later step.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub fn open(namespace: &Namespace, server: SocketAddr, patience: Duration) -> Result<Self> {
        namespace
            .enter(|| Self::open_here(server, patience))?
            .with_context(|| format!("connect to {server} from {}", namespace.name()))
    }

    /// Connects from the namespace this thread is in.
    ///
    /// # Errors
    /// When the server refuses or does not answer.
    pub fn open_here(server: SocketAddr, patience: Duration) -> io::Result<Self> {
        Self::open_here_from(0, server, patience)
    }

    /// Connects from the namespace this thread is in and from the given port;
    /// 0 lets the kernel choose one.
    ///
    /// # Errors
    /// When the port is in use, or the server refuses or does not answer.
    pub fn open_here_from(port: u16, server: SocketAddr, patience: Duration) -> io::Result<Self> {
        let source = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        Self::open_here_as(source, server, patience)
    }

    /// Connects from the namespace this thread is in and from the given address
    /// and port; the kernel chooses what is 0.
    ///
    /// # Errors
    /// When the source is not available, or the server refuses or does not answer.
    pub fn open_here_as(
        source: SocketAddrV4,
        server: SocketAddr,
        patience: Duration,
    ) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(server), Type::STREAM, None)?;
        if source != SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0) {
            socket.bind(&source.into())?;
        }
        socket.connect_timeout(&server.into(), patience)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Returns the socket, for operations outside HTTP.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Requests `path` and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer is not HTTP.
    pub fn get(&mut self, path: &str) -> io::Result<Response> {
        self.request("GET", path, &[])
    }

    /// Uploads `body` to `path` and reads the whole answer.
    ///
    /// # Errors
    /// When the connection breaks or the answer is not HTTP.
    pub fn put(&mut self, path: &str, body: &[u8]) -> io::Result<Response> {
        self.request("PUT", path, body)
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> io::Result<Response> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: memlb\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let stream = self.stream.get_mut();
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        self.response()
    }

    fn response(&mut self) -> io::Result<Response> {
        let status_line = self.line()?;
        let status = status_line
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .ok_or_else(|| malformed(&status_line))?;
        let mut length = 0;
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(|_| malformed(&line))?;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Response { status, body })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Response {
    /// Returns the body's first line: on a page of [`crate::Nginx`], its name.
    pub fn first_line(&self) -> String {
        let first = self.body.split(|byte| *byte == b'\n').next();
        String::from_utf8_lossy(first.unwrap_or_default()).into_owned()
    }
}

/// Makes one connection from inside `namespace` for one request.
///
/// # Errors
/// When there is no answer.
pub fn get(
    namespace: &Namespace,
    server: SocketAddr,
    path: &str,
    patience: Duration,
) -> Result<Response> {
    Connection::open(namespace, server, patience)?
        .get(path)
        .with_context(|| format!("get {path} from {server} in {}", namespace.name()))
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, format!("not HTTP: {line:?}"))
}
