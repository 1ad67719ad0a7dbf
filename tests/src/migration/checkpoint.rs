//! A TCP connection as data, by TCP_REPAIR (Linux 3.5; `include/uapi/linux/tcp.h`): it is taken from the kernel in one
//! network namespace and put into another one. Neither end sends a packet for it.

use std::{
    io,
    mem::{MaybeUninit, size_of},
    net::{SocketAddr, TcpStream},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result, ensure};
use nix::{
    libc,
    sys::socket::{
        setsockopt,
        sockopt::{RcvBufForce, SndBufForce},
    },
};
use socket2::{Domain, SockRef, Socket, Type};

const TCP_REPAIR: i32 = 19;
const TCP_REPAIR_QUEUE: i32 = 20;
const TCP_QUEUE_SEQ: i32 = 21;
const TCP_REPAIR_OPTIONS: i32 = 22;
const TCP_TIMESTAMP: i32 = 24;
const TCP_REPAIR_WINDOW: i32 = 29;
/// `include/uapi/linux/sockios.h`.
const SIOCOUTQNSD: libc::Ioctl = 0x894b;
const REPAIR_ON: i32 = 1;
/// As CRIU does, with a window probe to the client.
const REPAIR_OFF: i32 = 0;

/// Codes of `struct tcp_repair_opt`: the TCP options of the handshake (RFC 9293, 7323, 2018).
const OPTION_MSS: u32 = 2;
const OPTION_WINDOW_SCALE: u32 = 3;
const OPTION_SACK_PERMITTED: u32 = 4;
const OPTION_TIMESTAMPS: u32 = 8;

/// Bits of `tcp_info.tcpi_options`.
const INFO_TIMESTAMPS: u8 = 1;
const INFO_SACK: u8 = 2;
const INFO_WINDOW_SCALE: u8 = 4;

#[derive(Debug, Clone, Copy)]
enum Direction {
    Receive = 1,
    Send = 2,
}

/// The bytes of one direction that the application has not read, or the peer not acknowledged.
#[derive(Debug)]
struct Queue {
    /// Sequence number of the first byte.
    sequence: u32,
    bytes: Vec<u8>,
}

/// `struct tcp_repair_window`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    send_wl1: u32,
    send_window: u32,
    max_window: u32,
    receive_window: u32,
    receive_wup: u32,
}

/// `struct tcp_repair_opt`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct RepairOption {
    code: u32,
    value: u32,
}

/// An established connection without a socket.
#[derive(Debug)]
pub struct Checkpoint {
    local: SocketAddr,
    peer: SocketAddr,
    send: Queue,
    /// Length of the end of `send` that has not been sent.
    unsent: usize,
    receive: Queue,
    options: Vec<RepairOption>,
    window: Window,
    timestamp: u32,
}

impl Checkpoint {
    /// Takes the connection out of the kernel. No packet for it may arrive meanwhile or later.
    ///
    /// # Errors
    /// When the connection has ended, or root is missing.
    pub fn take(stream: TcpStream) -> Result<Self> {
        let peer = stream.peer_addr().context("find the peer")?;
        let local = stream.local_addr()?;
        set(&stream, TCP_REPAIR, &REPAIR_ON).context("begin TCP_REPAIR")?;
        let info: libc::tcp_info = get(&stream, libc::TCP_INFO)?;
        let send = read_queue(&stream, Direction::Send)?;
        let unsent = queued(&stream, SIOCOUTQNSD)?;
        let receive = read_queue(&stream, Direction::Receive)?;
        let mss: u32 = get(&stream, libc::TCP_MAXSEG)?;
        let mut options = vec![option(OPTION_MSS, mss)];
        if info.tcpi_options & INFO_WINDOW_SCALE != 0 {
            // `tcpi_snd_wscale` and `tcpi_rcv_wscale` share the byte after `tcpi_options`.
            let (sent, received) = window_scales(&stream)?;
            options.push(option(OPTION_WINDOW_SCALE, sent | received << 16));
        }
        if info.tcpi_options & INFO_SACK != 0 {
            options.push(option(OPTION_SACK_PERMITTED, 0));
        }
        if info.tcpi_options & INFO_TIMESTAMPS != 0 {
            options.push(option(OPTION_TIMESTAMPS, 0));
        }
        let window = get(&stream, TCP_REPAIR_WINDOW)?;
        let timestamp = get(&stream, TCP_TIMESTAMP)?;
        // Closed in this state, the socket sends nothing.
        drop(stream);
        Ok(Self {
            local,
            peer,
            send,
            unsent,
            receive,
            options,
            window,
            timestamp,
        })
    }

    /// Puts the connection into the kernel, in the namespace of this thread, which must have its address.
    ///
    /// # Errors
    /// When the address or a route is missing, or root.
    pub fn restore(self) -> Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(self.local), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // The queues must have room at once: nothing leaves them before the connection goes on.
        setsockopt(&socket, SndBufForce, &room(&self.send))?;
        setsockopt(&socket, RcvBufForce, &room(&self.receive))?;
        set(&socket, TCP_REPAIR, &REPAIR_ON).context("begin TCP_REPAIR")?;
        socket
            .bind(&self.local.into())
            .with_context(|| format!("take the address {}", self.local))?;
        for (direction, queue) in [
            (Direction::Send, &self.send),
            (Direction::Receive, &self.receive),
        ] {
            set(&socket, TCP_REPAIR_QUEUE, &(direction as i32))?;
            set(&socket, TCP_QUEUE_SEQ, &queue.sequence)?;
        }
        // The options of the handshake come too late for the first segments.
        if let Some(mss) = self.options.iter().find(|it| it.code == OPTION_MSS) {
            set(&socket, libc::TCP_MAXSEG, &mss.value)?;
        }
        socket
            .connect(&self.peer.into())
            .with_context(|| format!("find a route to {}", self.peer))?;
        set_slice(&socket, TCP_REPAIR_OPTIONS, &self.options)?;
        let (sent, unsent) = self
            .send
            .bytes
            .split_at(self.send.bytes.len() - self.unsent);
        for (direction, bytes) in [
            (Direction::Receive, self.receive.bytes.as_slice()),
            (Direction::Send, sent),
        ] {
            set(&socket, TCP_REPAIR_QUEUE, &(direction as i32))?;
            write_queue(&socket, bytes)?;
        }
        set(&socket, TCP_TIMESTAMP, &self.timestamp)?;
        set(&socket, TCP_REPAIR_WINDOW, &self.window)?;
        set(&socket, TCP_REPAIR, &REPAIR_OFF).context("end TCP_REPAIR")?;
        write_queue(&socket, unsent)?;
        Ok(socket.into())
    }

    /// Returns how many bytes travel with the connection.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.send.bytes.len() + self.receive.bytes.len()
    }
}

fn room(queue: &Queue) -> usize {
    2 * queue.bytes.len() + 256 * 1024
}

fn option(code: u32, value: u32) -> RepairOption {
    RepairOption { code, value }
}

fn window_scales(stream: &TcpStream) -> Result<(u32, u32)> {
    // `struct tcp_info`: state, ca_state, retransmits, probes, backoff, options, then two scales of four bits.
    const SCALES: usize = 6;
    let bytes: [u8; SCALES + 2] = get(stream, libc::TCP_INFO)?;
    let scales = bytes[SCALES];
    Ok((u32::from(scales & 0xf), u32::from(scales >> 4)))
}

/// Reads a queue without emptying it.
fn read_queue(stream: &TcpStream, direction: Direction) -> Result<Queue> {
    set(stream, TCP_REPAIR_QUEUE, &(direction as i32))?;
    let end: u32 = get(stream, TCP_QUEUE_SEQ)?;
    let length = match direction {
        // SIOCOUTQ and SIOCINQ (tcp(7)) have the numbers of TIOCOUTQ and FIONREAD.
        Direction::Send => queued(stream, libc::TIOCOUTQ)?,
        Direction::Receive => queued(stream, libc::FIONREAD)?,
    };
    let mut bytes = vec![0; length];
    if length > 0 {
        let buffer = bytes.iter_mut().map(|byte| MaybeUninit::new(*byte));
        let mut buffer: Vec<MaybeUninit<u8>> = buffer.collect();
        let read = SockRef::from(stream)
            .peek(&mut buffer)
            .with_context(|| format!("read the queue {direction:?}"))?;
        ensure!(
            read == length,
            "{read} of {length} bytes in the queue {direction:?}"
        );
        for (byte, read) in bytes.iter_mut().zip(&buffer) {
            // SAFETY: every byte was initialised above.
            *byte = unsafe { read.assume_init() };
        }
    }
    Ok(Queue {
        sequence: end.wrapping_sub(u32::try_from(length)?),
        bytes,
    })
}

fn write_queue(socket: &Socket, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        let written = socket.send(bytes).context("fill a queue")?;
        bytes = &bytes[written..];
    }
    Ok(())
}

fn queued(stream: &TcpStream, request: libc::Ioctl) -> Result<usize> {
    let mut bytes: i32 = 0;
    // SAFETY: both requests write an int to the address that they are given.
    let result = unsafe { libc::ioctl(stream.as_raw_fd(), request, &raw mut bytes) };
    ensure!(
        result == 0,
        "read a queue's length: {}",
        io::Error::last_os_error()
    );
    Ok(usize::try_from(bytes)?)
}

/// Reads a TCP option of a socket. `T` is the type that the option has in the kernel, or a prefix of it.
fn get<T: Copy>(socket: &impl AsRawFd, name: i32) -> Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<T>())?;
    // SAFETY: the kernel writes at most `length` bytes to `value`, which has that size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    ensure!(
        result == 0,
        "read the TCP option {name}: {}",
        io::Error::last_os_error()
    );
    // SAFETY: all types that this is used with are integers or made of them, and valid for any bytes.
    Ok(unsafe { value.assume_init() })
}

fn set<T: Copy>(socket: &impl AsRawFd, name: i32, value: &T) -> Result<()> {
    set_slice(socket, name, std::slice::from_ref(value))
}

fn set_slice<T: Copy>(socket: &impl AsRawFd, name: i32, values: &[T]) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(values))?;
    // SAFETY: the kernel reads `length` bytes from `values`, which has that size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            values.as_ptr().cast(),
            length,
        )
    };
    ensure!(
        result == 0,
        "set the TCP option {name}: {}",
        io::Error::last_os_error()
    );
    Ok(())
}
