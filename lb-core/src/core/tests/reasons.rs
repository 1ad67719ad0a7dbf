//! Why a worker gets no new connection, or less than its share: one reason with one text.

use super::*;
use ShareReasonKind as Kind;

/// What changes a worker's report, and the reason that follows.
type Change = (fn(&mut Report), Kind, &'static str);

const WORKERS: [&str; 3] = ["worker1", "worker2", "worker3"];

/// Workers of policy `balanced` that are up for longer than the ramp lasts.
fn settled(max_share: MaxShare) -> World {
    let mut settings = lab(Threshold::Auto);
    settings.services = vec![service(0, 1, &WORKERS, Threshold::Auto)];
    let service = &mut settings.services[0];
    service.policy = Policy::Balanced;
    service.spread.max_share = max_share;
    let mut world = World::new(settings);
    WORKERS.iter().for_each(|it| world.start(it, 300));
    world.pass(ms(11_000));
    world
}

fn agent(world: &mut World) -> &mut Report {
    world.agents.get_mut("worker1").expect("an agent")
}

#[track_caller]
fn expect(world: &World, kind: Kind, text: &str) {
    let snapshot = world.core.snapshot(world.now);
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
        let mut world = settled(MaxShare::Auto);
        change(agent(&mut world));
        world.pass(ms(1_000));
        expect(&world, kind, text);
    }
}

#[test]
fn silence_ramp_and_max_share_limit_the_share() {
    let mut world = settled(MaxShare::Auto);
    world.agents.remove("worker1");
    world.pass(ms(2_000));
    expect(&world, Kind::Down, "no heartbeat for ");
    world.start("worker1", 300);
    world.pass(ms(3_000));
    expect(
        &world,
        Kind::Ramp,
        "came back recently: ramp_up limits it to ",
    );

    let mut world = settled(MaxShare::Percent(40));
    agent(&mut world).memory.available_bytes = 690 * MIB;
    world.pass(ms(5_000));
    expect(&world, Kind::Cap, "max_share limits its share to 40%");
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
        let mut world = settled(MaxShare::Auto);
        world.order(&order("worker1", action));
        expect(&world, kind, text);
        assert!(kind.is_order() && !kind.is_trouble());
    }
}
