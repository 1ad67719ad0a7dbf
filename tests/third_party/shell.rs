//! A session of OpenSSH: long, with small packets and pauses.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use memlb_tests::{Cluster, Namespace, Process, command::output, root_test};

use crate::scenario::{disturb, program, run_scenario, service, wait_for_flows, wait_for_server};

const SSH: u16 = 22;

/// Where sshd gives its privileges up; Debian makes it only when it starts the service.
const PRIVILEGE_SEPARATION: &str = "/run/sshd";

#[root_test(tc, xdp)]
fn keeps_a_shell_while_the_selection_moves_and_the_manager_dies(attach: &str) {
    run_scenario(attach, &[SSH], shell);
}

fn shell(cluster: &mut Cluster) {
    let directory = cluster.paths.directory.join("ssh");
    fs::create_dir(&directory).unwrap();
    for key in ["host", "user"] {
        let mut keygen = Command::new("ssh-keygen");
        keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
        output(keygen.arg(directory.join(key))).unwrap();
    }
    let _server = serve(&cluster.topology.workers[0], &directory);
    let mut session = Session::begin(cluster, &directory);
    for number in 0..50 {
        session.request(number);
    }
    wait_for_flows(cluster, SSH, 1);
    disturb(cluster);
    for number in 50..100 {
        session.request(number);
    }
    session.end();
    wait_for_flows(cluster, SSH, 0);
}

fn serve(worker: &Namespace, directory: &Path) -> Process {
    let at = directory.display();
    let configuration = format!(
        "Port {SSH}
HostKey {at}/host
PidFile none
AuthorizedKeysFile {at}/user.pub
# The directory's parent is everybody's.
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
"
    );
    let file = directory.join("sshd_config");
    fs::write(&file, configuration).unwrap();
    fs::create_dir_all(PRIVILEGE_SEPARATION).unwrap();
    let mut sshd = worker.command("/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f"]).arg(&file);
    let process = Process::start("sshd", &mut sshd, &directory.join("sshd.log")).unwrap();
    wait_for_server(worker, SSH);
    process
}

/// A shell at the other end.
struct Session {
    ssh: Child,
    says: ChildStdin,
    hears: BufReader<ChildStdout>,
}

impl Session {
    fn begin(cluster: &Cluster, directory: &Path) -> Self {
        let line = format!(
            "ssh -F none -T -i {}/user -o BatchMode=yes -o StrictHostKeyChecking=no \
             -o UserKnownHostsFile=/dev/null root@{} sh",
            directory.display(),
            service(cluster, SSH).ip()
        );
        let mut ssh = program(&cluster.topology.client, &line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let says = ssh.stdin.take().unwrap();
        let hears = BufReader::new(ssh.stdout.take().unwrap());
        Self { ssh, says, hears }
    }

    fn request(&mut self, number: u32) {
        writeln!(self.says, "echo $(({number} * {number}))").unwrap();
        let mut answer = String::new();
        self.hears.read_line(&mut answer).unwrap();
        assert_eq!(answer.trim_end(), (number * number).to_string());
    }

    fn end(mut self) {
        drop(self.says);
        assert!(self.ssh.wait().unwrap().success());
    }
}
