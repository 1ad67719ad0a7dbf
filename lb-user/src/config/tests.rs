//! Valid and invalid configurations, and their problems.

use std::path::PathBuf;

use lb_core::{Mode, Protocol};

use super::*;
use crate::heartbeat::Authentication;
use ProblemKind as Kind;

const KERNEL: PortRange = PortRange {
    first: 32_768,
    last: 60_999,
};

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, "memlb.toml", &Overrides::default(), Some(KERNEL))
}

/// The example with another value of a setting, given as `key = value`; of several tables' keys, the last one's.
fn example_with(setting: &str) -> String {
    let key = setting.split(' ').next().unwrap_or_default();
    let is_it = |line: &&str| line.starts_with(&format!("{key} = "));
    let line = Config::example_text().lines().rfind(is_it);
    let line = line.unwrap_or_else(|| panic!("{key} is not in memlb.toml"));
    Config::example_text().replacen(&format!("\n{line}\n"), &format!("\n{setting}\n"), 1)
}

fn problems(text: &str) -> Vec<Problem> {
    parse(text).expect_err("a bad configuration").problems
}

fn worker(name: &str, address: &str) -> Worker {
    Worker {
        name: name.to_owned(),
        address: address.parse().expect("an address"),
        ..Worker::default()
    }
}

fn lab() -> Config {
    Config {
        manager: ManagerSettings {
            interfaces: vec!["eth1".to_owned()],
            ..ManagerSettings::default()
        },
        peers: Vec::new(),
        heartbeats: HeartbeatSettings::default(),
        failover: FailoverSettings::default(),
        limits: Limits::default(),
        services: vec![Service {
            name: "web".to_owned(),
            address: "192.168.56.101:80".parse().expect("an address"),
            policy: Policy::Memory,
            fallback: Some("192.168.56.101:8080".parse().expect("an address")),
            workers: vec![
                worker("worker1", "192.168.56.103:8081"),
                worker("worker2", "192.168.56.104:8082"),
            ],
            ..Service::default()
        }],
        origins: Default::default(),
    }
}

const LEAST: &str = r#"
    manager.interfaces = ["eth1"]
    [[service]]
    name = "web"
    address = "192.168.56.101:80"
    fallback = "192.168.56.101:8080"
    workers = [
        { name = "worker1", address = "192.168.56.103:8081" },
        { name = "worker2", address = "192.168.56.104:8082" },
    ]
"#;

#[test]
fn example_values_are_the_defaults() {
    assert_eq!(parse(Config::example_text()), Ok(lab()));
    // The lab is that of 2018; the default policy is the one that proved best.
    let mut least = lab();
    least.services[0].policy = Policy::Balanced;
    assert_eq!(parse(LEAST), Ok(least));
    assert_eq!(
        Config::example(&Overrides::default(), Some(KERNEL)),
        Ok(lab())
    );
    assert_eq!(lab().warnings(), Vec::<String>::new());
}

/// The problem of an unknown key lists the keys of its table.
#[test]
fn the_example_explains_every_setting() {
    let mut settings = 0;
    for (table, probe) in [
        ("[manager]", "[manager]\nx-x = 1"),
        ("#[[peer]]", "[[peer]]\nx-x = 1"),
        ("[heartbeats]", "[heartbeats]\nx-x = 1"),
        ("[failover]", "[failover]\nx-x = 1"),
        ("[limits]", "[limits]\nx-x = 1"),
        ("[[service]]", "[[service]]\nx-x = 1"),
    ] {
        let expected = problems(probe).remove(0).expected;
        let section = Config::example_text().split(&format!("\n{table}\n")).nth(1);
        let section = section.expect("the table stands in the example");
        let section = section.split("\n[").next().expect("a section");
        let lines: Vec<&str> = section.lines().collect();
        for key in expected.trim_start_matches("one of ").split(", ") {
            let given = lines.iter().position(|line| {
                line.trim_start_matches('#')
                    .starts_with(&format!("{key} = "))
            });
            let given = given.unwrap_or_else(|| panic!("{table} {key} is not in memlb.toml"));
            let above = lines[given - 1];
            assert!(above.starts_with("# "), "{table} {key} is not explained");
            settings += 1;
        }
    }
    assert_eq!(settings, 14 + 3 + 2 + 9 + 9 + 18);
}

#[test]
fn signatures_cannot_be_enforced_with_2018_heartbeats() {
    let text = |authentication: &str| {
        format!(
            "heartbeats.authentication = \"{authentication}\"\nmanager.legacy_heartbeats = true\n{LEAST}"
        )
    };
    assert_eq!(problems(&text("enforce"))[0].kind, Kind::LegacyUnsigned);
    let config = parse(&text("permissive")).expect("a good configuration");
    assert_eq!(config.heartbeats.authentication, Authentication::Permissive);
}

#[test]
fn only_an_agent_with_a_key_may_join() {
    let text = |authentication: &str, auto_join: &str| {
        let auto_join = format!("workers = []\nauto_join = {auto_join}");
        let services = LEAST.split("workers = [").next().expect("a beginning");
        format!("heartbeats.authentication = \"{authentication}\"\n{services}\n{auto_join}")
    };
    let networks = r#"{ networks = ["192.168.56.0/25", "10.0.0.7/32"], port = 8081 }"#;
    let config = parse(&text("enforce", networks)).expect("a good configuration");
    let auto_join = config.services[0]
        .auto_join
        .as_ref()
        .expect("some may join");
    assert_eq!(auto_join.port, 8081);
    let allowed = ["192.168.56.1", "192.168.56.127", "10.0.0.7"];
    let others = ["192.168.56.128", "10.0.0.8", "127.0.0.1"];
    for (addresses, allows) in [(allowed, true), (others, false)] {
        for address in addresses {
            let address = address.parse().expect("an address");
            assert_eq!(auto_join.allows(address), allows, "{address}");
        }
    }
    let kind = |authentication, auto_join: &str| {
        let found = problems(&text(authentication, auto_join)).remove(0);
        println!("{authentication} {auto_join}: {found}");
        found.kind
    };
    assert_eq!(kind("off", networks), Kind::AutoJoinUnauthenticated);
    for (auto_join, expected) in [
        ("networks = [], port = 8081", Kind::NoWorker),
        ("port = 8081", Kind::NoWorker),
        (r#"networks = ["10.0.0.0/8"]"#, Kind::Missing),
        (r#"networks = ["10.0.0.0/8"], port = 0"#, Kind::OutOfRange),
        (
            r#"networks = ["10.0.0.0/8"], port = 65536"#,
            Kind::OutOfRange,
        ),
        (r#"networks = ["10.0.0.1/8"], port = 1"#, Kind::BadNetwork),
        (r#"networks = ["10.0.0.1"], port = 1"#, Kind::BadNetwork),
        (r#"networks = ["10.0.0.0/33"], port = 1"#, Kind::BadNetwork),
        (r#"networks = ["fd00::/8"], port = 1"#, Kind::FamiliesMixed),
        (r#"network = ["10.0.0.0/8"], port = 1"#, Kind::UnknownKey),
    ] {
        assert_eq!(kind("enforce", &format!("{{ {auto_join} }}")), expected);
    }
}

#[test]
fn units_and_forms_are_read() {
    for (written, threshold) in [
        ("\"auto\"", Threshold::Auto),
        ("\"64MiB\"", Threshold::Bytes(64 << 20)),
        ("\"64 mib\"", Threshold::Bytes(64 << 20)),
        ("\"2GiB\"", Threshold::Bytes(2 << 30)),
        ("\"10%\"", Threshold::Percent(10)),
        ("\"4096\"", Threshold::Bytes(4096)),
        ("4096", Threshold::Bytes(4096)),
        ("\"0\"", Threshold::Bytes(0)),
    ] {
        let text = example_with(&format!("threshold = {written}"));
        let config = parse(&text).expect(written);
        assert_eq!(config.services[0].threshold, threshold, "{written}");
    }
    for (written, milliseconds) in [("1s", 1000), ("1s 500ms", 1500), ("2m", 120_000)] {
        let text = example_with(&format!("down_after = \"{written}\""));
        let down_after = parse(&text).expect(written).failover.down_after;
        assert_eq!(down_after, Duration::from_millis(milliseconds));
    }
    let text = example_with("event_log = \"\"");
    assert_eq!(parse(&text).expect("no log").manager.event_log, None);
}

/// The kind of a problem, and the setting of the example that has it.
const MISTAKES: &str = r#"
    Syntax                attach = auto
    WrongType             up_after = "2"
    WrongType             interfaces = "eth1"
    WrongType             legacy_heartbeats = "no"
    WrongType             down_after = 1.5
    BadDuration           down_after = 1500
    BadDuration           down_after = "1500"
    BadDuration           closing_idle = "-10s"
    OutOfRange            established_idle = "1y"
    UnknownChoice         authentication = "on"
    BadPath               keys = "keys"
    DownAfterTooShort     down_after = "299ms"
    ZeroInterval          heartbeat_interval = "0s"
    OutOfRange            up_after = 0
    OutOfRange            up_after = -1
    OutOfRange            flows = 0
    OutOfRange            per_client = -1
    OutOfRange            per_client = 99999999999999999999999
    IdleTimesReversed     half_open_idle = "3h"
    FailingPausesReversed failing_max_pause = "500ms"
    OutOfRange            failing_after = 1001
    BadPercent            max_failing = "0%"
    TooManyBackends       backends = 3
    BadPortRange          nat_ports = "4096"
    BadPortRange          nat_ports = "4096-70000"
    NatPortsReversed      nat_ports = "32767-4096"
    NatPortsPrivileged    nat_ports = "1023-32767"
    NatPortsOverlapKernel nat_ports = "4096-32768"
    NatPortsOverlapKernel nat_ports = "60999-65535"
    NoInterface           interfaces = []
    BadInterface          interfaces = ["eth1/0"]
    BadInterface          interfaces = ["longer-than-alternative-names-may-be-which-is-one-hundred-and-twenty-seven-characters-of-which-this-one-has-more-than-enough-to-be-refused"]
    DuplicateInterface    interfaces = ["eth1", "eth1"]
    UnknownChoice         attach = "tcx"
    BadPath               pin_path = "memlb"
    BadPath               control_socket = ""
    BadPath               state_file = ""
    BadAddress            heartbeat_listen = "9999"
    BadAddress            heartbeat_listen = "0.0.0.0:0"
    BadAddress            heartbeat_listen = "::"
    BadAddress            http_listen = "localhost:9998"
    BadName               http_names = ["http://lb.example.com"]
    BadName               http_names = [""]
    BadAddress            address = "192.168.56.101"
    BadAddress            address = "192.168.56.256:80"
    BadAddress            address = "192.168.56.101:65536"
    BadAddress            address = "[fe80::1%eth1]:80"
    BadAddress            address = "web.example:80"
    BadAddress            address = "0.0.0.0:80"
    BadAddress            address = "127.0.0.1:80"
    BadAddress            address = "2001:db8::1"
    BadAddress            address = "[::]:80"
    BadAddress            address = "[::1]:80"
    BadAddress            address = "[fe80::1]:80"
    BadAddress            address = "[ff02::1]:80"
    BadAddress            address = "[::ffff:192.168.56.101]:80"
    BadName               name = ""
    BadName               name = "the web"
    NotSupportedYet       protocol = "sctp"
    UnknownChoice         protocol = "tpc"
    ZeroInterval          rebalance_interval = "0s"
    OutOfRange            hold = "25h"
    BadDuration           hold = 250
    BadPercent            reserve = "91%"
    BadPercent            reserve = 5
    BadPercent            pressure_limit = "0%"
    BadPercent            max_share = "0%"
    BadDuration           ramp_up = "soon"
    UnknownChoice         policy = "memroy"
    UnknownChoice         mode = "drs"
    OutOfRange            services = 1025
    OutOfRange            services = 0
    ZeroInterval          datagram_idle = "0s"
    BadThreshold          threshold = "64MB"
    BadThreshold          threshold = "-5%"
    BadThreshold          threshold = "automatic"
    BadThreshold          threshold = -5
    BadThreshold          threshold = "99999999999TiB"
    FallbackIsService     fallback = "192.168.56.101:80"
    FallbackElsewhere     fallback = "192.168.56.102:8080"
"#;

/// The same of the example's second worker.
const MISTAKES_OF_WORKERS: &str = r#"
    FamiliesMixed           { name = "worker2", address = "[2001:db8::4]:8082" }
    BadPercent              { name = "worker2", address = "192.168.56.104:8082", weight = "1001%" }
    BadName                 { name = "manager", address = "192.168.56.104:8082" }
    DuplicateWorkerName     { name = "worker1", address = "192.168.56.104:8082" }
    DuplicateBackendAddress { name = "worker2", address = "192.168.56.103:8081" }
    WorkerOnManager         { name = "worker2", address = "192.168.56.101:8082" }
    Missing                 { name = "worker2" }
    UnknownKey              { name = "worker2", addres = "192.168.56.104:8082" }
"#;

#[test]
fn each_mistake_has_its_own_error_at_its_own_line() {
    let two_services = |name: &str, address: &str| {
        format!(
            "{}\n[[service]]\nname = \"{name}\"\naddress = \"{address}\"\nfallback = \
             \"192.168.56.101:8443\"\nworkers = [{{ name = \"worker1\", address = \
             \"192.168.56.103:9443\" }}]\n",
            Config::example_text()
        )
    };
    let without_workers = LEAST.split("workers").next().unwrap_or("");
    let worker2 = "{ name = \"worker2\", address = \"192.168.56.104:8082\" }";
    let example = Config::example_text();
    let settings = rows(MISTAKES).map(|(kind, setting)| (kind, example_with(setting)));
    let workers = rows(MISTAKES_OF_WORKERS)
        .map(|(kind, worker)| (kind, example.replacen(worker2, worker, 1)));
    let others = [
        (
            "UnknownKey",
            example.replacen("\ndown_after = ", "\ndownafter = ", 1),
        ),
        ("UnknownKey", format!("[managr]\n{example}")),
        (
            "Syntax",
            example.replacen("up_after = 2", "up_after = 2\nup_after = 3", 1),
        ),
        (
            "Missing",
            example.replacen("\naddress = \"192.168.56.101:80\"", "\n", 1),
        ),
        ("Missing", example.replacen("\nname = \"web\"", "\n", 1)),
        (
            "Missing",
            example.replacen("\nfallback = \"192.168.56.101:8080\"", "\n", 1),
        ),
        (
            "DuplicateServiceName",
            two_services("web", "192.168.56.101:443"),
        ),
        (
            "DuplicateServiceAddress",
            two_services("tls", "192.168.56.101:80"),
        ),
        ("NoService", "manager.interfaces = [\"eth1\"]".to_owned()),
        ("NoWorker", without_workers.to_owned()),
        ("NoWorker", format!("{without_workers}workers = []")),
    ];
    for (kind, text) in settings.chain(workers).chain(others) {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{kind}: {found:#?}");
        assert_eq!(format!("{:?}", found[0].kind), kind, "{}", found[0]);
        assert!(!found[0].key.is_empty() || kind == "Syntax", "{}", found[0]);
        assert!(!found[0].expected.is_empty() && !found[0].remedy.is_empty());
        assert_at_the_changed_line(&found[0], &text);
        println!("{kind}\n{}\n", found[0]);
    }
}

/// The rows of a table with a kind before each text.
fn rows(table: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let rows = table.lines().filter_map(|row| row.trim().split_once(' '));
    rows.map(|(kind, text)| (kind, text.trim()))
}

#[test]
fn every_mistake_of_a_file_is_reported_at_once() {
    let text = Config::example_text()
        .replacen("up_after = 2", "up_after = 2 two", 1)
        .replacen("attach = \"auto\"", "attach = auto", 1)
        .replacen("down_after = \"1500ms\"", "down_after = \"soon\"", 1)
        .replacen("policy = \"memory\"", "polcy = \"memory\"", 1);
    let found = problems(&text);
    let kinds: Vec<Kind> = found.iter().map(|it| it.kind).collect();
    assert_eq!(
        kinds,
        [
            Kind::Syntax,
            Kind::Syntax,
            Kind::BadDuration,
            Kind::UnknownKey
        ],
        "{found:#?}"
    );
    let json = serde_json::to_value(&found[2]).expect("JSON");
    assert_eq!(json["file"], "memlb.toml");
    assert_eq!(json["key"], "failover.down_after");
    assert!(
        json["line"].is_u64() && json["kind"] == "bad_duration",
        "{json}"
    );
}

/// Where a line of the example was changed, the error points to it.
fn assert_at_the_changed_line(problem: &Problem, text: &str) {
    let Origin::Line { line, .. } = &problem.origin else {
        return;
    };
    let mut pairs = text.lines().zip(Config::example_text().lines());
    let changed = 1 + pairs.position(|(now, before)| now != before).unwrap_or(0);
    let alike = [
        Kind::Missing,
        Kind::DuplicateServiceName,
        Kind::DuplicateServiceAddress,
    ];
    if text.lines().count() == Config::example_text().lines().count()
        && !alike.contains(&problem.kind)
    {
        assert_eq!(*line, changed, "{problem}");
    }
}

#[test]
fn no_service_has_an_address_at_which_the_manager_listens() {
    let udp = |address: &str, fallback: &str, listen: &str| {
        format!(
            r#"
            manager.interfaces = ["eth1"]
            manager.heartbeat_listen = "{listen}"
            [[service]]
            name = "dns"
            protocol = "udp"
            address = "{address}"
            fallback = "{fallback}"
            workers = [{{ name = "worker1", address = "{}" }}]
            "#,
            if address.starts_with('[') {
                "[2001:db8::9]:53"
            } else {
                "10.77.0.9:53"
            }
        )
    };
    let tcp = |address: &str, fallback: &str, listen: &str| {
        let text = udp(address, fallback, listen).replace("\"udp\"", "\"tcp\"");
        text.replace("heartbeat_listen", "http_listen")
    };
    for text in [
        udp("10.77.0.1:9999", "reject", "0.0.0.0:9999"),
        udp("10.77.0.1:9999", "reject", "10.77.0.1:9999"),
        udp("10.77.0.1:9999", "reject", "[::]:9999"),
        udp("[2001:db8::1]:9999", "reject", "[::]:9999"),
        udp("10.77.0.1:53", "10.77.0.1:9999", "0.0.0.0:9999"),
        tcp("10.77.0.1:9998", "reject", "10.77.0.1:9998"),
        tcp("10.77.0.1:80", "10.77.0.1:9998", "10.77.0.1:9998"),
        tcp("10.77.0.1:80", "10.77.0.1:9998", "0.0.0.0:9998"),
    ] {
        let found = problems(&text);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].kind, Kind::ManagersOwnAddress, "{}", found[0]);
        assert!(found[0].what.contains("_listen = "), "{}", found[0]);
    }
    for text in [
        udp("10.77.0.1:9999", "reject", "10.77.0.2:9999"),
        udp("10.77.0.1:9999", "reject", "10.77.0.1:9990"),
        udp("[2001:db8::1]:9999", "reject", "0.0.0.0:9999"),
        // TCP is no UDP.
        udp("10.77.0.1:9998", "reject", "0.0.0.0:9999"),
        tcp("10.77.0.1:9999", "10.77.0.1:9998", ""),
        tcp("10.77.0.1:80", "10.77.0.1:9998", "127.0.0.1:9998"),
    ] {
        parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

#[test]
fn unknown_word_error_suggests_or_lists_the_known_words() {
    for (setting, advice) in [
        (r#"protocol = "UDP""#, r#"did you mean "udp"?"#),
        (r#"mode = "DSR""#, r#"did you mean "dsr"?"#),
        (
            r#"policy = "least_conn""#,
            r#"did you mean "least_connections"?"#,
        ),
        (
            r#"policy = "leastconn""#,
            r#"did you mean "least_connections"?"#,
        ),
        (
            r#"policy = "Round-Robin""#,
            r#"did you mean "round_robin"?"#,
        ),
        (r#"authentication = "on""#, "write one that is known"),
        (r#"protocol = "sctp""#, "write one that is known"),
        (r#"reserve = "95%""#, "write a percentage in this range"),
        (r#"reserve = "50""#, r#"write "50%""#),
    ] {
        let found = problems(&example_with(setting)).remove(0);
        assert!(found.remedy.starts_with(advice), "{found}");
    }
    let reserve = problems(&example_with("reserve = \"95%\"")).remove(0);
    assert_eq!(reserve.what, "\"95%\" is out of range");
    assert!(
        reserve.expected.ends_with("from \"0%\" to \"90%\""),
        "{reserve}"
    );
}

#[test]
fn names_the_part_that_is_wrong() {
    for (line, what, remedy) in [
        (
            "address = \"192.168.56.101:65536\"",
            "has a port that does not exist",
            "write a port from 1 to 65535",
        ),
        (
            "address = \"[2001:db8::1]:65536\"",
            "has a port that does not exist",
            "write a port from 1 to 65535",
        ),
        (
            "http_listen = \"9998\"",
            "is a port without an address",
            "add the address: ADDRESS:9998",
        ),
        (
            "address = \"[fe80::1%eth1]:80\"",
            "names an interface",
            "write an address that is not link-local",
        ),
        (
            "per_client = 99999999999999999999999",
            "99999999999999999999999 is out of range",
            "the default is 0",
        ),
    ] {
        let found = problems(&example_with(line)).remove(0);
        assert!(found.what.contains(what), "{found}");
        assert!(found.remedy.contains(remedy), "{found}");
    }
    let twice = LEAST.replace("name = \"web\"", "name = \"web\"\nname = \"web\"");
    assert_ne!(twice, LEAST);
    assert_eq!(problems(&twice)[0].what, "name is set a second time");
}

#[test]
fn tables_and_lists_are_explained_by_an_example() {
    let single = LEAST.replace("[[service]]", "[service]");
    let repeated = Config::example_text().replace("\n[failover]\n", "\n[[failover]]\n");
    let names = LEAST.split("workers =").next().unwrap_or("");
    let workers = |workers: &str| format!("{names}workers = {workers}");
    let list = "workers = [{ name = ";
    let braces = "auto_join = { networks = [";
    for (text, key, expected) in [
        (single, "service", "[[service]]"),
        (repeated, "failover", "[failover]"),
        (workers("[\n    \"worker1\",\n]"), "service.workers", list),
        (workers("[\"worker1\"]"), "service.workers", list),
        (workers("\"worker1\""), "service.workers", list),
        (
            example_with("auto_join = [\"10.77.0.0/24\"]"),
            "service.auto_join",
            braces,
        ),
        (
            example_with("auto_join = \"10.77.0.0/24\""),
            "service.auto_join",
            braces,
        ),
    ] {
        let found = problems(&text).remove(0);
        assert_eq!(found.kind, Kind::WrongType, "{found}");
        assert_eq!(found.key, key, "{found}");
        assert!(found.expected.starts_with(expected), "{found}");
        for word in ["struct", "sequence", "map,"] {
            assert!(!found.to_string().contains(word), "{found}");
        }
    }
}

#[test]
fn warns_of_settings_of_another_policy() {
    let idle = |text: &str| parse(text).expect("allowed").warnings();
    let threshold = example_with("threshold = \"10%\"");
    assert_eq!(idle(&threshold), [""; 0]);
    let text = threshold
        .replace("hold = \"250ms\"", "hold = \"1s\"")
        .replace("policy = \"memory\"", "policy = \"balanced\"");
    let warnings = idle(&text);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].starts_with(
            "service web: threshold and hold have no effect under policy \"balanced\""
        ),
        "{warnings:?}"
    );
}

#[test]
fn relative_paths_are_refused_wherever_they_are_given() {
    for key in ["pin_path", "control_socket", "state_file", "event_log"] {
        let found = problems(&example_with(&format!("{key} = \"x.file\"")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].kind, Kind::BadPath);
        assert_eq!(found[0].what, "\"x.file\" is not an absolute path");
    }
    let overrides = Overrides::default()
        .option("manager.control_socket", "x.file")
        .option("manager.state_file", "x.file")
        .option("manager.event_log", "x.file");
    let error = Config::example(&overrides, None).expect_err("relative paths");
    let error = error.to_string();
    for flag in ["--control-socket: ", "--state-file: ", "--event-log: "] {
        assert!(
            error.contains(&format!("{flag}\"x.file\" is not an absolute path")),
            "{error}"
        );
    }
}

#[test]
fn all_mistakes_are_reported_together() {
    let text = example_with("up_after = 0")
        .replace("closing_idle = \"10s\"", "closing_idle = \"10\"")
        .replace(
            "address = \"192.168.56.104:8082\"",
            "address = \"[::1]:8082\"",
        );
    let kinds: Vec<Kind> = problems(&text).iter().map(|problem| problem.kind).collect();
    assert_eq!(
        kinds,
        [Kind::OutOfRange, Kind::BadDuration, Kind::BadAddress]
    );
}

#[test]
fn an_error_has_fault_place_expectation_and_remedy() {
    let text = example_with("down_after = \"200ms\"");
    let line = 1 + text
        .lines()
        .position(|line| line.starts_with("down_after"))
        .expect("the line");
    assert_eq!(
        parse(&text).expect_err("too short").to_string(),
        format!(
            "memlb.toml, line {line}, failover.down_after: 200ms is shorter than three heartbeat \
             intervals of 100ms\n  expected: at least 300ms\n  to do: raise down_after, or lower \
             heartbeat_interval here and --interval of the agents"
        )
    );
    let text = Config::example_text().replacen("\ndown_after = ", "\ndownafter = ", 1);
    assert_eq!(
        parse(&text).expect_err("unknown").to_string(),
        format!(
            "memlb.toml, line {line}, failover.downafter: there is no setting \"downafter\" here\n  \
             expected: one of heartbeat_interval, down_after, up_after, failing_after, failing_window, \
             failing_pause, failing_max_pause, max_failing, panic_threshold\n  to do: did you mean \
             \"down_after\"?"
        )
    );
}

#[test]
fn command_line_overrides_the_file() {
    let overrides = Overrides::default()
        .option("manager.interfaces", "lan0")
        .option("manager.interfaces", "lan1")
        .option("manager.attach", "xdp")
        .option("manager.heartbeat_listen", "10.0.0.1:9000")
        .option("manager.pin_path", "/run/bpf/other")
        .option("manager.control_socket", "/run/other.sock")
        .option("manager.state_file", "/run/other.json")
        .option("manager.event_log", "")
        .option("manager.legacy_heartbeats", "true")
        .option("manager.http_listen", "")
        .option("failover.down_after", "20s")
        .option("service.threshold", "10%");
    let config = Config::example(&overrides, Some(KERNEL)).expect("a good configuration");
    let mut expected = lab();
    expected.manager = ManagerSettings {
        interfaces: vec!["lan0".to_owned(), "lan1".to_owned()],
        attach: Attach::Xdp,
        heartbeat_listen: "10.0.0.1:9000".parse().expect("an address"),
        pin_path: PathBuf::from("/run/bpf/other"),
        control_socket: PathBuf::from("/run/other.sock"),
        state_file: PathBuf::from("/run/other.json"),
        event_log: None,
        legacy_heartbeats: true,
        http_listen: None,
        ..ManagerSettings::default()
    };
    expected.failover.down_after = Duration::from_secs(20);
    expected.services[0].threshold = Threshold::Percent(10);
    assert_eq!(config, expected);
}

#[test]
fn an_error_of_the_command_line_names_the_flag() {
    let too_short = "--down-after: 200ms is shorter than three heartbeat intervals of 100ms";
    for (key, value, shown) in [
        ("failover.down_after", "200ms", too_short),
        (
            "manager.attach",
            "generic",
            "--attach: \"generic\" is not known",
        ),
        (
            "service.threshold",
            "x",
            "--threshold: \"x\" is not a threshold",
        ),
    ] {
        let overrides = Overrides::default().option(key, value);
        let error = Config::example(&overrides, None).expect_err(shown);
        assert!(error.to_string().starts_with(shown), "{error}");
    }
}

#[test]
fn the_kernels_range_counts_only_when_it_is_known() {
    let text = example_with("nat_ports = \"4096-65535\"");
    let config = Config::parse(&text, "memlb.toml", &Overrides::default(), None);
    assert_eq!(
        config
            .expect("no range to compare with")
            .limits
            .nat_ports
            .last,
        65_535
    );
}

#[test]
fn warns_when_2018_workers_would_flap() {
    let text = example_with("legacy_heartbeats = true");
    let warnings = parse(&text).expect("allowed").warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("15s"),
        "{warnings:?}"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let path = Path::new("/nonexistent/memlb.toml");
    let error = Config::read(path, &Overrides::default(), None).expect_err("no such file");
    assert_eq!(error.problems[0].kind, Kind::Unreadable);
    assert!(
        error
            .to_string()
            .starts_with("/nonexistent/memlb.toml: cannot be read")
    );
}

#[test]
fn a_file_in_another_encoding_is_reported_with_its_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("memlb.toml");
    let read = |bytes: Vec<u8>| {
        std::fs::write(&path, bytes).unwrap();
        Config::read(&path, &Overrides::default(), None)
    };
    let example = Config::example_text();
    for text in [
        example.replace('\n', "\r\n"),
        format!("\u{feff}{example}"),
        format!("\u{feff}{}", example.replace('\n', "\r\n")),
    ] {
        assert!(read(text.into_bytes()).is_ok());
    }
    let wide = example.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let error = read(wide).expect_err("UTF-16").to_string();
    assert!(error.contains("encoded in UTF-16LE"), "{error}");
    assert!(
        error.contains("to do: iconv -f UTF-16LE -t UTF-8"),
        "{error}"
    );
    let latin = [b"# caf\xe9\n", example.as_bytes()].concat();
    let error = read(latin).expect_err("Latin-1").to_string();
    assert!(error.contains("memlb.toml, line 1: "), "{error}");
    assert!(error.contains("iconv -f WINDOWS-1252"), "{error}");
}

#[test]
fn ids_follow_the_file_and_stay_with_their_addresses() {
    use lb_core::{BackendId, ServiceId};
    let ids = |config: &Config, pinned: &PinnedIds| {
        let service = config.settings(pinned).services.remove(0);
        let mut ids: Vec<u32> = service
            .backends
            .iter()
            .map(|backend| backend.id.0)
            .collect();
        ids.push(service.fallback.as_ref().expect("a fallback").id.0);
        (service.id.0, ids)
    };
    let lab = lab();
    assert_eq!(ids(&lab, &PinnedIds::default()), (0, vec![1, 2, 3]));

    let at = |text: &str| text.parse().expect("an endpoint");
    let nat = |text: &str| Identity {
        endpoint: at(text),
        mode: Mode::Nat,
        service: None,
    };
    let pinned = PinnedIds {
        services: vec![
            (ServiceId(0), at("192.168.56.101:443")),
            (ServiceId(4), at("192.168.56.101:80")),
            (ServiceId(5), at("192.168.56.101:80/udp")),
        ],
        backends: vec![
            (BackendId(1), nat("192.168.56.102:8080")),
            (BackendId(2), nat("192.168.56.103:8081")),
            (BackendId(7), nat("192.168.56.101:8080")),
        ],
        ..PinnedIds::default()
    };
    assert_eq!(ids(&lab, &pinned), (4, vec![2, 3, 7]));

    // Flows of one protocol or mode are nothing to those of another.
    let mut udp = lab.clone();
    udp.services[0].protocol = Protocol::Udp;
    assert_eq!(ids(&udp, &pinned), (5, vec![3, 4, 5]));
    let mut dsr = lab.clone();
    dsr.services[0].mode = Mode::Dsr;
    assert_eq!(ids(&dsr, &pinned), (4, vec![3, 4, 7]));

    let mut full = lab;
    full.limits.backends = 4;
    let pinned = PinnedIds {
        backends: vec![
            (BackendId(1), nat("192.168.56.90:1")),
            (BackendId(2), nat("192.168.56.104:8082")),
            (BackendId(3), nat("192.168.56.91:1")),
        ],
        ..PinnedIds::default()
    };
    assert_eq!(ids(&full, &pinned), (0, vec![1, 2, 3]));
}

/// Two services at one address, and one of the other family.
const BOTH_FAMILIES: &str = r#"
    manager.interfaces = ["eth1"]
    manager.heartbeat_listen = "[::]:9999"
    manager.http_listen = "[::1]:9998"
    limits = { services = 3, datagram_idle = "5s" }
    [[service]]
    name = "dns"
    address = "192.168.56.101:53"
    protocol = "udp"
    fallback = "reject"
    workers = [{ name = "worker1", address = "192.168.56.103:53" }]
    [[service]]
    name = "dns-tcp"
    address = "192.168.56.101:53"
    fallback = "reject"
    workers = [{ name = "worker1", address = "192.168.56.103:53" }]
    [[service]]
    name = "web6"
    address = "[2001:db8::1]:80"
    mode = "dsr"
    fallback = "[2001:db8::1]:8080"
    workers = [{ name = "worker1", address = "[2001:db8::3]:8081" }]
"#;

#[test]
fn services_differ_by_protocol_and_family() {
    let config = parse(BOTH_FAMILIES).expect("a good configuration");
    let endpoints: Vec<String> = config
        .services
        .iter()
        .map(|service| service.endpoint().to_string())
        .collect();
    assert_eq!(
        endpoints,
        [
            "192.168.56.101:53/udp",
            "192.168.56.101:53/tcp",
            "[2001:db8::1]:80/tcp"
        ]
    );
    assert_eq!(config.services[2].mode, Mode::Dsr);
    assert_eq!(config.limits.datagram_idle, Duration::from_secs(5));
    assert_eq!(config.manager.heartbeat_listen.to_string(), "[::]:9999");
    let settings = config.settings(&PinnedIds::default());
    let ids: Vec<u32> = settings
        .services
        .iter()
        .flat_map(|service| &service.backends)
        .map(|backend| backend.id.0)
        .collect();
    assert_eq!(
        ids,
        [1, 2, 3],
        "one worker at one address, but not one backend"
    );

    let again = BOTH_FAMILIES.replace("protocol = \"udp\"", "protocol = \"tcp\"");
    let found = problems(&again);
    assert_eq!(found[0].kind, Kind::DuplicateServiceAddress);
    assert!(found[0].what.contains("192.168.56.101:53/tcp"), "{found:?}");
    let few = BOTH_FAMILIES.replace("services = 3", "services = 2");
    assert_eq!(problems(&few)[0].kind, Kind::TooManyServices);
}

#[test]
fn families_do_not_mix() {
    let mixed = BOTH_FAMILIES.replace("[2001:db8::3]:8081", "192.168.56.103:8081");
    let found = problems(&mixed);
    assert_eq!(found[0].kind, Kind::FamiliesMixed);
    assert_eq!(
        found[0].what,
        "192.168.56.103 is an IPv4 address, and the service's, 2001:db8::1, an IPv6 one"
    );
    let fallback = BOTH_FAMILIES.replace("[2001:db8::1]:8080", "192.168.56.101:8080");
    assert_eq!(problems(&fallback)[0].kind, Kind::FallbackElsewhere);

    let joining = |networks: &str| {
        format!(
            "heartbeats.authentication = \"enforce\"\n{BOTH_FAMILIES}\n\
             auto_join = {{ networks = [{networks}], port = 80 }}"
        )
    };
    let config = parse(&joining("\"2001:db8::/64\"")).expect("a good configuration");
    let auto_join = config.services[2].auto_join.as_ref().expect("auto_join");
    assert!(auto_join.allows("2001:db8::7".parse().expect("an address")));
    assert!(!auto_join.allows("192.168.56.7".parse().expect("an address")));
    assert_eq!(
        problems(&joining("\"192.168.56.0/24\""))[0].kind,
        Kind::FamiliesMixed
    );
    let host = &problems(&joining("\"2001:db8::7/64\""))[0];
    assert_eq!(host.kind, Kind::BadNetwork);
    assert!(host.remedy.contains("2001:db8::/64"), "{host:?}");
}

#[test]
fn routed_service_shares_no_worker_endpoint() {
    let pair = |one: &str, other: &str, port: u16| {
        let service = |name: &str, address_port: u16, mode: &str, port: u16| {
            format!(
                "[[service]]\nname = \"{name}\"\naddress = \"192.168.56.101:{address_port}\"\n\
                 fallback = \"reject\"\nmode = \"{mode}\"\n\
                 workers = [{{ name = \"worker1\", address = \"192.168.57.3:{port}\" }}]\n"
            )
        };
        let manager = "manager.interfaces = [\"eth1\"]\n".to_owned();
        manager + &service("web", 80, one, 8081) + &service("tls", 443, other, port)
    };
    for (one, other) in [("routed", "routed"), ("routed", "dsr"), ("dsr", "routed")] {
        let found = problems(&pair(one, other, 8081));
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].kind, Kind::SharedEndpoint);
        assert_eq!(
            found[0].what,
            "192.168.57.3:8081 already serves service web, and mode \"routed\" cannot distinguish the two"
        );
        parse(&pair(one, other, 8082)).expect("two ports");
    }
    for (one, other) in [("nat", "routed"), ("dsr", "dsr"), ("nat", "nat")] {
        parse(&pair(one, other, 8081)).expect("told apart");
    }
}

/// Returns the example with `--set`, or the text of its problems.
fn example_with_set(sets: &[&str]) -> Result<Config, String> {
    let overrides = sets
        .iter()
        .fold(Overrides::default(), |it, set| it.set(set));
    Config::example(&overrides, None).map_err(|error| error.to_string())
}

#[test]
fn set_overrides_and_extends_the_file() {
    let config = example_with_set(&[
        "failover.down_after=2s",
        "limits.flows=1000",
        "manager.interfaces=[\"eth7\", \"eth8\"]",
        "service.web.threshold=\"10%\"",
    ])
    .unwrap();
    assert_eq!(config.failover.down_after, Duration::from_secs(2));
    assert_eq!(config.limits.flows, 1000);
    assert_eq!(config.manager.interfaces, ["eth7", "eth8"]);
    assert_eq!(config.services[0].threshold, Threshold::Percent(10));
}

#[test]
fn set_is_validated_like_the_file() {
    for (set, said) in [
        ("failover.down_after=1ms", "down_after"),
        ("limits.flow=1", "did you mean \"flows\"?"),
        ("limits.flows", "it has no \"=\""),
        ("flows=1", "table of the setting is missing"),
        ("limit.flows=1", "there is no table limit"),
        (
            "service.wed.threshold=auto",
            "there is no table service.wed",
        ),
    ] {
        let error = example_with_set(&[set]).unwrap_err();
        assert!(error.contains(said), "{set}: {error}");
    }
}

/// A file of few lines, of which the last but one is wrong.
const FILE: &str = "\
[manager]
interfaces = [\"eth1\"]

[failover]
down_after = \"2s\"

[[service]]
name = \"web\"
address = \"192.168.56.101:80\"
fallback = \"192.168.56.101:8080\"
reserve = \"99%\"
workers = [{ name = \"worker1\", address = \"192.168.56.103:8081\" }]
";

#[test]
fn an_error_of_set_names_the_option_or_the_line_of_the_file() {
    for (sets, said) in [
        (
            &["failover.down_after=2500"][..],
            &["--set failover.down_after=2500: "][..],
        ),
        (
            &["service.web.thresold=3"],
            &["--set service.web.thresold=3: there is no"],
        ),
        (
            &[
                "failover.up_after=3",
                "failover.down_after=9s",
                "manager.attach=tc",
            ],
            &["memlb.toml, line 11, service.reserve: "],
        ),
        (
            &[
                "limits.flows=0",
                "failover.up_after=0",
                "failover.up_after=-1",
            ],
            &[
                "--set failover.up_after=-1: -1 is out",
                "--set limits.flows=0: 0 is out",
                "memlb.toml, line 11, service.reserve: ",
            ],
        ),
    ] {
        let overrides = sets
            .iter()
            .fold(Overrides::default(), |it, set| it.set(set));
        let error = Config::parse(FILE, "memlb.toml", &overrides, None).unwrap_err();
        let error = error.to_string();
        for said in said {
            assert!(error.contains(said), "{said}\n{error}");
        }
    }
}

#[test]
fn a_retired_key_names_its_replacement() {
    let text = Config::example_text().replacen("\nflows = 131072", "\nhalf_open_flows = 4096", 1);
    let found = problems(&text).remove(0);
    assert_eq!(found.kind, Kind::UnknownKey);
    assert!(
        found.remedy.starts_with("remove it: memlb sizes"),
        "{found}"
    );
}

const PEERS: &str = r#"
    [manager]
    interfaces = ["eth1"]
    nat_sources = ["192.168.56.21"]
    name = "manager1"
    peer_listen = "10.0.9.1:9997"
    [[peer]]
    name = "manager2"
    address = "10.0.9.2:9997"
    [[peer]]
    name = "manager3"
    address = "10.0.9.3:9997"
    key = "/etc/memlb/manager3.key"
    [[service]]
    name = "web"
    address = "192.168.56.101:80"
    fallback = "reject"
    workers = [{ name = "worker1", address = "192.168.56.103:8081" }]
"#;

#[test]
fn peers_are_other_managers() {
    let config = parse(PEERS).expect("a good configuration");
    let peers: Vec<&str> = config.peers.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(peers, ["manager2", "manager3"]);
    assert_eq!(config.peers[0].key.as_os_str(), "/etc/memlb/peer.key");
    assert_eq!(config.manager.own_name().expect("a name"), "manager1");
    for (kind, right, wrong) in [
        (
            Kind::PeerWithoutListen,
            "peer_listen = \"10.0.9.1:9997\"",
            "",
        ),
        (
            Kind::PeersWithoutNatSources,
            "nat_sources = [\"192.168.56.21\"]",
            "",
        ),
        (
            Kind::PeersWithoutNatSources,
            "\"192.168.56.21\"",
            "\"2001:db8::21\"",
        ),
        (
            Kind::PeerIsThisManager,
            "name = \"manager1\"",
            "name = \"manager2\"",
        ),
        (Kind::PeerIsThisManager, "10.0.9.2:9997", "10.0.9.1:9997"),
        (Kind::DuplicatePeer, "\"manager3\"", "\"manager2\""),
        (Kind::DuplicatePeer, "10.0.9.3:9997", "10.0.9.2:9997"),
        (Kind::BadAddress, "10.0.9.1:9997", "0.0.0.0:9997"),
        (Kind::BadAddress, "10.0.9.2:9997", "10.0.9.2"),
        (Kind::BadName, "manager3\"", "manager 3\""),
        (Kind::BadPath, "/etc/memlb/manager3.key", "manager3.key"),
        (Kind::Missing, "address = \"10.0.9.2:9997\"", ""),
        (
            Kind::PeerListenMoves,
            "10.0.9.1:9997",
            "192.168.56.101:9997",
        ),
        (Kind::PeerListenMoves, "10.0.9.1:9997", "192.168.56.21:9997"),
        (Kind::ManagersOwnAddress, "10.0.9.1:9997", "127.0.0.1:9998"),
    ] {
        let problems = problems(&PEERS.replacen(right, wrong, 1));
        let kinds: Vec<Kind> = problems.iter().map(|it| it.kind).collect();
        assert_eq!(kinds, [kind], "{wrong:?} for {right:?}: {problems:?}");
    }
    let routed = PEERS
        .replace("nat_sources = [\"192.168.56.21\"]", "")
        .replace(
            "fallback = \"reject\"",
            "fallback = \"reject\"\nmode = \"routed\"",
        );
    parse(&routed).expect("routed services need no addresses of the manager");
    let more: String = (4..10)
        .map(|it| format!("[[peer]]\nname = \"m{it}\"\naddress = \"10.0.9.{it}:9997\"\n"))
        .collect();
    assert_eq!(
        problems(&format!("{PEERS}\n{more}"))[0].kind,
        Kind::TooManyPeers
    );
}

#[test]
fn peers_can_be_set_on_the_command_line() {
    let set = |set: &str| {
        let overrides = Overrides::default().set(set);
        Config::parse(PEERS, "memlb.toml", &overrides, Some(KERNEL))
    };
    let config = set("peer.manager3.address=10.0.9.9:9997").expect("a good configuration");
    assert_eq!(config.peers[1].address.to_string(), "10.0.9.9:9997");
    assert!(set("peer.manager4.address=10.0.9.9:9997").is_err());
    assert!(set("peer.address=10.0.9.9:9997").is_err());
}

#[test]
fn peers_change_while_one_is_left() {
    let old = parse(PEERS).expect("a good configuration");
    let mut new = old.clone();
    new.peers[0].address = "10.0.9.9:9997".parse().expect("an address");
    new.peers.remove(1);
    let changes = Changes::between(&old, &new);
    assert_eq!(
        changes.accepted,
        [
            "peer manager3 removed",
            "peer manager2.address: 10.0.9.2:9997 -> 10.0.9.9:9997"
        ]
    );
    assert_eq!(changes.refused, [""; 0]);
    new.peers.clear();
    let refused = Changes::between(&old, &new).refused;
    assert!(refused[0].starts_with("peer manager2 removed\n  to do: restart the manager"));
}
