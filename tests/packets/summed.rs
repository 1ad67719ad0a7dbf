//! Packets with a checksum of the network card over all bytes (`CHECKSUM_COMPLETE`), which must remain correct.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::programs::ProgramFd;
use lb_common::maps::mode;
use memlb_tests::packet_test;
use nix::{errno::Errno, libc};

use crate::{
    bench::{Bench, Edge, Hook},
    datapath::{FrameContext, socket_buffer},
    frame::{ACK, PSH, SYN},
    lan::{CLIENT, ETH1, FALLBACK, WORKER1, WORKER2},
    local::ITSELF,
    message::Problem,
};

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`, Linux 6.11: the kernel makes the sum, and refuses
/// what the program leaves if it is another's (EBADMSG). Older ones do not know the flag (EINVAL).
const CHECKSUM_COMPLETE: u32 = 1 << 2;

#[packet_test(at_edge(Edge::Tc))]
fn the_checksum_over_the_whole_packet_stays_correct(bench: &mut Bench) {
    let call = bench.call(CLIENT, 40_000).connected(bench, WORKER1);
    let request = call.request(PSH | ACK).payload(*b"hello");
    let reply = call.reply(WORKER1, PSH | ACK).payload(*b"odds!");
    if summed(bench, request.frame()) == Err(Errno::EINVAL) {
        println!("this kernel makes no such sums in a test");
        return;
    }
    let message = call.complains(Problem::ALL[0], &call.at_client(&reply));
    let datagrams = bench.datagrams(CLIENT, 40_001).connected(bench, WORKER1);
    for frame in [
        request.frame(),
        reply.frame(),
        (&message).into(),
        datagrams.request(0).payload(*b"hello").frame(),
        datagrams.reply(WORKER1, 0).payload(*b"odds!").frame(),
    ] {
        assert_eq!(summed(bench, frame), Ok(()));
    }

    // Answers to a client on the manager go to the stack, which looks at the sum.
    let mut own = bench.call(ITSELF, 40_002);
    own.nat_port = bench.loops(&own.syn()).nat_port();
    assert_eq!(summed(bench, own.syn_ack(WORKER1).frame()), Ok(()));

    bench.backend(WORKER2.id, |backend| backend.mode = mode::DSR);
    for (server, port) in [(WORKER2, 40_003), (FALLBACK, 40_004)] {
        bench.select(server.id);
        let syn = bench.call(CLIENT, port).request(SYN);
        assert_eq!(summed(bench, syn.frame()), Ok(()));
    }
}

/// Has a frame with such a sum arrive.
fn summed(bench: &Bench, frame: Vec<u8>) -> Result<(), Errno> {
    let program = bench.program(Hook::Ingress);
    let context = socket_buffer(FrameContext::received_on(ETH1));
    test_run(program, &frame, &context, CHECKSUM_COMPLETE)
}

/// `BPF_PROG_TEST_RUN` with a flag for which the library has no name.
fn test_run(program: &ProgramFd, frame: &[u8], context: &[u8], flags: u32) -> Result<(), Errno> {
    const BPF_PROG_TEST_RUN: u32 = 10;
    /// The member `test` of `union bpf_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Test {
        program: i32,
        result: u32,
        length: u32,
        length_left: u32,
        frame: u64,
        left: u64,
        repeat: u32,
        duration: u32,
        context_length: u32,
        context_length_left: u32,
        context: u64,
        context_left: u64,
        flags: u32,
        cpu: u32,
        batch: u32,
        reserved: u32,
    }
    let mut test = Test {
        program: program.as_fd().as_raw_fd(),
        length: frame.len() as u32,
        frame: frame.as_ptr() as u64,
        repeat: 1,
        context_length: context.len() as u32,
        context: context.as_ptr() as u64,
        flags,
        ..Test::default()
    };
    // SAFETY: the kernel reads the frame and the context, which live as long, and writes to `test` only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_TEST_RUN,
            &raw mut test,
            size_of::<Test>(),
        )
    };
    Errno::result(result).map(drop)
}
