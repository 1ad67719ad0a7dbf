//! The rules of `[limits]`.

use std::time::Duration;

use super::reader::{Checked, Reader, Setting};
use crate::config::Limits;
use crate::config::error::ProblemKind;
use crate::config::file::{Given, LimitsTable, Scalar};
use crate::config::values::{self, PortRange, show_duration};

const MOST_SERVICES: u32 = 1_024;
const MOST_FLOWS: u32 = 1 << 24;
/// The entry for "none", a worker and a fallback.
const LEAST_BACKENDS: u32 = 3;
const MOST_BACKENDS: u32 = 1 << 16;
/// Below this only privileged programs may listen, so that none expects a stranger there.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Room for what the services need.
pub(super) struct Room {
    pub services: Checked<u32>,
    pub backends: Checked<u32>,
}

pub(super) fn check(
    reader: &mut Reader<'_>,
    table: LimitsTable,
    kernel_ports: Option<PortRange>,
) -> (Limits, Room) {
    let default = Limits::default();
    let services = reader.integer(
        "limits.services",
        table.services,
        default.services,
        1..=MOST_SERVICES,
    );
    let backends = reader.integer(
        "limits.backends",
        table.backends,
        default.backends,
        LEAST_BACKENDS..=MOST_BACKENDS,
    );
    let flows = reader.integer("limits.flows", table.flows, default.flows, 1..=MOST_FLOWS);
    let limits = Limits {
        services: services.value,
        backends: backends.value,
        flows: flows.value,
        nat_ports: nat_ports(reader, table.nat_ports, default.nat_ports, kernel_ports),
        ..idle_times(
            reader,
            table.established_idle,
            table.datagram_idle,
            table.closing_idle,
            table.half_open_idle,
        )
    };
    (limits, Room { services, backends })
}

fn nat_ports(
    reader: &mut Reader<'_>,
    given: Given<String>,
    default: PortRange,
    kernel_ports: Option<PortRange>,
) -> PortRange {
    let ports = reader.parse(
        "limits.nat_ports",
        Setting::file(given),
        values::port_range,
        default,
    );
    let Some(range) = ports.good() else {
        return default;
    };
    if range.first > range.last {
        reader.refuse(
            &ports.place,
            ProblemKind::NatPortsReversed,
            format!("the range {range} ends before it begins"),
            "FIRST-LAST with FIRST not above LAST",
            format!("write \"{}-{}\"", range.last, range.first),
        );
        return default;
    }
    if range.first < FIRST_UNPRIVILEGED_PORT {
        reader.refuse(
            &ports.place,
            ProblemKind::NatPortsPrivileged,
            format!("the range {range} contains privileged ports"),
            format!("a range from {FIRST_UNPRIVILEGED_PORT} upwards"),
            format!("begin it at {FIRST_UNPRIVILEGED_PORT} or later; the default is {default}"),
        );
    }
    if let Some(kernel) = kernel_ports
        && range.overlaps(kernel)
    {
        refuse_overlap(reader, &ports, range, kernel);
    }
    range
}

/// The manager's own connections use the kernel's range: a port in both could carry two of them.
fn refuse_overlap(
    reader: &mut Reader<'_>,
    ports: &Checked<PortRange>,
    range: PortRange,
    kernel: PortRange,
) {
    let beside = if kernel.first > FIRST_UNPRIVILEGED_PORT {
        format!("end nat_ports at {}", kernel.first - 1)
    } else {
        format!("begin nat_ports at {}", kernel.last.saturating_add(1))
    };
    reader.refuse(
        &ports.place,
        ProblemKind::NatPortsOverlapKernel,
        format!(
            "the range {range} overlaps {kernel}, from which the kernel takes the manager's own \
             ports (net.ipv4.ip_local_port_range)"
        ),
        format!("a range without any of {kernel}"),
        format!(
            "{beside}, or move the kernel's range with `sysctl -w \
             net.ipv4.ip_local_port_range=\"FIRST LAST\"`"
        ),
    );
}

/// Returns limits of which only the idle times count.
fn idle_times(
    reader: &mut Reader<'_>,
    established: Given<Scalar>,
    datagram: Given<Scalar>,
    closing: Given<Scalar>,
    half_open: Given<Scalar>,
) -> Limits {
    const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);
    let default = Limits::default();
    let mut time = |key, given: Given<Scalar>, default| {
        reader.duration(key, Setting::file(given), default, LONGEST)
    };
    let established = time(
        "limits.established_idle",
        established,
        default.established_idle,
    );
    let datagram = time("limits.datagram_idle", datagram, default.datagram_idle);
    let closing = time("limits.closing_idle", closing, default.closing_idle);
    let half_open = time("limits.half_open_idle", half_open, default.half_open_idle);
    for shorter in [&closing, &half_open] {
        if let (Some(time), Some(most)) = (shorter.good(), established.good())
            && time > most
        {
            reader.refuse(
                &shorter.place,
                ProblemKind::IdleTimesReversed,
                format!(
                    "{} is longer than established_idle, {}",
                    show_duration(time),
                    show_duration(most)
                ),
                format!("at most {}", show_duration(most)),
                "lower it, or raise established_idle: an unfinished connection must not outlive \
                 a working one",
            );
        }
    }
    Limits {
        established_idle: established.value,
        datagram_idle: datagram.value,
        closing_idle: closing.value,
        half_open_idle: half_open.value,
        ..default
    }
}
