//! The documented example file, generated from the declarations of the keys.

use std::fmt::Write;

use super::Config;
use super::key::{OptionForm, ReloadClass};
use super::keys::{FailoverSettings, HeartbeatSettings, Limits, ManagerSettings, Peer, Service};
use super::section::{Difference, KeyDescription, Section};

pub(super) const HEADER: &str = "\
# The configuration of memlb, with every setting explained.
#
# This file is the three-node lab: a manager at 192.168.56.101, two workers at .103 and .104. The
# program contains it and uses it when no file is given. `memlb check FILE` validates a file without
# changing anything. A setting that is left out has the value shown here, unless it says \"required\" or
# names another default.
#
# Durations are texts with a unit: \"100ms\", \"1500ms\", \"30s\", \"5m\", \"1h\", \"1h 30m\".
# Addresses are numeric with a port, and IPv6 addresses in brackets: \"192.168.56.101:80\",
# \"[2001:db8::1]:80\".
";

/// A table of the file, with its keys.
pub(super) struct TableDescription {
    pub name: &'static str,
    pub header: &'static str,
    pub about: &'static [&'static str],
    pub keys: Vec<KeyDescription>,
    /// Whether the example file has it as a comment, because most configurations lack it.
    is_optional: bool,
}

impl TableDescription {
    fn of<T: Section>(name: &'static str, header: &'static str) -> Self {
        Self {
            name,
            header,
            about: T::ABOUT,
            keys: T::describe(),
            is_optional: false,
        }
    }
}

/// Returns every table, in the order of the file.
pub(super) fn tables() -> [TableDescription; 6] {
    [
        TableDescription::of::<ManagerSettings>("manager", "[manager]"),
        TableDescription {
            is_optional: true,
            ..TableDescription::of::<Peer>("peer", "[[peer]]")
        },
        TableDescription::of::<HeartbeatSettings>("heartbeats", "[heartbeats]"),
        TableDescription::of::<FailoverSettings>("failover", "[failover]"),
        TableDescription::of::<Limits>("limits", "[limits]"),
        TableDescription::of::<Service>("service", "[[service]]"),
    ]
}

/// Returns the text of `memlb.toml`.
pub fn render() -> String {
    let mut text = HEADER.to_owned();
    for table in tables() {
        text += "\n\n";
        for line in table.about {
            text += &format!("#{line}\n");
        }
        let comment = if table.is_optional { "#" } else { "" };
        _ = writeln!(text, "{comment}{}", table.header);
        for described in table.keys {
            let is_repeated = table.header.starts_with("[[");
            text += &setting(&described, is_repeated, comment);
        }
    }
    text
}

/// Returns a file with every value of a configuration that is not the default; a table without any is left out.
pub(super) fn render_values(config: &Config) -> String {
    let Config {
        manager,
        peers,
        heartbeats,
        failover,
        limits,
        services,
        // The source of a worker has no place in the file.
        origins: _,
    } = config;
    let tables = [
        ("[manager]", values(manager)),
        ("[heartbeats]", values(heartbeats)),
        ("[failover]", values(failover)),
        ("[limits]", values(limits)),
    ];
    let peers = peers.iter().map(|it| ("[[peer]]", values(it)));
    let services = services.iter().map(|it| ("[[service]]", values(it)));
    let tables = tables.into_iter().chain(peers).chain(services);
    let tables = tables.filter(|(_, values)| !values.is_empty());
    tables.fold(String::new(), |text, (header, values)| {
        text + header + "\n" + &values
    })
}

/// The lines of a table: values that are not the default, and required ones.
fn values<T: Section + Default>(section: &T) -> String {
    let different = T::default().differences(section);
    let mut lines = String::new();
    for KeyDescription { key, default, .. } in T::describe() {
        let new = different.iter().find(|it| it.key.name == key.name);
        match new {
            Some(Difference { new, .. }) => _ = writeln!(lines, "{} = {new}", key.name),
            None if key.is_required => _ = writeln!(lines, "{} = {default}", key.name),
            None => {}
        }
    }
    lines
}

fn setting(described: &KeyDescription, is_repeated: bool, comment: &str) -> String {
    let KeyDescription { key, default, .. } = described;
    let mut text = "\n".to_owned();
    for line in key.doc {
        text += &format!("#{line}\n");
    }
    let facts = facts(described, is_repeated);
    if !facts.is_empty() {
        text += &format!("# {}\n", facts.join(" "));
    }
    let value = key.example.unwrap_or(default);
    _ = writeln!(text, "{comment}{} = {value}", key.name);
    text
}

/// Bounds, option and reload class of a key, one sentence each.
pub(super) fn facts(described: &KeyDescription, is_repeated: bool) -> Vec<String> {
    let KeyDescription { key, bounds, .. } = described;
    let option = key.option.map(|option| match option.form {
        _ if is_repeated => format!("Option {}, for all tables.", option.flag),
        OptionForm::Value | OptionForm::Switch => format!("Option {}.", option.flag),
        OptionForm::List => format!("Option {}, which may be repeated.", option.flag),
    });
    let reload = match key.reload {
        ReloadClass::Live => None,
        ReloadClass::Restart => Some("A change needs a restart of the manager.".to_owned()),
        ReloadClass::Unload => Some("A change needs `memlb unload` once.".to_owned()),
    };
    let facts = bounds.clone().into_iter();
    facts.chain(option).chain(reload).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Overrides;

    #[test]
    fn a_configuration_is_read_back_as_it_was_written() {
        let parse = |text: &str| Config::parse(text, "memlb.toml", &Overrides::default(), None);
        let example = parse(Config::example_text()).unwrap();
        let text = r#"
            [manager]
            interfaces = ["eth1", "eth2"]
            http_listen = ""
            nat_sources = ["2001:db8::21"]
            peer_listen = "10.0.9.1:9997"
            [heartbeats]
            authentication = "enforce"
            [failover]
            down_after = "3s"
            [[peer]]
            name = "manager2"
            address = "10.0.9.2:9997"
            [[service]]
            name = "web"
            address = "[2001:db8::1]:80"
            fallback = "reject"
            threshold = "10%"
            max_share = "50%"
            workers = [{ name = "worker1", address = "[2001:db8::3]:8081", weight = "50%" }]
            auto_join = { networks = ["2001:db8::/64"], port = 8081 }
            [[service]]
            name = "dns"
            address = "192.168.56.101:53"
            fallback = "192.168.56.101:5353"
            protocol = "udp"
            mode = "dsr"
            workers = [{ name = "worker1", address = "192.168.56.103:53" }]
        "#;
        for config in [example, parse(text).unwrap()] {
            let text = config.to_toml();
            assert_eq!(parse(&text).as_ref(), Ok(&config), "{text}");
        }
    }

    #[test]
    fn unusual_characters_of_a_path_are_written_as_toml() {
        let parse = |text: &str| Config::parse(text, "memlb.toml", &Overrides::default(), None);
        let mut config = parse(Config::example_text()).unwrap();
        for name in [
            "cafe\u{301}",
            "a\u{200b}b",
            "a\u{0}\u{1b}\u{7f}\u{85}b",
            "a\"b\\c",
            "\u{301}",
        ] {
            config.manager.event_log = Some(format!("/var/log/{name}").into());
            let text = config.to_toml();
            assert_eq!(parse(&text).as_ref(), Ok(&config), "{text}");
        }
    }

    /// Run with MEMLB_UPDATE=1 to write the file.
    #[test]
    fn the_example_file_follows_from_the_declaration() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/memlb.toml");
        if std::env::var_os("MEMLB_UPDATE").is_some() {
            std::fs::write(path, render()).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap();
        assert_eq!(file, render(), "run with MEMLB_UPDATE=1");
    }
}
