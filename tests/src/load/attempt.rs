//! One connection of a client's, and how far it has come.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    time::{Duration, Instant},
};

use nix::{
    libc,
    sys::socket::{setsockopt, sockopt::IpBindAddressNoPort},
};
use socket2::{Domain, Socket, Type};

use super::{ANSWER_BYTES, Ending, Tally};

/// A connection, from its first SYN on.
#[derive(Debug)]
pub struct Attempt {
    pub socket: Socket,
    pub number: u32,
    pub started: Instant,
    pub phase: AttemptPhase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptPhase {
    Connecting,
    Asked,
    /// The server's end is still to come.
    Answered,
    Held,
}

/// What an event has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    None,
    Held,
    Lost,
    Ended,
}

impl Attempt {
    /// Goes on after an event.
    pub fn advance(
        &mut self,
        ending: Ending,
        holds: bool,
        now: Instant,
        tally: &mut Tally,
    ) -> io::Result<Progress> {
        if self.phase == AttemptPhase::Connecting {
            if let Some(error) = self.socket.take_error()? {
                return Err(error);
            }
            tally.established(now.duration_since(self.started));
            if ending == Ending::ClientResetAtOnce && !holds {
                reset(&self.socket);
                return Ok(Progress::Ended);
            }
            self.socket.write_all(&ending.request())?;
            self.phase = AttemptPhase::Asked;
            return Ok(Progress::None);
        }
        let mut answer = [0; ANSWER_BYTES];
        loop {
            match (self.socket.read(&mut answer), self.phase) {
                (Err(error), _) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(Progress::None);
                }
                (Ok(0) | Err(_), AttemptPhase::Held) => return Ok(Progress::Lost),
                // By FIN or, through a proxy perhaps, by RST.
                (Ok(0) | Err(_), AttemptPhase::Answered) => return Ok(Progress::Ended),
                (Ok(0), _) => return Err(ErrorKind::UnexpectedEof.into()),
                (Err(error), _) => return Err(error),
                (Ok(_), AttemptPhase::Asked) => {
                    tally.answered(now.duration_since(self.started));
                    if holds {
                        self.phase = AttemptPhase::Held;
                        return Ok(Progress::Held);
                    }
                    match ending {
                        Ending::ServerFin | Ending::ServerReset => {
                            self.phase = AttemptPhase::Answered;
                        }
                        Ending::ClientFin => return Ok(Progress::Ended),
                        Ending::ClientReset | Ending::ClientResetAtOnce => {
                            reset(&self.socket);
                            return Ok(Progress::Ended);
                        }
                    }
                }
                (Ok(_), _) => {}
            }
        }
    }
}

/// Begins to connect, and returns since when.
pub fn connect(source: Option<Ipv4Addr>, target: SocketAddrV4) -> io::Result<(Socket, Instant)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
    if let Some(address) = source {
        // Else the kernel would reserve a port of its own for each address.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        socket.bind(&SocketAddrV4::new(address, 0).into())?;
    }
    let started = Instant::now();
    match socket.connect(&target.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok((socket, started)),
    }
}

/// Makes the kernel send RST instead of FIN when the socket is closed.
pub fn reset(socket: &Socket) {
    // It fails only on what is no socket.
    socket.set_linger(Some(Duration::ZERO)).ok();
}
