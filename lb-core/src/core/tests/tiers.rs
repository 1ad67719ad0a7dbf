//! Backups, and workers without an agent.

use super::*;

fn settings(policy: Policy) -> CoreSettings {
    let mut settings = lab(Threshold::Bytes(64 * MIB));
    settings.services = vec![service(
        0,
        1,
        &["worker1", "worker2", "sorry"],
        Threshold::Auto,
    )];
    let service = &mut settings.services[0];
    service.policy = policy;
    service.fallback = None;
    service.backends[2].backup = true;
    service.backends[2].agent = false;
    settings
}

fn shares(harness: &Harness) -> Vec<u16> {
    let snapshot = harness.core.snapshot(harness.now);
    snapshot.services[0]
        .backends
        .iter()
        .map(|it| it.share)
        .collect()
}

#[test]
fn a_backup_serves_while_no_primary_can() {
    for policy in Policy::ALL {
        let mut harness = Harness::new(settings(policy));
        assert_eq!(shares(&harness), [0, 0, 10_000], "{policy}");
        harness.start("worker1", 300);
        harness.advance(ms(200));
        assert_eq!(shares(&harness), [10_000, 0, 0], "{policy}");
        let snapshot = harness.core.snapshot(harness.now);
        let reason = snapshot.services[0].backends[2].reason.clone();
        assert_eq!(reason.map(|it| it.kind), Some(ShareReasonKind::Backup));
        harness.kinds();

        harness.agents.clear();
        harness.advance(ms(2_000));
        assert_eq!(shares(&harness), [0, 0, 10_000], "{policy}");
        assert!(
            harness.kinds().contains(&"backups_serve".to_owned()),
            "{policy}"
        );
        let problem = harness.core.snapshot(harness.now).services[0]
            .problem
            .clone();
        assert_eq!(
            problem.as_deref(),
            Some("no primary worker can serve: the backups serve")
        );

        harness.start("worker2", 300);
        harness.advance(ms(200));
        assert_eq!(shares(&harness), [0, 10_000, 0], "{policy}");
        assert!(
            harness.kinds().contains(&"primaries_serve".to_owned()),
            "{policy}"
        );
    }
}

#[test]
fn a_worker_without_an_agent_is_up_until_its_packets_show_otherwise() {
    let mut harness = Harness::new(settings(Policy::Balanced));
    harness.advance(Duration::from_secs(60));
    assert_eq!(harness.state("sorry"), Health::Up);
    // Heartbeats count while they come.
    harness.start("sorry", 100);
    harness.agents.get_mut("sorry").expect("an agent").healthy = false;
    harness.advance(ms(200));
    assert_eq!(harness.state("sorry"), Health::Unhealthy);
    harness.agents.clear();
    harness.advance(ms(2_000));
    assert_eq!(harness.state("sorry"), Health::Up);
}

#[test]
fn a_restart_keeps_a_worker_without_an_agent_up() {
    let now = Instant::now();
    let adopted = AdoptedState {
        draining: [BackendId(3)].into(),
        ..AdoptedState::default()
    };
    let harness = Harness::with_core(Core::resume(settings(Policy::Memory), &adopted, now), now);
    assert_eq!(harness.state("sorry"), Health::Up);
    assert_eq!(harness.selected(), "sorry");
}

#[test]
fn a_reload_expects_heartbeats_of_a_worker_or_no_longer() {
    let mut harness = Harness::new(settings(Policy::Memory));
    let mut with_agent = settings(Policy::Memory);
    with_agent.services[0].backends[2].agent = true;
    harness.reconfigure(with_agent);
    harness.advance(DOWN_AFTER);
    assert_eq!(harness.state("sorry"), Health::Up);
    harness.advance(ms(1));
    assert_eq!(harness.state("sorry"), Health::Down);
    harness.reconfigure(settings(Policy::Memory));
    assert_eq!(harness.state("sorry"), Health::Up);
}
