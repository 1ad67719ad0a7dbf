//! A program's result for one frame, and assertions about it.

use lb_common::verdict::Verdict;

use crate::{
    datapath::{Counters, Edge},
    frame::{Family, IPV4, at},
    lan::Server,
};

/// What the program told the kernel to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pass,
    Drop,
    /// To another interface, or through the neighbour table.
    Redirect,
    /// Back out of the interface it came from (XDP only).
    Transmit,
}

impl Action {
    pub fn named(edge: Edge, value: u32) -> Self {
        const TC_ACT_UNSPEC: u32 = -1_i32 as u32;
        match (edge, value) {
            (Edge::Tc, TC_ACT_UNSPEC) | (Edge::Xdp, 2) => Self::Pass,
            (Edge::Tc, 2) | (Edge::Xdp, 1) => Self::Drop,
            (Edge::Tc, 7) | (Edge::Xdp, 4) => Self::Redirect,
            (Edge::Xdp, 3) => Self::Transmit,
            (_, value) => panic!("the {edge:?} program returned {value}"),
        }
    }
}

/// A counter that moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    Verdict {
        verdict: Verdict,
        packets: u64,
        bytes: u64,
    },
    ToBackend {
        id: u32,
        connections: u64,
        packets: u64,
        bytes: u64,
    },
    FromBackend {
        id: u32,
        packets: u64,
        bytes: u64,
    },
}

impl Counted {
    pub fn between(before: &Counters, after: &Counters) -> Vec<Self> {
        let mut moved = Vec::new();
        for (verdict, (before, after)) in Verdict::ALL
            .iter()
            .zip(before.verdicts.iter().zip(&after.verdicts))
        {
            if before != after {
                moved.push(Self::Verdict {
                    verdict: *verdict,
                    packets: after.packets - before.packets,
                    bytes: after.bytes - before.bytes,
                });
            }
        }
        for (id, (before, after)) in (0..).zip(before.traffic.iter().zip(&after.traffic)) {
            if (before.packets_in, before.connections) != (after.packets_in, after.connections) {
                moved.push(Self::ToBackend {
                    id,
                    connections: after.connections - before.connections,
                    packets: after.packets_in - before.packets_in,
                    bytes: after.bytes_in - before.bytes_in,
                });
            }
            if before.packets_out != after.packets_out {
                moved.push(Self::FromBackend {
                    id,
                    packets: after.packets_out - before.packets_out,
                    bytes: after.bytes_out - before.bytes_out,
                });
            }
        }
        moved
    }
}

/// What became of one frame.
#[derive(Clone, Debug)]
#[must_use = "an outcome that no test looks at proves nothing"]
pub struct Outcome {
    pub edge: Edge,
    pub action: Action,
    /// How many packets the frame stands for.
    pub packets: u64,
    /// Every counter that moved.
    pub counted: Vec<Counted>,
    pub sent: Vec<u8>,
    /// The frame as the program left it.
    pub left: Vec<u8>,
}

impl Outcome {
    /// It went on to the kernel's stack as it was, counted once under `verdict`.
    #[track_caller]
    pub fn passes(self, verdict: Verdict) {
        self.is(Action::Pass);
        self.is_untouched();
        self.is_counted_as(verdict);
    }

    /// It was dropped, counted once under `verdict`.
    #[track_caller]
    pub fn is_dropped(&self, verdict: Verdict) {
        self.is(Action::Drop);
        self.is_untouched();
        self.is_counted_as(verdict);
    }

    /// It was left alone without being counted: another hook has seen it.
    #[track_caller]
    pub fn is_skipped(&self) {
        self.is(Action::Pass);
        self.is_untouched();
        assert_eq!(self.counted, []);
    }

    /// It began a connection to `server`, and left as `expected`.
    #[track_caller]
    pub fn opens(self, server: Server, expected: impl Into<Vec<u8>>) {
        self.was_sent_to(server, 1);
        self.is(self.forwarding());
        self.leaves_as(expected);
    }

    /// It was forwarded to `server` as a packet of a flow, and left as `expected`.
    #[track_caller]
    pub fn goes_to(self, server: Server, expected: impl Into<Vec<u8>>) {
        self.was_sent_to(server, 0);
        self.is(self.forwarding());
        self.leaves_as(expected);
    }

    /// It was forwarded from `server` to its client, and left as `expected`.
    #[track_caller]
    pub fn comes_from(self, server: Server, expected: impl Into<Vec<u8>>) {
        self.was_sent_by(server);
        self.is(self.forwarding());
        self.leaves_as(expected);
    }

    #[track_caller]
    pub fn is(&self, action: Action) {
        assert_eq!(self.action, action, "counted: {:?}", self.counted);
    }

    #[track_caller]
    pub fn is_untouched(&self) {
        assert_same(&self.left, &self.sent);
    }

    #[track_caller]
    pub fn leaves_as(&self, expected: impl Into<Vec<u8>>) {
        assert_same(&self.left, &expected.into());
    }

    #[track_caller]
    pub fn is_counted_as(&self, verdict: Verdict) {
        let (packets, bytes) = self.size();
        self.moved_only(Counted::Verdict {
            verdict,
            packets,
            bytes,
        });
    }

    #[track_caller]
    pub fn was_sent_to(&self, server: Server, connections: u64) {
        let (packets, bytes) = self.size();
        self.moved_only(Counted::ToBackend {
            id: server.id,
            connections,
            packets,
            bytes,
        });
    }

    #[track_caller]
    pub fn was_sent_by(&self, server: Server) {
        let (packets, bytes) = self.size();
        self.moved_only(Counted::FromBackend {
            id: server.id,
            packets,
            bytes,
        });
    }

    #[track_caller]
    fn moved_only(&self, counter: Counted) {
        assert_eq!(self.counted, [counter]);
    }

    fn size(&self) -> (u64, u64) {
        (self.packets, self.sent.len() as u64)
    }

    /// How a frame goes on that leaves by the interface it came from.
    pub fn forwarding(&self) -> Action {
        match self.edge {
            Edge::Tc => Action::Redirect,
            Edge::Xdp => Action::Transmit,
        }
    }

    /// The port that the manager speaks to the worker from.
    pub fn nat_port(&self) -> u16 {
        let family = match self.left[at::ETHER_TYPE..at::IP] == IPV4.to_be_bytes() {
            true => Family::V4,
            false => Family::V6,
        };
        let ports = &self.left[family.transport()..];
        u16::from_be_bytes([ports[0], ports[1]])
    }
}

#[track_caller]
fn assert_same(left: &[u8], expected: &[u8]) {
    if left == expected {
        return;
    }
    let differing: Vec<_> = (0..left.len().max(expected.len()))
        .filter(|at| left.get(*at) != expected.get(*at))
        .collect();
    panic!("the frame left as\n{left:02x?}\nnot as\n{expected:02x?}\nat {differing:?}");
}
