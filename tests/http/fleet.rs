//! The page with twelve services and up to two hundred workers, in a real browser.

use std::{
    fmt::Write,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use memlb_tests::{
    Cluster, ClusterOptions,
    datagram::{Sender, heartbeat},
    root_test,
};

use super::{browser::Browser, page, start};

const SERVICES: usize = 12;

/// The worker whose heartbeats stop.
const LOST: usize = 2;

/// One of two long names alike at both ends, or a short one.
fn worker(number: usize) -> String {
    match number % 3 {
        0 => format!("memlb-prod-eu-west-1a-node-{number:04}.example.net"),
        1 => format!("web{number}"),
        _ => format!("rack{}-blade{number:03}-frontend.example.net", number % 7),
    }
}

fn name(service: usize) -> String {
    match service {
        0 => "web".to_owned(),
        1 => "service-with-an-unusually-long-name".to_owned(),
        number => format!("service{number}"),
    }
}

#[root_test]
fn two_workers_and_twelve_services() {
    check_page_of(2);
}

#[root_test]
fn forty_workers_and_twelve_services() {
    check_page_of(40);
}

#[root_test]
fn two_hundred_workers_and_twelve_services() {
    check_page_of(200);
}

fn check_page_of(workers: usize) {
    let file = format!("memlb-fleet-{}-{workers}.toml", std::process::id());
    let configuration = std::env::temp_dir().join(file);
    fs::write(&configuration, configure(workers)).unwrap();
    let cluster = start(ClusterOptions {
        configuration: Some(configuration.clone()),
        agents: false,
        ..ClusterOptions::default()
    });
    fs::remove_file(configuration).unwrap();
    let heartbeats = HeartbeatSender::start(&cluster, workers);
    let mut browser = page::open(&cluster, 1400, 1000);
    let title = "document.getElementById('fleet-title').textContent";
    browser.wait_for(&format!("{title} == '1 of 12 services needs attention'"));
    heartbeats.lose_worker();
    // Services 0 to 5 have it, and the last one never had a worker.
    browser.wait_for(&format!("{title} == '7 of 12 services need attention'"));
    for (width, size) in [(1400, "wide"), (390, "phone")] {
        browser.resize(width, 1000);
        overview(&mut browser, width);
        browser.picture(&format!("overview-{workers}-{size}"));
        service(&mut browser, workers, width);
        browser.picture(&format!("service-{workers}-{size}"));
        back(&mut browser);
        ipv6(&mut browser, width);
        browser.picture(&format!("ipv6-{workers}-{size}"));
        back(&mut browser);
    }
    events(&mut browser);
    browser.prefer("prefers-color-scheme", "dark");
    browser.picture(&format!("overview-{workers}-dark"));
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}

fn overview(browser: &mut Browser, width: u32) {
    browser.wait_for(&format!(
        "document.querySelectorAll('#fleet > tr').length == {SERVICES}"
    ));
    has_no_overflow(browser, width);
    in_order(browser, "#fleet > tr", "level");
    let first = "document.querySelector('#fleet > tr').textContent";
    let first = browser.value(first).to_string();
    assert!(first.contains("fallback serves"), "{first}");
    browser.wait_for(&format!(
        "document.querySelector('#fleet > [data-key=web] .at-worst').textContent.includes('{} is down')",
        worker(LOST)
    ));
    let risk = browser.value("document.getElementById('risks').textContent");
    assert!(
        risk.to_string()
            .contains("heartbeats are not authenticated"),
        "{risk}"
    );
}

fn service(browser: &mut Browser, workers: usize, width: u32) {
    browser.value("document.querySelector('#fleet > [data-key=web] a').click()");
    browser.wait_for("location.hash == '#web' && !document.getElementById('service').hidden");
    browser.wait_for(&format!(
        "document.querySelectorAll('#workers > li').length == {workers}"
    ));
    browser.wait_for("document.getElementById('open-readout').textContent.includes('total')");
    has_no_overflow(browser, width);
    in_order(browser, "#workers > li", "rank");
    let first = browser.value("document.querySelector('#workers > li').dataset.key");
    assert_eq!(first, worker(LOST));
    if workers > 48 {
        let shown = "document.querySelectorAll('#workers > li:not([hidden])').length";
        assert_eq!(browser.value(shown), if width > 480 { 48 } else { 16 });
        browser.value("document.getElementById('all-workers').click()");
        assert_eq!(browser.value(shown), workers);
    }
    distinguishable(browser, workers);
    has_no_overflow(browser, width);
    for choice in ["1m", "1h", "24h", "total", "percent", "workers", "10m"] {
        browser.value(&format!(
            "document.querySelector('[value=\"{choice}\"]').click()"
        ));
    }
    browser.wait_for("document.getElementById('open-readout').textContent.includes('total')");
    if workers > 48 {
        let find = |text: &str| {
            format!(
                "document.getElementById('find').value = '{text}';
                 document.getElementById('find').dispatchEvent(new Event('input'));
                 document.querySelectorAll('#workers > li:not([hidden])').length"
            )
        };
        assert_eq!(browser.value(&find("node-01")), 33);
        assert_eq!(browser.value(&find("down")), 1);
        browser.value(&find(""));
        browser.value("document.getElementById('all-workers').click()");
    }
}

fn back(browser: &mut Browser) {
    browser.value("history.back()");
    browser.wait_for("!document.getElementById('overview').hidden");
}

/// The service with the longest name and the longest addresses.
fn ipv6(browser: &mut Browser, width: u32) {
    let name = name(1);
    browser.value(&format!(
        "document.querySelector('#fleet > [data-key={name}] a').click()"
    ));
    browser.wait_for(&format!(
        "location.hash == '#{name}' && !document.getElementById('service').hidden"
    ));
    let addresses = "[...document.querySelectorAll('#workers .address')]";
    browser.wait_for(&format!(
        "{addresses}.some((it) => it.textContent.startsWith('[fd00::'))"
    ));
    has_no_overflow(browser, width);
    let cut = format!("{addresses}.filter((it) => it.scrollWidth > it.clientWidth).length");
    assert_eq!(browser.value(&cut), 0);
}

/// No two names look alike, none is cut off, and each tells its worker's whole name.
fn distinguishable(browser: &mut Browser, workers: usize) {
    let names = "[...document.querySelectorAll('#workers .name')]";
    browser.wait_for(&format!(
        "new Set({names}.map((name) => name.textContent)).size == {workers}"
    ));
    let cut = format!("{names}.filter((it) => it.scrollWidth > it.clientWidth).length");
    assert_eq!(browser.value(&cut), 0);
    let whole = "[...document.querySelectorAll('#workers > li')]
        .every((item) => item.firstElementChild.title.startsWith(item.dataset.key))";
    assert_eq!(browser.value(whole), true);
}

fn events(browser: &mut Browser) {
    let messages = "[...document.querySelectorAll('#events .message')]";
    let all = browser.value(&format!("{messages}.length")).as_u64();
    browser.value("document.querySelector('[name=severity][value=warn]').click()");
    let warnings = browser.value(&format!("{messages}.length")).as_u64();
    assert!(
        warnings > Some(0) && warnings < all,
        "{warnings:?} of {all:?}"
    );
    let signs = "[...document.querySelectorAll('#events .sign')]";
    let others = format!("{signs}.filter((it) => it.textContent != '▲ warning').length");
    assert_eq!(browser.value(&others), 0);
    browser.value(&format!(
        "document.getElementById('event-worker').value = '{}';
         document.getElementById('event-worker').dispatchEvent(new Event('change', {{ bubbles: true }}))",
        worker(LOST)
    ));
    let about = format!(
        "{messages}.length > 0 && {messages}.every((it) => it.textContent.includes('{}'))",
        worker(LOST)
    );
    assert_eq!(browser.value(&about), true);
}

fn has_no_overflow(browser: &mut Browser, width: u32) {
    assert_eq!(browser.value("document.documentElement.scrollWidth"), width);
}

/// What is worse stands before what is better.
fn in_order(browser: &mut Browser, items: &str, key: &str) {
    let levels =
        format!("[...document.querySelectorAll('{items}')].map((it) => +it.dataset.{key})");
    browser.wait_for(&format!(
        "{levels}.every((level, place, all) => place == 0 || all[place - 1] >= level)"
    ));
}

/// Heartbeats of all workers, until it is dropped.
struct HeartbeatSender {
    is_running: Arc<AtomicBool>,
    lost: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl HeartbeatSender {
    fn start(cluster: &Cluster, workers: usize) -> Self {
        let sender = Sender::open(&cluster.topology.client, cluster.heartbeat_address()).unwrap();
        let is_running = Arc::new(AtomicBool::new(true));
        let lost = Arc::new(AtomicBool::new(false));
        let thread = {
            let (is_running, lost) = (is_running.clone(), lost.clone());
            thread::spawn(move || send_heartbeats(&sender, workers, &is_running, &lost))
        };
        Self {
            is_running,
            lost,
            thread: Some(thread),
        }
    }

    fn lose_worker(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }
}

impl Drop for HeartbeatSender {
    fn drop(&mut self) {
        self.is_running.store(false, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn send_heartbeats(sender: &Sender, workers: usize, is_running: &AtomicBool, lost: &AtomicBool) {
    for seq in 1.. {
        if !is_running.load(Ordering::Relaxed) {
            return;
        }
        for number in 1..=workers {
            if number == LOST && lost.load(Ordering::Relaxed) {
                continue;
            }
            let available_kb = 100_000 + (number as u64 * 2371 + seq * 37) % 320_000;
            sender
                .send(heartbeat(&worker(number), 1, seq, available_kb))
                .unwrap();
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// `web` has all workers; the next five the first two, or all of forty; the last one a worker that is never heard;
/// the others the first worker. Every third service is one over IPv6.
fn configure(workers: usize) -> String {
    let mut text = "[manager]\ninterfaces = [\"eth1\"]\n\n[limits]\nbackends = 512\n".to_owned();
    for service in 0..SERVICES {
        let is_ipv6 = service % 3 == 1;
        // The lab's link has fd00::/96 as well.
        let host = |number: usize| match is_ipv6 {
            true => format!("[fd00::c0a8:38{number:02x}]"),
            false => format!("192.168.56.{number}"),
        };
        let manager = match is_ipv6 {
            true => "[2001:db8:85a3:8d3:1319:8a2e:370:7334]".to_owned(),
            false => host(101),
        };
        writeln!(
            text,
            "\n[[service]]\nname = \"{}\"\naddress = \"{manager}:{}\"\nfallback = \"{manager}:{}\"\npolicy = \"balanced\"\nworkers = [",
            name(service),
            80 + service,
            8080 + service,
        )
        .unwrap();
        let numbers = match service {
            0 => 1..=workers,
            number if number == SERVICES - 1 => 999..=999,
            6.. => 1..=1,
            _ if workers == 40 => 1..=40,
            _ => 1..=2,
        };
        for number in numbers {
            let at = format!("{}:{}", host(105 + number % 100), 9000 + number);
            let worker = worker(number);
            writeln!(text, "    {{ name = \"{worker}\", address = \"{at}\" }},").unwrap();
        }
        text += "]\n";
    }
    text
}
