use std::{fs, path::Path};

use super::*;
use crate::config::{Config, Overrides};

/// A machine with the address of the examples.
fn machine() -> Addresses {
    let address = |ip: &str, interface: &str| (ip.parse().unwrap(), interface.to_owned());
    Addresses(vec![
        address("127.0.0.1", "lo"),
        address("192.168.56.101", "eth1"),
    ])
}

fn example(name: &str) -> Imported {
    let path = Path::new("src/import/examples").join(name);
    import(&path, &Options::default(), &machine()).unwrap()
}

/// Compares with the file, which a person has reviewed. `MEMLB_UPDATE=1` writes the file.
fn is_as_expected(name: &str) {
    let imported = example(name);
    let config = Config::parse(&imported.toml, "imported", &Overrides::default(), None);
    assert_eq!(config.unwrap().services.len(), imported.services);
    let expected = Path::new("src/import/examples").join(format!("{name}.toml"));
    if std::env::var_os("MEMLB_UPDATE").is_some() {
        fs::write(&expected, &imported.toml).unwrap();
    }
    assert_eq!(imported.toml, fs::read_to_string(expected).unwrap());
}

#[test]
fn imports_nginx() {
    is_as_expected("nginx.conf");
}

#[test]
fn imports_haproxy() {
    is_as_expected("haproxy.cfg");
}

#[test]
fn imports_keepalived() {
    is_as_expected("keepalived.conf");
}

fn from_text(text: &str, options: &Options) -> Result<Imported, ImportError> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.conf");
    fs::write(&file, text).unwrap();
    import(&file, options, &machine())
}

#[test]
fn follows_includes_of_nginx() {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    file(
        "nginx.conf",
        "http { include sites/*.conf; include none.conf; }",
    );
    fs::create_dir(directory.path().join("sites")).unwrap();
    file(
        "sites/b.conf",
        "server { listen 81; location / { proxy_pass http://192.168.56.104:81; } }",
    );
    file(
        "sites/a.conf",
        "upstream a { server 192.168.56.103; }\nserver { proxy_pass http://a; }",
    );
    file("sites/c.txt", "not read");
    let imported = import(
        &directory.path().join("nginx.conf"),
        &Options::default(),
        &machine(),
    )
    .unwrap();
    assert_eq!(imported.services, 2);
    assert!(
        imported
            .toml
            .contains("sites/a.conf:1: server 192.168.56.103"),
        "{}",
        imported.toml
    );
    assert!(
        imported
            .notes
            .iter()
            .any(|it| it.contains("does not exist")),
        "{:?}",
        imported.notes
    );

    file("loop.conf", "http { include loop.conf; }");
    let error = import(
        &directory.path().join("loop.conf"),
        &Options::default(),
        &machine(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("includes itself"), "{error}");
}

#[test]
fn workers_with_one_name_are_one_machine() {
    let text = "listen a\n bind :80\n server w 10.0.0.1:80\n server w 10.0.0.1:81\n\
                listen b\n bind :90\n server w 10.0.0.2:90\n server x 10.0.0.1:90\n";
    let imported = from_text(text, &Options::default()).unwrap();
    let names: Vec<&str> = imported
        .agents
        .iter()
        .filter_map(|it| it.split("--name ").nth(1))
        .collect();
    assert_eq!(names, ["w", "w-81", "w-90"], "{}", imported.toml);
    assert!(
        imported
            .toml
            .contains("name = \"w\", address = \"10.0.0.1:90\""),
        "{}",
        imported.toml
    );
}

#[test]
fn the_address_and_the_interface_can_be_given() {
    let text = "listen a\n bind *:80\n server w 10.0.0.1:80\n";
    let options = Options {
        address: Some("203.0.113.7".parse().unwrap()),
        interface: Some("wan0".to_owned()),
        ..Options::default()
    };
    let imported = from_text(text, &options).unwrap();
    assert!(
        imported.toml.contains("address = \"203.0.113.7:80\""),
        "{}",
        imported.toml
    );
    assert!(
        imported.toml.contains("interfaces = [\"wan0\"]"),
        "{}",
        imported.toml
    );
}

#[test]
fn reports_what_is_wrong_with_a_file() {
    let error = |text: &str| {
        from_text(text, &Options::default())
            .unwrap_err()
            .to_string()
    };
    assert!(error("a = 1\n").contains("name the program with --from"));
    assert!(error("http {\n").contains("a.conf:1: `{` is not closed"));
    assert!(error("server { listen 80; root /srv; }").contains("has no proxy_pass"));
    assert!(error("frontend a\n bind :80\n default_backend b\n").contains("no such backend"));
    // As the configuration that a package installs.
    let bare = "global\n daemon\ndefaults\n mode http\n";
    assert!(error(bare).contains("no frontend or listen with servers (HAProxy)"));
    assert!(error("frontend a\n\0").contains("not a text file"));
    let missing = import(
        Path::new("/nowhere/a.conf"),
        &Options::default(),
        &machine(),
    );
    assert!(
        missing
            .unwrap_err()
            .to_string()
            .starts_with("read /nowhere/a.conf: ")
    );
}

#[test]
fn limits_of_connections_become_max_connections() {
    let nginx = "http { upstream a { server 192.168.56.103 max_conns=200; }\n\
                 server { listen 81; location / { proxy_pass http://a; } } }";
    let haproxy = "listen a\n  bind 192.168.56.101:81\n  default-server maxconn 200\n  \
                   server one 192.168.56.103:80\n  server two 192.168.56.104:80 maxconn 0\n";
    let keepalived = "virtual_server 192.168.56.101 81 {\n  protocol TCP\n  real_server 192.168.56.103 80 {\n    \
                      uthreshold 200\n  }\n}\n";
    for text in [nginx, haproxy, keepalived] {
        let imported = from_text(text, &Options::default()).unwrap();
        let limited = imported.toml.matches(", max_connections = 200 }").count();
        assert_eq!(limited, 1, "{}", imported.toml);
        let notes = imported.notes.join("\n");
        assert!(notes.contains("max_connections = 200: "), "{notes}");
        let config = Config::parse(&imported.toml, "imported", &Overrides::default(), None);
        assert_eq!(config.unwrap().services[0].workers[0].max_connections, 200);
    }
}

#[test]
fn a_virtual_server_without_protocol_is_one_of_udp_as_for_keepalived() {
    let text = "virtual_server 192.168.56.101 53 {\n  real_server 192.168.56.103 53 {\n  }\n}\n";
    let imported = from_text(text, &Options::default()).unwrap();
    assert!(
        imported.toml.contains("protocol = \"udp\""),
        "{}",
        imported.toml
    );
    let notes = imported.notes.join("\n");
    assert!(notes.contains("for TCP, add protocol TCP"), "{notes}");
}
