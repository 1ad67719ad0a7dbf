//! An nginx in a namespace, with its own page.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::{client::Connection, namespace::Namespace, process::Process, wait::wait_for};

/// The path at which a request's body is kept in memory until its last byte.
pub const HELD_PATH: &str = "/held";

/// A web server that serves the files of its folder and accepts uploads by PUT.
#[derive(Debug)]
pub struct Nginx {
    pub process: Process,
    port: u16,
    root: PathBuf,
}

impl Nginx {
    /// Starts nginx on `port`, with everything it reads and writes under
    /// `directory`; its page at `/` is the one line `page`. Returns when it answers.
    ///
    /// # Errors
    /// When it does not start; the error carries what it printed.
    pub fn start(namespace: &Namespace, port: u16, page: &str, directory: &Path) -> Result<Self> {
        let root = directory.join("www");
        fs::create_dir_all(root.join("upload"))
            .and_then(|()| fs::write(root.join("index.html"), format!("{page}\n")))
            .with_context(|| format!("make nginx's folder {}", directory.display()))?;
        let process = start(namespace, &server(port, &root), directory)?;
        let mut nginx = Self {
            process,
            port,
            root,
        };
        nginx.wait_until_it_answers(namespace, port)?;
        Ok(nginx)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the folder whose files are served; uploads appear in `upload/`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn wait_until_it_answers(&mut self, namespace: &Namespace, port: u16) -> Result<()> {
        let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port).into();
        let patience = Duration::from_secs(1);
        wait_for(Duration::from_secs(10), "nginx to answer", || {
            let answers = Connection::open(namespace, address, patience).is_ok();
            (answers || !self.process.is_running()).then_some(answers)
        })
        .and_then(|answers| {
            anyhow::ensure!(answers, "nginx has ended");
            Ok(())
        })
        .with_context(|| {
            format!(
                "nginx in {} printed:\n{}",
                namespace.name(),
                self.process.log()
            )
        })
    }
}

/// Starts an nginx in `namespace` with `http` as its `http` block. It writes everything under `directory`.
///
/// # Errors
/// When the configuration cannot be written, or nginx is not found.
pub fn start(namespace: &Namespace, http: &str, directory: &Path) -> Result<Process> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    let file = directory.join("nginx.conf");
    let at = directory.display();
    let configuration = format!(
        "daemon off;
# One process: killing it leaves no orphans.
master_process off;
user root;
worker_rlimit_nofile 65536;
pid {at}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    default_type text/plain;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 300s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_temp_path {at}/body;
    proxy_temp_path {at}/proxy;
    fastcgi_temp_path {at}/fastcgi;
    uwsgi_temp_path {at}/uwsgi;
    scgi_temp_path {at}/scgi;
{http}}}
"
    );
    fs::write(&file, configuration).with_context(|| format!("write {}", file.display()))?;
    let mut command = namespace.command("nginx");
    command
        // The memory of a request is returned to the kernel at its end.
        .env("MALLOC_MMAP_THRESHOLD_", "131072")
        .args(["-e", "stderr", "-p"])
        .arg(directory)
        .arg("-c")
        .arg(&file);
    Process::start(
        &format!("nginx in {}", namespace.name()),
        &mut command,
        &directory.join("nginx.log"),
    )
}

fn server(port: u16, root: &Path) -> String {
    format!(
        "    server {{
        listen [::]:{port} ipv6only=off backlog=4096;
        root {};
        location /upload/ {{ dav_methods PUT; }}
        location {HELD_PATH} {{
            client_body_buffer_size 1m;
            proxy_pass http://127.0.0.1:{port}/;
        }}
    }}
",
        root.display()
    )
}
