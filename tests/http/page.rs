//! The web page, in a real browser.

use std::{thread, time::Duration};

use memlb_tests::{Cluster, ClusterOptions, Probe, command::output, root_test};

use super::{ORIGIN, SOON, browser::Browser, start};

const CHOICE: &str = "document.getElementById('choice').textContent";

#[root_test]
fn shows_a_failover_within_a_second() {
    let mut cluster = start(ClusterOptions::default());
    let probe = cluster.probe(Duration::from_millis(20)).unwrap();
    let mut browser = open(&cluster, 1280, 1400);
    browser.wait_for(&format!("{CHOICE} == 'New connections go to worker1'"));
    browser.wait_for("document.getElementById('live').textContent == 'live'");
    // Traffic runs to worker1 and back, and nowhere else.
    browser.wait_for(
        "document.querySelectorAll('.links g:last-child path:not([hidden])').length == 3",
    );
    browser.wait_for("document.querySelectorAll('.links .in:not([hidden])').length == 2");
    browser.value(
        "new MutationObserver(() => { window.changed ??= Date.now() })
            .observe(document.getElementById('choice'), { childList: true, characterData: true, subtree: true })",
    );
    browser.picture("light");

    browser.value(
        "window.written = new Set();
         const pen = CanvasRenderingContext2D.prototype;
         const write = pen.fillText;
         pen.fillText = function (text, ...at) {
             window.written.add(text);
             return write.call(this, text, ...at);
         }",
    );

    cluster.kill_agent(0).unwrap();
    browser.wait_for(&format!("{CHOICE} == 'New connections go to worker2'"));
    let moved = "[...document.querySelectorAll('#events [data-event=selection_changed]')]
        .find((item) => item.textContent.includes('worker1 -> worker2'))";
    browser.wait_for(moved);
    let late = browser.value(&format!(
        "window.changed - Date.parse({moved}.querySelector('time').dateTime)"
    ));
    let late = late.as_f64().unwrap();
    assert!((0.0..1000.0).contains(&late), "{late} ms");

    let card = "document.querySelector('#workers [data-key=worker1]')";
    browser.wait_for(&format!("{card}.dataset.state == 'down'"));
    browser.wait_for(&format!(
        "{card}.querySelector('.state').textContent == '✕ down'"
    ));
    browser.wait_for("window.written.has('worker1 ended')");
    // The record of the decision has its age, and the present figures stand before it.
    let reason = "document.getElementById('reason').textContent";
    browser.wait_for(&format!(
        "/^Decided [0-9]+ s ago: worker1 was down; /.test({reason})"
    ));
    let now = "document.getElementById('now').textContent";
    browser.wait_for(&format!(
        "{now} == 'Now: worker2 has 350.0 MiB available; no other worker is up.'"
    ));
    browser.wait_for("document.title.startsWith('worker2')");
    browser.prefer("prefers-color-scheme", "dark");
    browser.picture("dark");

    cluster.kill_agent(1).unwrap();
    browser.wait_for(&format!("{CHOICE} == 'The fallback on the manager serves'"));
    browser.resize(360, 800);
    browser.picture("phone");
    assert_eq!(browser.value("document.documentElement.scrollWidth"), 360);
    drop(probe);

    // The manager goes, and comes back.
    cluster.kill_manager().unwrap();
    browser.wait_for("document.getElementById('live').dataset.live == 'lost'");
    let complaints = std::mem::take(&mut browser.complaints);
    assert!(
        complaints
            .iter()
            .all(|complaint| complaint.contains("ERR_")),
        "{complaints:?}"
    );
    cluster.start_manager().unwrap();
    cluster.start_agent(1).unwrap();
    browser.wait_for(&format!("{CHOICE} == 'New connections go to worker2'"));
    browser
        .wait_for("document.querySelectorAll('#events [data-event=manager_started]').length == 2");
}

#[root_test]
fn works_by_keyboard_and_respects_reduced_motion() {
    let cluster = start(ClusterOptions::default());
    let every = Duration::from_millis(20);
    let _probe = Probe::start(&cluster.topology.client, cluster.service(), every, SOON).unwrap();
    let mut browser = open(&cluster, 1280, 900);
    browser.wait_for("document.querySelectorAll('.links .in:not([hidden])').length == 2");

    let focused = "document.activeElement.closest('[data-key=worker2]')";
    for _ in 0..20 {
        browser.press("Tab");
        if browser.value(&format!("Boolean({focused})")) == true {
            break;
        }
    }
    browser.press("Enter");
    browser.wait_for(&format!(
        "{focused}.firstElementChild.getAttribute('aria-pressed') == 'true'"
    ));
    browser.press("Tab");
    let focus = "document.activeElement";
    assert_eq!(browser.value(&format!("{focus}.id")), "worker-close");
    for name in ["range", "view"] {
        browser.press("Tab");
        assert_eq!(browser.value(&format!("{focus}.name")), name);
    }
    browser.press("ArrowRight");
    assert_eq!(browser.value(&format!("{focus}.value")), "total");
    browser.wait_for("document.getElementById('memory-readout').textContent == '800 MiB'");
    browser.press("ArrowLeft");
    browser.press("Tab");
    assert_eq!(browser.value(&format!("{focus}.id")), "connections");
    browser.press("Tab");
    assert_eq!(browser.value(&format!("{focus}.id")), "memory");
    browser.wait_for(
        "document.getElementById('memory-readout').textContent.includes('worker1 450 MiB')",
    );
    browser.press("ArrowLeft");
    browser
        .wait_for("/^[0-9].*worker1/.test(document.getElementById('memory-readout').textContent)");

    let motion = "getComputedStyle(document.querySelector('.links .in:not([hidden])'))";
    assert_eq!(browser.value(&format!("{motion}.animationName")), "run");
    browser.value("document.getElementById('motion').click()");
    assert_eq!(
        browser.value(&format!("{motion}.animationPlayState")),
        "paused"
    );
    browser.prefer("prefers-reduced-motion", "reduce");
    assert_eq!(browser.value(&format!("{motion}.animationName")), "none");

    for theme in ["light", "dark", "auto"] {
        browser.value("document.getElementById('theme').click()");
        let told = browser.value("document.getElementById('theme').ariaLabel");
        assert_eq!(told, format!("Theme: {theme}"));
    }
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

#[root_test]
fn shows_the_distribution_and_held_workers() {
    let mut cluster = start(ClusterOptions {
        available_kb: vec![600 * 1024, 350 * 1024, 500 * 1024, 200 * 1024],
        manager_arguments: vec!["--policy".into(), "balanced".into()],
        ..ClusterOptions::default()
    });
    let every = Duration::from_millis(10);
    let _probe = Probe::start(&cluster.topology.client, cluster.service(), every, SOON).unwrap();
    let mut browser = open(&cluster, 1280, 1400);
    browser.wait_for(&format!(
        "{CHOICE} == 'New connections are spread over 4 workers'"
    ));
    let state = |worker: &str| {
        format!("document.querySelector('#workers [data-key={worker}] .state').textContent")
    };
    browser.wait_for(&format!(
        "/up, unchecked, takes [0-9.]+ %$/.test({})",
        state("worker1")
    ));
    // Every worker gets some; the fifth link is the one from the clients.
    browser.wait_for("document.querySelectorAll('.links .in:not([hidden])').length == 5");
    browser.picture("balanced");

    output(
        cluster
            .memlb("drain")
            .args(["worker2", "--reason", "new kernel"]),
    )
    .unwrap();
    browser.wait_for(&format!("{}.includes('draining')", state("worker2")));
    browser.wait_for(
        "document.querySelector('#workers [data-key=worker2] .why').textContent
            .startsWith('drained by the operator (')",
    );
    browser.wait_for(&format!(
        "{CHOICE} == 'New connections are spread over 3 of 4 workers'"
    ));
    has_the_failing_worker(&mut browser, &mut cluster);
    if Browser::pictures().is_some() {
        // Its charts need some figures.
        thread::sleep(Duration::from_secs(75));
    }
    browser.picture("drained");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

/// Kills the server of `worker3`, whose agent goes on.
fn has_the_failing_worker(browser: &mut Browser, cluster: &mut Cluster) {
    let state = "document.querySelector('#workers [data-key=worker3]').dataset.state";
    browser.value(&format!(
        "window.failed = null;
         new MutationObserver(() => {{ if ({state} == 'failing') window.failed ??= Date.now() }})
             .observe(document.getElementById('workers'), {{ attributes: true, subtree: true }})"
    ));
    cluster.servers[2].process.kill().unwrap();
    browser.wait_for("window.failed");
    let event = "document.querySelector('#events [data-event=worker_failing] time')";
    browser.wait_for(event);
    let late = browser.value(&format!("window.failed - Date.parse({event}.dateTime)"));
    assert!(late.as_f64().unwrap() < 1000.0, "{late} ms");
    browser.wait_for(&format!("{state} == 'failing'"));
    browser.wait_for("document.querySelector('#workers > li').dataset.key == 'worker3'");
    let why = "document.querySelector('#workers [data-key=worker3] .why').textContent";
    let why = browser.value(why);
    assert!(why.as_str().unwrap().contains("refused"), "{why}");
}

pub fn open(cluster: &Cluster, width: u32, height: u32) -> Browser {
    let traces = cluster.paths.directory.join("browser");
    let mut browser = Browser::start(&cluster.topology.manager, &traces);
    browser.resize(width, height);
    browser.open(ORIGIN);
    browser
}
