//! Datagrams as they come: good, strange and hostile.

use std::time::Duration;

use lb_core::{BootId, Endpoint, Memory, Pressure, Protocol, WorkerState};
use proptest::prelude::*;

use super::*;

const VERSION_1: &str = concat!(
    r#"{"memlb":1,"worker":"worker1","boot":"00c0ffee00c0ffee","seq":17,"interval_ms":100,"#,
    r#""memory":{"available_bytes":413138944,"total_bytes":734003200},"#,
    r#""state":"ready","healthy":true,"version":"0.1.0"}"#
);
/// With everything that an agent may leave out.
const COMPLETE: &str = concat!(
    r#"{"memlb":1,"worker":"worker1","boot":"00c0ffee00c0ffee","seq":17,"interval_ms":100,"#,
    r#""memory":{"available_bytes":413138944,"total_bytes":734003200,"#,
    r#""cgroup":{"limit_bytes":268435456,"current_bytes":104857600,"inactive_file_bytes":20971520},"#,
    r#""pressure":{"some_avg10":1.25,"full_avg10":0.07}},"#,
    r#""state":"ready","healthy":true,"dsr":["192.168.56.101:80/tcp","[2001:db8::1]:53/udp"],"#,
    r#""version":"0.1.0"}"#
);
const OF_2018: &str = concat!(
    r#"[{"NamaWorker": "worker1", "IP": "192.168.56.103", "#,
    r#""Waktu": "2018-06-04 14:00:59", "freeMemory": "394"}]"#
);

/// A heartbeat of a ready worker, unsigned.
pub(super) fn heartbeat() -> Heartbeat {
    Heartbeat {
        worker: "worker1".to_owned(),
        boot: BootId(0x00c0_ffee_00c0_ffee),
        seq: 17,
        interval: Duration::from_millis(100),
        memory: MemoryReport {
            available_bytes: 394 << 20,
            total_bytes: 700 << 20,
            stale_ms: None,
            cgroup: None,
            pressure: None,
        },
        state: WorkerState::Ready,
        healthy: true,
        checked: false,
        translates: Vec::new(),
        version: "0.1.0".to_owned(),
        pause: None,
        nonce: None,
    }
}

/// The longest heartbeat without services of mode `dsr`.
fn longest() -> Heartbeat {
    Heartbeat {
        worker: "w".repeat(MAX_NAME_BYTES),
        seq: u64::MAX,
        interval: Duration::from_secs(3_600),
        memory: MemoryReport {
            available_bytes: u64::MAX,
            total_bytes: u64::MAX,
            stale_ms: Some(u64::MAX),
            cgroup: Some(CgroupMemory {
                limit_bytes: u64::MAX,
                current_bytes: u64::MAX,
                inactive_file_bytes: u64::MAX,
            }),
            pressure: Some(PressureReport {
                some_avg10: Pressure(10_000),
                full_avg10: Pressure(9_999),
            }),
        },
        state: WorkerState::Maintenance,
        healthy: false,
        version: "9".repeat(32),
        pause: Some(Duration::from_secs(3_600)),
        nonce: Some(Nonce(u64::MAX)),
        ..heartbeat()
    }
}

fn endpoints(texts: &[&str]) -> Vec<Endpoint> {
    let endpoint = |text: &&str| text.parse().expect("an endpoint");
    texts.iter().map(endpoint).collect()
}

/// The version-1 datagram with one piece replaced by another.
fn with(piece: &str, other: &str) -> String {
    assert!(VERSION_1.contains(piece), "{piece}");
    VERSION_1.replacen(piece, other, 1)
}

fn refusal(datagram: &[u8], legacy: bool) -> &'static str {
    match decode(datagram, legacy) {
        Ok(decoded) => panic!("accepted {decoded:?}"),
        Err(refusal) => {
            assert_printable(&refusal.to_string());
            refusal.name()
        }
    }
}

fn assert_printable(shown: &str) {
    assert!(!shown.contains(char::is_control), "{shown:?}");
    assert!(shown.len() < 500, "{shown:?}");
}

#[test]
fn version_1_has_exactly_these_bytes() {
    let datagram = heartbeat().encode().expect("a good heartbeat");
    assert_eq!(str::from_utf8(&datagram), Ok(VERSION_1));
    assert_eq!(
        decode(VERSION_1.as_bytes(), false),
        Ok(Decoded::Heartbeat(heartbeat()))
    );
    assert_eq!(
        heartbeat().to_string(),
        "worker1 #17: 394.0 MiB available of 700.0 MiB"
    );
}

#[test]
fn version_1_with_all_fields_has_exactly_these_bytes() {
    let complete = Heartbeat {
        memory: MemoryReport {
            cgroup: Some(CgroupMemory {
                limit_bytes: 256 << 20,
                current_bytes: 100 << 20,
                inactive_file_bytes: 20 << 20,
            }),
            pressure: Some(PressureReport {
                some_avg10: Pressure(125),
                full_avg10: Pressure(7),
            }),
            ..heartbeat().memory
        },
        translates: endpoints(&["192.168.56.101:80/tcp", "[2001:db8::1]:53/udp"]),
        ..heartbeat()
    };
    let datagram = complete.encode().expect("a good heartbeat");
    assert_eq!(str::from_utf8(&datagram), Ok(COMPLETE));
    assert_eq!(
        complete.to_string(),
        "worker1 #17: 176.0 MiB available of 256.0 MiB (cgroup), pressure 1.25%"
    );
    let report = complete.report();
    assert_eq!(report.translates, complete.translates);
    assert_eq!(report.memory.available_bytes, 176 << 20);
    assert_eq!(report.memory.total_bytes, Some(256 << 20));
    assert_eq!(report.pressure, Some(Pressure(125)));
    assert_eq!(
        decode(COMPLETE.as_bytes(), false),
        Ok(Decoded::Heartbeat(complete))
    );
}

#[test]
fn the_tighter_of_host_and_cgroup_counts() {
    let available = |limit, current, inactive_file| {
        let memory = MemoryReport {
            cgroup: Some(CgroupMemory {
                limit_bytes: limit,
                current_bytes: current,
                inactive_file_bytes: inactive_file,
            }),
            ..heartbeat().memory
        };
        let effective = memory.effective();
        assert!(effective.available_bytes <= effective.total_bytes.expect("a total"));
        effective.available_bytes
    };
    assert_eq!(available(500 << 20, 200 << 20, 50 << 20), 350 << 20);
    // The host itself has 394 MiB.
    assert_eq!(available(600 << 20, 0, 0), 394 << 20);
    assert_eq!(available(u64::MAX, u64::MAX, 0), 0);
    // Read one after another, the figures need not fit together.
    assert_eq!(available(1 << 20, 2 << 20, 0), 0);
    assert_eq!(available(1 << 20, 2 << 20, 3 << 20), 1 << 20);
}

#[test]
fn the_services_that_a_dsr_translator_translates_are_bounded() {
    let with_dsr = |list: &str| {
        with(
            r#""healthy":true"#,
            &format!(r#""healthy":true,"dsr":{list}"#),
        )
    };
    let service = r#""192.168.56.101:80/tcp""#;
    let list = |count| format!("[{}]", [service].repeat(count).join(","));
    assert!(decode(with_dsr(&list(MAX_TRANSLATED)).as_bytes(), false).is_ok());
    for (wrong, why) in [
        (list(MAX_TRANSLATED + 1).as_str(), "too_many_translated"),
        (r#"["192.168.56.101"]"#, "malformed"),
        (r#"["192.168.56.101:80/sctp"]"#, "malformed"),
        (r#"["web.example:80/tcp"]"#, "malformed"),
        (service, "malformed"),
        ("[80]", "malformed"),
    ] {
        assert_eq!(refusal(with_dsr(wrong).as_bytes(), false), why, "{wrong}");
    }
    let worst = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535/udp";
    let longest = Heartbeat {
        memory: MemoryReport {
            stale_ms: None,
            ..longest().memory
        },
        checked: true,
        translates: endpoints(&[worst; MAX_TRANSLATED]),
        version: "\"".repeat(32),
        pause: None,
        ..longest()
    };
    // The line that signs takes 82 bytes more.
    let bytes = longest.encode().expect("it fits").len();
    assert!(bytes + 82 < SIZE_LIMIT, "{bytes}");
}

#[test]
fn unknown_fields_are_ignored() {
    let grown = with(
        r#""state""#,
        r#""cgroup":{"limit_bytes":1},"pressure":[0.5],"load":null,"key_id":"k","state""#,
    );
    assert_eq!(
        decode(grown.as_bytes(), false),
        Ok(Decoded::Heartbeat(heartbeat()))
    );
    let null = with(
        r#""total_bytes":734003200}"#,
        r#""total_bytes":734003200,"cgroup":null,"pressure":null,"swap":1},"load1":0.52"#,
    );
    assert_eq!(
        decode(null.as_bytes(), false),
        Ok(Decoded::Heartbeat(heartbeat()))
    );
    let spaced = format!(" \r\n{VERSION_1}\n");
    assert!(decode(spaced.as_bytes(), false).is_ok());
}

#[test]
fn figures_that_could_not_be_read_again_have_their_age() {
    let memory = MemoryReport {
        stale_ms: Some(12_345),
        ..heartbeat().memory
    };
    let stale = Heartbeat {
        memory,
        ..heartbeat()
    };
    let datagram = stale.encode().expect("a good heartbeat");
    let text = str::from_utf8(&datagram).expect("JSON");
    let says =
        r#""memory":{"available_bytes":413138944,"total_bytes":734003200,"stale_ms":12345},"#;
    assert!(text.contains(says), "{text}");
    assert!(stale.to_string().contains("(stale for 12 s)"), "{stale}");
    let report = stale.report();
    assert_eq!(report.memory_stale, Some(Duration::from_millis(12_345)));
    assert_eq!(decode(&datagram, false), Ok(Decoded::Heartbeat(stale)));
}

#[test]
fn an_announced_pause_is_between_a_second_and_an_hour() {
    let paused = |milliseconds| Heartbeat {
        pause: Some(Duration::from_millis(milliseconds)),
        ..heartbeat()
    };
    let datagram = paused(30_000).encode().expect("a good heartbeat");
    let text = str::from_utf8(&datagram).expect("JSON");
    assert!(
        text.ends_with(r#""version":"0.1.0","pause_ms":30000}"#),
        "{text}"
    );
    let decoded = decode(&datagram, false).expect("a good heartbeat");
    assert_eq!(decoded.pause(), Some(Duration::from_secs(30)));
    for absurd in [0, 999, 3_600_001] {
        let refused = paused(absurd).encode().expect_err("refused");
        assert_eq!(refused.name(), "absurd_pause");
    }
}

#[test]
fn states_and_health_are_sent() {
    for (state, healthy, shown) in [
        (WorkerState::Ready, false, "service does not answer"),
        (WorkerState::Leaving, true, "leaving"),
        (WorkerState::Maintenance, true, "in maintenance"),
    ] {
        let heartbeat = Heartbeat {
            state,
            healthy,
            ..heartbeat()
        };
        let datagram = heartbeat.encode().expect("a good heartbeat");
        let decoded = decode(&datagram, false).expect("a good heartbeat");
        let report = decoded.report().expect("a report");
        assert_eq!((report.state, report.healthy), (state, healthy));
        assert!(heartbeat.to_string().ends_with(shown), "{heartbeat}");
    }
}

#[test]
fn each_fault_has_its_own_reason() {
    let long_name = "w".repeat(65);
    for (datagram, reason) in [
        (String::new(), "empty"),
        (" \n".to_owned(), "empty"),
        ("x".repeat(1_200), "oversized"),
        ("hello".to_owned(), "not_json"),
        ("17".to_owned(), "not_json"),
        ("{".to_owned(), "not_json"),
        ("{]".to_owned(), "not_json"),
        (format!("{VERSION_1}{VERSION_1}"), "not_json"),
        (VERSION_1[..VERSION_1.len() - 1].to_owned(), "not_json"),
        ("{}".to_owned(), "no_version"),
        (with(r#""memlb":1,"#, ""), "no_version"),
        (with(r#""memlb":1"#, r#""memlb":null"#), "no_version"),
        (with(r#""memlb":1"#, r#""memlb":2"#), "other_version"),
        (
            r#"{"memlb":3,"all":"different"}"#.to_owned(),
            "other_version",
        ),
        (with(r#""memlb":1"#, r#""memlb":"1""#), "malformed"),
        (with(r#""memlb":1"#, r#""memlb":1,"memlb":1"#), "malformed"),
        (with(r#""seq":17"#, r#""seq":17,"seq":18"#), "malformed"),
        (with(r#""seq":17,"#, ""), "malformed"),
        (with(r#""seq":17"#, r#""seq":-1"#), "malformed"),
        (with(r#""seq":17"#, r#""seq":1.5"#), "malformed"),
        (
            with(r#""seq":17"#, r#""seq":18446744073709551616"#),
            "malformed",
        ),
        (with("413138944", "1e400"), "not_json"),
        (with("413138944", "1e8"), "malformed"),
        (with("413138944", "NaN"), "not_json"),
        (with("413138944", "-1"), "malformed"),
        (with("413138944", "\"413138944\""), "malformed"),
        (with("413138944", "734003201"), "available_exceeds_total"),
        (
            with("413138944", "18446744073709551615"),
            "available_exceeds_total",
        ),
        (with("734003200", "0"), "zero_total_memory"),
        (with("\"worker1\"", "\"\""), "empty_worker_name"),
        (
            with("\"worker1\"", &format!("{long_name:?}")),
            "overlong_worker_name",
        ),
        (with("\"worker1\"", r#""worker 1""#), "bad_worker_name"),
        (
            with("\"worker1\"", r#""worker\u001b[2J""#),
            "bad_worker_name",
        ),
        (with("\"worker1\"", r#""worker\u0000""#), "bad_worker_name"),
        (with("\"worker1\"", "\"wörker\""), "bad_worker_name"),
        (
            with("\"worker1\"", "\"worker\u{202e}1\""),
            "bad_worker_name",
        ),
        (with("\"worker1\"", "\"../worker1\""), "bad_worker_name"),
        (with("\"worker1\"", "7"), "malformed"),
        (with("00c0ffee00c0ffee", "c0ffee"), "bad_boot"),
        (with("00c0ffee00c0ffee", "+0c0ffee00c0ffee"), "bad_boot"),
        (with("00c0ffee00c0ffee", "00c0ffee00c0ffee0"), "bad_boot"),
        (with("00c0ffee00c0ffee", "00c0ffee00c0ffeg"), "bad_boot"),
        (
            with("\"interval_ms\":100", "\"interval_ms\":0"),
            "absurd_interval",
        ),
        (
            with("\"interval_ms\":100", "\"interval_ms\":3600001"),
            "absurd_interval",
        ),
        (with("\"ready\"", "\"asleep\""), "malformed"),
        (with("\"ready\"", r#""\u001b[31m""#), "malformed"),
        (with("true", "1"), "malformed"),
        (with("\"0.1.0\"", "\"\""), "bad_agent_version"),
        (with("\"0.1.0\"", r#""0.1\n""#), "bad_agent_version"),
        (format!("{{\"a\":{}", "[".repeat(1_000)), "not_json"),
        (OF_2018.to_owned(), "legacy_off"),
        ("worker1_memory.json".to_owned(), "legacy_off"),
    ] {
        assert_eq!(refusal(datagram.as_bytes(), false), reason, "{datagram}");
    }
}

#[test]
fn absurd_figures_are_refused() {
    let with = |piece: &str, other: &str| {
        assert!(COMPLETE.contains(piece), "{piece}");
        COMPLETE.replacen(piece, other, 1)
    };
    for (datagram, reason) in [
        (with("268435456", "0"), "zero_memory_limit"),
        (with("268435456", "\"max\""), "malformed"),
        (with("104857600", "-1"), "malformed"),
        (with("\"inactive_file_bytes\"", "\"inactive\""), "malformed"),
        (with("1.25", "-0.01"), "malformed"),
        (with("1.25", "100.01"), "malformed"),
        (with("1.25", "1e400"), "not_json"),
        (with("1.25", "null"), "malformed"),
        (with("0.07", "\"0.07\""), "malformed"),
    ] {
        assert_eq!(refusal(datagram.as_bytes(), false), reason, "{datagram}");
    }
}

#[test]
fn another_version_is_refused_by_its_number() {
    let datagram = with(r#""memlb":1"#, r#""memlb":2"#);
    let error = decode(datagram.as_bytes(), false).expect_err("version 2");
    assert_eq!(error, Refusal::OtherVersion { version: 2 });
    assert_eq!(
        error.to_string(),
        "the heartbeat has version 2, and this memlb supports version 1"
    );
}

#[test]
fn the_size_limit_holds_both_ways() {
    let padded = |bytes: usize| format!("{VERSION_1}{}", " ".repeat(bytes - VERSION_1.len()));
    assert!(decode(padded(1_199).as_bytes(), false).is_ok());
    assert_eq!(refusal(padded(1_200).as_bytes(), false), "oversized");
    assert_eq!(refusal(&[b'x'; 65_507], true), "oversized");

    assert!(longest().encode().expect("it fits").len() < 700);
}

#[test]
fn an_agent_sends_nothing_that_would_be_refused() {
    let refused = |heartbeat: Heartbeat| heartbeat.encode().expect_err("refused").name();
    let mut bad = heartbeat();
    bad.worker = "worker 1".to_owned();
    assert_eq!(refused(bad), "bad_worker_name");
    let mut bad = heartbeat();
    bad.memory.available_bytes = bad.memory.total_bytes + 1;
    assert_eq!(refused(bad), "available_exceeds_total");
    let mut bad = heartbeat();
    bad.interval = Duration::from_micros(999);
    assert_eq!(refused(bad), "absurd_interval");
    let mut bad = heartbeat();
    bad.version = "x".repeat(33);
    assert_eq!(refused(bad), "bad_agent_version");
}

#[test]
fn the_2018_form_is_a_heartbeat_when_switched_on() {
    for name in ["worker1_memory.json", "worker1_memory.json\n", "w.json\0"] {
        let decoded = decode(name.as_bytes(), true).expect("a file's name");
        assert!(matches!(decoded, Decoded::LegacyFileName(_)), "{decoded:?}");
        assert_eq!(decoded.report(), None);
    }
    let decoded = decode(OF_2018.as_bytes(), true).expect("the list");
    let expected = LegacyHeartbeat {
        worker: "worker1".to_owned(),
        free_memory_bytes: 394 << 20,
        claimed_address: Some("192.168.56.103".to_owned()),
        claimed_time: Some("2018-06-04 14:00:59".to_owned()),
    };
    assert_eq!(
        expected.to_string(),
        "worker1 (2018 format): 394.0 MiB free, its clock says 2018-06-04 14:00:59"
    );
    assert_eq!(decoded, Decoded::Legacy(expected));
    let report = decoded.report().expect("a report");
    assert_eq!(
        report.memory,
        Memory {
            available_bytes: 394 << 20,
            total_bytes: None
        }
    );
    assert_eq!((report.sequence, report.interval), (None, None));
    // Version 1 is accepted, too.
    assert!(decode(VERSION_1.as_bytes(), true).is_ok());
}

#[test]
fn the_2018_number_may_be_bare_and_the_claims_anything() {
    for (free, mib) in [
        ("394", 394),
        (r#"" 394 ""#, 394),
        ("\"0\"", 0),
        ("1.5e2", 150),
    ] {
        let datagram = OF_2018.replace("\"394\"", free);
        let decoded = decode(datagram.as_bytes(), true).expect(free);
        let report = decoded.report().expect("a report");
        assert_eq!(report.memory.available_bytes, mib << 20, "{free}");
    }
    for time in [
        "1970-01-01 00:00:00",
        "tomorrow",
        "",
        r"\u001b[2J\u0007",
        "2999-99-99",
    ] {
        let datagram = OF_2018.replace("2018-06-04 14:00:59", time);
        let decoded = decode(datagram.as_bytes(), true).expect(time);
        let Decoded::Legacy(heartbeat) = decoded else {
            panic!("{decoded:?}");
        };
        assert_printable(&heartbeat.to_string());
        assert_eq!(heartbeat.free_memory_bytes, 394 << 20);
    }
    let bare = r#"[{"NamaWorker":"worker1","freeMemory":394,"CPU":"3.8"}]"#;
    assert!(decode(bare.as_bytes(), true).is_ok());
}

#[test]
fn garbage_in_the_2018_form_has_its_reasons() {
    let with = |piece: &str, other: &str| OF_2018.replacen(piece, other, 1);
    for (datagram, reason) in [
        ("[]".to_owned(), "legacy_length"),
        (
            format!("[{0},{0}]", &OF_2018[1..OF_2018.len() - 1]),
            "legacy_length",
        ),
        ("[1]".to_owned(), "malformed"),
        ("[[]]".to_owned(), "malformed"),
        ("[{}]".to_owned(), "malformed"),
        ("[".repeat(1_199), "malformed"),
        (OF_2018[..OF_2018.len() - 1].to_owned(), "not_json"),
        (with("NamaWorker", "Worker"), "malformed"),
        (with("worker1", ""), "empty_worker_name"),
        (with("worker1", "worker 1"), "bad_worker_name"),
        (with("worker1", &"w".repeat(65)), "overlong_worker_name"),
        (with("\"394\"", "\"\""), "absurd_free_memory"),
        (with("\"394\"", "\".\""), "absurd_free_memory"),
        (with("\"394\"", "\"-1\""), "absurd_free_memory"),
        (with("\"394\"", "-1"), "absurd_free_memory"),
        (with("\"394\"", "\"NaN\""), "absurd_free_memory"),
        (with("\"394\"", "\"inf\""), "absurd_free_memory"),
        (with("\"394\"", "\"394 MB\""), "absurd_free_memory"),
        (
            with("\"394\"", "\"99999999999999999999\""),
            "absurd_free_memory",
        ),
        (with("\"394\"", "1e300"), "absurd_free_memory"),
        (with("\"394\"", "null"), "malformed"),
        (with("\"394\"", "[394]"), "malformed"),
        ("worker1_memory.txt".to_owned(), "not_json"),
        (".json".to_owned(), "not_json"),
        ("../../etc/passwd.json".to_owned(), "not_json"),
        (format!("{}.json", "w".repeat(65)), "not_json"),
    ] {
        assert_eq!(refusal(datagram.as_bytes(), true), reason, "{datagram}");
    }
    assert_eq!(refusal(b"\xff\xfe\x00", true), "not_json");
}

#[test]
fn worker_names_are_restricted() {
    for name in ["w", "worker1", "Worker-1.lab_2", &"w".repeat(64)] {
        assert_eq!(check_name(name), Ok(()));
    }
    for (name, problem) in [
        ("", NameProblem::Empty),
        ("a b", NameProblem::BadCharacter { character: ' ' }),
        ("a\n", NameProblem::BadCharacter { character: '\n' }),
        ("..", NameProblem::LeadingDot),
    ] {
        assert_eq!(check_name(name), Err(problem));
        assert_printable(&problem.to_string());
    }
}

fn any_heartbeat() -> impl Strategy<Value = Heartbeat> {
    let cgroup = any::<(u64, u64, u64)>().prop_map(|(limit, current, file)| CgroupMemory {
        limit_bytes: limit.max(1),
        current_bytes: current,
        inactive_file_bytes: file,
    });
    let pressure = (0..=10_000u16, 0..=10_000u16).prop_map(|(some, full)| PressureReport {
        some_avg10: Pressure(some),
        full_avg10: Pressure(full),
    });
    let figures = (
        any::<(u64, u64, Option<u64>)>(),
        prop::option::of(cgroup),
        prop::option::of(pressure),
    );
    let memory = figures.prop_map(|((one, other, stale_ms), cgroup, pressure)| MemoryReport {
        available_bytes: one.min(other),
        total_bytes: one.max(other).max(1),
        stale_ms,
        cgroup,
        pressure,
    });
    let state = prop::sample::select(vec![
        WorkerState::Ready,
        WorkerState::Leaving,
        WorkerState::Maintenance,
    ]);
    (
        "[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}",
        any::<(u64, u64, bool)>(),
        1..3_600_000u64,
        (memory, any::<Option<u64>>()),
        (state, prop::collection::vec(endpoint(), 0..=MAX_TRANSLATED)),
        "[!-~]{1,32}",
    )
        .prop_map(
            |(
                worker,
                (boot, seq, healthy),
                interval,
                (memory, nonce),
                (state, translates),
                version,
            )| {
                Heartbeat {
                    worker,
                    boot: BootId(boot),
                    seq,
                    interval: Duration::from_millis(interval),
                    memory,
                    state,
                    healthy,
                    checked: false,
                    translates,
                    version,
                    pause: None,
                    nonce: nonce.map(Nonce),
                }
            },
        )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    (any::<std::net::IpAddr>(), 1..=u16::MAX, any::<bool>()).prop_map(|(ip, port, udp)| Endpoint {
        address: (ip.to_canonical(), port).into(),
        protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
    })
}

/// A good datagram of either form with a few of its bytes changed.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(vec![VERSION_1, COMPLETE, OF_2018, "worker1_memory.json"]);
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    (good, damage, any::<prop::sample::Index>()).prop_map(|(good, damage, end)| {
        let mut bytes = good.as_bytes().to_vec();
        for (index, byte) in damage {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes.truncate(end.index(2 * bytes.len()));
        bytes
    })
}

/// Whatever comes out of strange bytes keeps every promise that the manager builds on.
fn assert_harmless(datagram: &[u8], legacy: bool) {
    match decode(datagram, legacy) {
        Err(refusal) => assert_printable(&refusal.to_string()),
        Ok(decoded) => {
            assert!(datagram.len() < SIZE_LIMIT);
            let Some(report) = decoded.report() else {
                return assert!(legacy);
            };
            assert_eq!(check_name(&report.worker), Ok(()));
            let total = report.memory.total_bytes.unwrap_or(u64::MAX);
            assert!(total > 0 && report.memory.available_bytes <= total);
        }
    }
}

proptest! {
    #[test]
    fn encoding_round_trips(heartbeat in any_heartbeat()) {
        let datagram = heartbeat.encode().expect("a good heartbeat");
        prop_assert!(datagram.len() < SIZE_LIMIT);
        prop_assert_eq!(decode(&datagram, false), Ok(Decoded::Heartbeat(heartbeat)));
    }

    #[test]
    fn arbitrary_bytes_cause_no_panic(
        datagram in prop::collection::vec(any::<u8>(), 0..2_000),
        legacy: bool,
    ) {
        assert_harmless(&datagram, legacy);
    }

    #[test]
    fn damaged_heartbeats_cause_no_panic(datagram in damaged(), legacy: bool) {
        assert_harmless(&datagram, legacy);
    }

    #[test]
    fn arbitrary_text_causes_no_panic(text in "[\\[{\"]\\PC{0,200}", legacy: bool) {
        assert_harmless(text.as_bytes(), legacy);
    }
}
