//! A session in the lab as a picture.

use std::{fs, path::Path};

use anstyle_svg::{Term, WIN10_CONSOLE};
use anyhow::{Context, Result};
use memlb_tests::{Cluster, command::output};

/// The file that the README shows.
pub const PICTURE: &str = "docs/session.svg";

/// Width of the picture in characters. The verbs wrap their lines.
const COLUMNS: &str = "100";

/// Dark, but not as dark as a dark page.
const BACKGROUND: anstyle::RgbColor = anstyle::RgbColor(22, 27, 34);
const TEXT: anstyle::RgbColor = anstyle::RgbColor(201, 209, 217);

enum Line {
    Remark(&'static str),
    Client(&'static str),
    Manager(&'static str),
}

use Line::{Client, Manager, Remark};

const SESSION: &[Line] = &[
    Remark("worker1 has more memory to spare than worker2, so it gets the new connections"),
    Client("curl http://192.168.56.101/"),
    Manager("memlb explain 192.168.56.10"),
    Remark("worker1 gets a new disk: no new connections go there, open ones continue"),
    Manager("memlb drain worker1 --reason \"new disk\" --wait"),
    Client("curl http://192.168.56.101/"),
    Manager("memlb workers"),
    Manager("memlb undrain worker1"),
    Manager("memlb events --limit 2"),
];

/// Runs the session in a new `cluster` and writes its picture to `file`.
pub fn record(cluster: &Cluster, file: &Path) -> Result<()> {
    let mut screen = String::new();
    for line in SESSION {
        let (node, name, typed) = match line {
            Remark(remark) => {
                screen += &format!("\x1b[96m# {remark}\x1b[0m\n");
                continue;
            }
            Client(typed) => (&cluster.topology.client, "client", typed),
            Manager(typed) => (&cluster.topology.manager, "manager", typed),
        };
        let memlb = format!(
            "memlb() {{ {} \"$@\" --color always --control-socket {}; }}",
            cluster.binary.display(),
            cluster.paths.control_socket().display()
        );
        let printed = output(
            node.command("bash")
                .args(["-c", &format!("{memlb}; {typed}")])
                .env("COLUMNS", COLUMNS),
        )?;
        screen += &format!("\x1b[92m{name}\x1b[0m $ \x1b[1m{typed}\x1b[0m\n");
        screen += &printed;
        if !printed.ends_with('\n') {
            screen.push('\n');
        }
    }
    let picture = Term::new()
        .palette(WIN10_CONSOLE)
        .bg_color(BACKGROUND.into())
        .fg_color(TEXT.into())
        .render_svg(screen.trim_end());
    fs::write(file, picture).with_context(|| format!("write {}", file.display()))
}
