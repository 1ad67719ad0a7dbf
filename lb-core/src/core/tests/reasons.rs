//! Why a worker gets no new connection, or less than its share: one reason with one text.

use super::*;
use ShareReasonKind as Kind;

/// What changes a worker's report, and the reason that follows.
type Change = (fn(&mut Report), Kind, &'static str);

const WORKERS: [&str; 3] = ["worker1", "worker2", "worker3"];

/// Workers of policy `balanced` that are up for longer than the ramp lasts.
fn settled(max_share: MaxShare) -> Harness {
    let mut settings = lab(Threshold::Auto);
    settings.services = vec![service(0, 1, &WORKERS, Threshold::Auto)];
    let service = &mut settings.services[0];
    service.policy = Policy::Balanced;
    service.spread.max_share = max_share;
    let mut harness = Harness::new(settings);
    WORKERS.iter().for_each(|it| harness.start(it, 300));
    harness.advance(ms(11_000));
    harness
}

fn agent(harness: &mut Harness) -> &mut Report {
    harness.agents.get_mut("worker1").expect("an agent")
}

#[track_caller]
fn assert_reason(harness: &Harness, kind: Kind, text: &str) {
    let snapshot = harness.core.snapshot(harness.now);
    let backends = &snapshot.services[0].backends;
    let reason = backends[0].reason.clone().expect("a reason");
    assert_eq!(reason.kind, kind, "{}", reason.text);
    assert!(reason.text.starts_with(text), "{}", reason.text);
    let others = backends[1..WORKERS.len()].iter();
    assert!(others.clone().all(|it| it.reason.is_none()), "{backends:?}");
}

#[test]
fn contents_of_heartbeats_limit_the_share() {
    let changes: [Change; 5] = [
        (
            |agent| agent.pressure = Some(Pressure(2_500)),
            Kind::Pressure,
            "its memory pressure, 25.00%, reaches pressure_limit, 20.00%",
        ),
        (
            |agent| agent.memory.available_bytes = 20 * MIB,
            Kind::Reserve,
            "no memory above its reserve of 5%",
        ),
        (
            |agent| agent.healthy = false,
            Kind::Unhealthy,
            "its agent's check fails",
        ),
        (
            |agent| agent.state = WorkerState::Leaving,
            Kind::Leaving,
            "its agent stops",
        ),
        (
            |agent| agent.state = WorkerState::Maintenance,
            Kind::Maintenance,
            "its agent announced maintenance",
        ),
    ];
    for (change, kind, text) in changes {
        let mut harness = settled(MaxShare::Auto);
        change(agent(&mut harness));
        harness.advance(ms(1_000));
        assert_reason(&harness, kind, text);
    }
}

#[test]
fn silence_ramp_and_max_share_limit_the_share() {
    let mut harness = settled(MaxShare::Auto);
    harness.agents.remove("worker1");
    harness.advance(ms(2_000));
    assert_reason(&harness, Kind::Down, "no heartbeat for ");
    harness.start("worker1", 300);
    harness.advance(ms(3_000));
    assert_reason(
        &harness,
        Kind::Ramp,
        "came back recently: ramp_up limits it to ",
    );

    let mut harness = settled(MaxShare::Percent(40));
    agent(&mut harness).memory.available_bytes = 690 * MIB;
    harness.advance(ms(5_000));
    assert_reason(&harness, Kind::Cap, "max_share limits its share to 40%");
}

#[test]
fn orders_limit_the_share() {
    let state = |state| AdminAction::SetState { state };
    for (action, kind, text) in [
        (
            state(AdminState::Drain),
            Kind::Draining,
            "drained by the operator",
        ),
        (
            state(AdminState::Maintenance),
            Kind::Maintenance,
            "in maintenance by the operator",
        ),
        (
            AdminAction::Weight { percent: 0 },
            Kind::ZeroWeight,
            "the operator's weight is 0%",
        ),
    ] {
        let mut harness = settled(MaxShare::Auto);
        harness.command(&admin_command("worker1", action));
        assert_reason(&harness, kind, text);
        assert!(kind.is_order() && !kind.is_trouble());
    }
}
