//! Frames that really arrive, through XDP and the kernel's stack to TC behind it: what a test run of a
//! single program cannot show.

use lb_common::verdict::Verdict;

use crate::{
    bench::{Edge, at_edge},
    frame::at,
    lan::CLIENT,
    outcome::Counted,
};

#[test]
fn what_xdp_lets_in_truncated_passes_tc_too() {
    at_edge(Edge::Xdp, |bench| {
        bench.attach_ingress();
        let whole = bench.call(CLIENT, 40_000).syn().frame();
        for length in at::IP..whole.len() {
            // Once at either edge.
            assert_eq!(
                bench.lets_in(&whole[..length]),
                [Counted::Verdict {
                    verdict: Verdict::Truncated,
                    packets: 2,
                    bytes: 2 * length as u64,
                }]
            );
        }
    });
}
