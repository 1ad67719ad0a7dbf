//! Every key of the configuration file, declared once; those of tables within a service are in `nested`.
//!
//! A declaration has the field, its type, its default, its kind with the bounds, whether a reload applies it,
//! its command-line option, and its text in the example file. Parsing, defaults, options, the reload comparison
//! and `memlb.toml` are derived from it. Relations between keys are in `rules`.

#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "the documentation is that of the example file"
)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use lb_common::maps::{DEFAULT_BACKENDS, DEFAULT_FLOW_ENTRIES, DEFAULT_SERVICES};
use lb_core::{
    DEFAULT_DOWN_AFTER, DEFAULT_HOLD, FailingSettings, MaxShare, Mode, Policy, Pressure, Protocol,
    SpreadSettings, Threshold,
};

use super::key::{KeyDeclaration, ReloadClass};
use super::kinds::{
    AbsolutePath, Choice, FilePath, Flag, HostAddress, HostNames, Integer, Interfaces, Kind,
    ListenAddress, MemoryThreshold, Name, NatSources, Optional, PeerAddress, Percent, Ports,
    PressureLimit, ShareLimit, SocketPath, SourceNames, Time,
};
use super::nested::{AutoJoin, Joining, NO_ADDRESS, Worker, Workers};
use super::section::{Difference, KeyDescription, Section, TableReader, sections};
use super::values::{Attach, PortRange};
use crate::heartbeat::Authentication;
use crate::keys::PEER_KEY;

const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);
/// The entry that means "none", a worker and a fallback.
const MIN_BACKENDS: u32 = 3;

const EXAMPLE_WORKERS: &str = r#"[
    { name = "worker1", address = "192.168.56.103:8081" },
    { name = "worker2", address = "192.168.56.104:8082" },
]"#;

sections! {
    /// Where the manager attaches, listens and writes.
    pub struct ManagerSettings {
        /// The name by which peers know this manager; see [[peer]]. "" means the machine's host name. It differs from
        /// the names of all peers.
        name: Option<String> = None, Optional(Name, ""), Restart;

        /// The network interfaces towards clients and workers. Required, here or by --interface. If clients and
        /// workers are on one network, one interface is enough; otherwise name both. memlb does not balance
        /// clients at an interface that is missing here, and workers at it are "unreachable". memlb does not
        /// change other traffic. An alternative name (ip link property) is accepted, too.
        interfaces: Vec<String> = Vec::new(), Interfaces, Restart,
            example("[\"eth1\"]"),
            list_option("--interface", "IF",
                "Attach to this interface; may be repeated, replaces manager.interfaces");

        /// Where the packet programs attach: "tc", "xdp", or "auto", which takes XDP where the driver runs it
        /// natively and TC elsewhere, and logs which and why. "xdp" is faster on capable network cards. "tc" is
        /// faster on virtual ones (veth, loopback), because it leaves large packets whole. On a veth,
        /// what "xdp" sends is lost unless the other end has GRO on (ethtool -K NAME gro on) or runs XDP, too.
        attach: Attach = Attach::Auto, Choice::<Attach>::new(), Restart,
            option("--attach", "auto|tc|xdp", "Where to attach the packet programs");

        /// The UDP address that receives heartbeats. 0.0.0.0 means all IPv4 addresses of the manager, [::] means
        /// all addresses of both families.
        /// Agents and 2018 workers send to port 9999; with another port, configure every agent. Open this port to
        /// the workers' network only, above all without authentication.
        heartbeat_listen: SocketAddr = (Ipv4Addr::UNSPECIFIED, 9999).into(), ListenAddress, Restart,
            option("--heartbeat-listen", "ADDR:PORT", "Receive heartbeats at this UDP address");

        /// The manager's own addresses from which it connects to workers in mode "nat". Each address gives
        /// nat_ports connections to one worker at a time, so several addresses multiply this limit; at most 8
        /// of each family. The interface towards the workers must have them, and workers must reach them.
        /// Empty: the source address of the route to each worker. With a [[peer]], services of mode "nat" need
        /// them: each manager has addresses of its own, and its keepalived moves them together with the service
        /// addresses.
        nat_sources: Vec<IpAddr> = Vec::new(), NatSources, Restart;

        /// The directory, on a BPF file system, in which maps and links are pinned. They stay there when the
        /// manager stops, so that traffic continues and the next manager adopts them. Two managers on one
        /// machine need two directories.
        pin_path: PathBuf = "/sys/fs/bpf/memlb".into(),
            AbsolutePath("a directory of a BPF file system, such as /sys/fs/bpf/memlb"), Unload,
            option("--pin-path", "DIR", "Pin maps and links in this directory of a BPF file system");

        /// The control socket: `memlb status`, `memlb drain` and the other verbs use it. At most 107 bytes.
        /// Its owner and its group may use every verb.
        control_socket: PathBuf = "/run/memlb/manager.sock".into(), SocketPath, Restart,
            option("--control-socket", "PATH", "Serve `memlb status` and the other verbs at this socket");

        /// The file that stores the operator's orders: drains, maintenance and weights. A restarted manager
        /// applies them again, also after a reboot. Two managers on one machine need two files, each in a
        /// directory of its own. An empty name ("") is refused.
        state_file: PathBuf = "/var/lib/memlb/operator.json".into(),
            FilePath("a file, such as /var/lib/memlb/operator.json"), Restart,
            option("--state-file", "FILE",
                "Store the operator's orders (drained workers, weights) in this file");

        /// The event log: the manager appends events to this file, one JSON object a line; "" disables it. At
        /// 16 MiB, the file is renamed to events.jsonl.1 and replaces the previous one.
        event_log: Option<PathBuf> = Some("/var/log/memlb/events.jsonl".into()),
            Optional(AbsolutePath("a file, such as /var/log/memlb/events.jsonl, or \"\" for none"), ""), Live,
            option("--event-log", "FILE",
                "Append events to this file as JSON lines; \"\" disables the log");

        /// Whether the manager also accepts the heartbeats of the 2018 Python workers. They arrive every 5 s
        /// and so need heartbeat_interval = "5s" and a down_after of 15 s or more; otherwise such a worker is
        /// down between any two of its heartbeats. For a worker that also runs `memlb agent`, only the agent's
        /// heartbeats count. Switch it off when the last 2018 worker is replaced: any host can send such a
        /// heartbeat.
        legacy_heartbeats: bool = false, Flag, Live,
            switch("--legacy-heartbeats", "Also accept the heartbeats of the 2018 workers");

        /// The TCP address of the HTTP server: the web page, Prometheus' /metrics, /healthz, /readyz and
        /// /api/v1. It is read-only, but every host that can reach it can read the workers' names, addresses
        /// and memory: keep it on loopback (and use `ssh -L 9998:127.0.0.1:9998 MANAGER`), or open it to your
        /// monitoring's network only. "" disables the server. Two managers on one machine need two ports.
        http_listen: Option<SocketAddr> = Some((Ipv4Addr::LOCALHOST, 9998).into()),
            Optional(ListenAddress, ""), Restart,
            option("--http-listen", "ADDR:PORT",
                "Serve metrics, API and web page at this TCP address; \"\" disables the server");

        /// Further host names that HTTP requests may use, as in http_names = ["lb.example.com"]. The server
        /// answers requests to an address, to localhost and, unless http_listen is on loopback, to the machine's
        /// own name without an entry here. It refuses other names with status 421, because a foreign web page
        /// could point its own name here and read the answers in your browser. Beyond loopback, health checks may
        /// use any name.
        http_names: Vec<String> = Vec::new(), HostNames, Restart;

        /// This manager's own TCP address, at which its peers connect to it; "" for none. Required with a [[peer]].
        /// Best use an address on a separate link between the managers, so that the loss of a client or worker network
        /// does not separate them. Open the port to the peers only: the traffic is authenticated, but not encrypted.
        peer_listen: Option<SocketAddr> = None, Optional(PeerAddress, ""), Restart;

        /// The file that `memlb handover` writes for keepalived's track_file: an integer, 0 while this manager is in
        /// normal operation, and -1 after it handed over. keepalived multiplies it by the weight that its own
        /// configuration gives, and adds that to the priority. Written only where a peer is configured.
        track_file: PathBuf = "/run/memlb/vrrp-weight".into(),
            FilePath("a file, such as /run/memlb/vrrp-weight"), Restart;
    }

    /// A peer: another manager of the same services. It learns this manager's connections and sends its own, so that
    /// either can continue all of them. Repeat the table for more peers, at most 7. keepalived or a router decides
    /// which manager gets packets; docs/high-availability.md has the whole set-up. All managers need equal settings of
    /// services, workers, policies, failover and heartbeats: `memlb check --shared` prints what is compared.
    /// `memlb reload` changes peers and reads their keys again; adding the first peer and removing the last one need a
    /// restart of the manager.
    pub struct Peer {
        /// The peer's manager.name. Required; unique.
        name: String = String::new(), Name, Live, required("\"manager2\"");

        /// The peer's manager.peer_listen. Required.
        address: SocketAddr = NO_ADDRESS, PeerAddress, Live, required("\"10.0.9.2:9997\"");

        /// The file of the key that both managers share; `memlb keygen --peer` makes it. It belongs to root, and no
        /// other user may read it. A worker's key is refused.
        key: PathBuf = PEER_KEY.into(),
            FilePath("a key file, such as /etc/memlb/peer.key"), Live;
    }

    /// Which heartbeats count.
    pub struct HeartbeatSettings {
        /// Whether heartbeats must be signed with a worker's key; `memlb keygen` makes keys. "off": the manager
        /// validates no signature, and any host that reaches heartbeat_listen can steer the balancer; the manager
        /// warns at its start. "permissive", for the transition: unsigned heartbeats still count, and the manager
        /// names their workers; wrong signatures are refused. "enforce": only correctly signed heartbeats count.
        /// 2018 heartbeats cannot be signed. docs/heartbeat.md has the steps of a transition without a gap.
        authentication: Authentication = Authentication::Off, Choice::<Authentication>::new(), Live;

        /// The keys of the workers: a directory of files ending in .key, or one file with a key on each line; one
        /// or two keys for each worker. They belong to root, and no other user may read them. Not read while
        /// authentication is off.
        keys: PathBuf = "/etc/memlb/keys".into(),
            AbsolutePath("a directory of key files, or a key file, such as /etc/memlb/keys"), Live;
    }

    /// When a worker goes down and comes back.
    pub struct FailoverSettings {
        /// The interval at which the agents send; configure the agents with the same --interval. The manager
        /// only compares down_after with it. Shorter: newer memory figures, earlier detection possible, more
        /// datagrams (10 a second and worker at 100ms). Longer: memory figures are older, and down_after must
        /// grow with it.
        heartbeat_interval: Duration = Duration::from_millis(100), Time::above_zero(DAY), Live;

        /// A worker is down when no heartbeat arrives for longer than this, by the manager's own clock, at that
        /// instant. At least three heartbeat intervals, so that two lost datagrams do not count as a failure.
        /// Too short: on a busy network, workers that run count as down, and their connections are reset. Too
        /// long: clients wait for a dead worker.
        down_after: Duration = DEFAULT_DOWN_AFTER, Time::above_zero(DAY), Live,
            option("--down-after", "DURATION",
                "A worker is down after this time without a heartbeat, e.g. 1500ms");

        /// How many good heartbeats in a row, each at most down_after after the one before, bring a worker back
        /// that was down, unhealthy, leaving or in maintenance. The first contact after the manager's start
        /// needs only one. 1: a flapping worker flaps the service. High: a recovered worker gets no connection
        /// for up_after times heartbeat_interval.
        up_after: u32 = 2, Integer(1..=1000), Live;

        /// A worker that is up by its heartbeats is "failing" after so many handshakes in a row that its server
        /// refused or did not answer, with no answer between them: it gets no new connection of that service, and keeps
        /// its open ones. 0 disables that. Low: a few clients on a bad network look like a bad server. High: more
        /// clients wait, or reach another worker only at a second try.
        failing_after: u32 = FailingSettings::default().after, Integer(0..=1_000), Live;

        /// The first of those handshakes is not older than this. Too short: a dead server with few clients is not
        /// noticed. Too long: failures that have nothing to do with each other count together.
        failing_window: Duration = FailingSettings::default().window, Time::above_zero(DAY), Live;

        /// When the manager tries a failing worker, by a connection of its own: no client waits for it. The pause
        /// doubles with each trial that fails, up to failing_max_pause, and starts longer for a worker that fails again
        /// soon after its return. One answered trial ends the failure. Short: a flapping server flaps the service.
        /// Long: a server that was restarted idles.
        failing_pause: Duration = FailingSettings::default().pause, Time::above_zero(DAY), Live;

        /// The longest of these pauses; at least failing_pause.
        failing_max_pause: Duration = FailingSettings::default().max_pause, Time::above_zero(DAY), Live;

        /// The largest part of a service's workers that may be failing at a time; of several workers, one
        /// always may. The last worker is never failing unless a fallback or a backup serves instead; then any
        /// number of workers may be failing because they refuse. Low: clients reach dead servers. High:
        /// overload that delays answers ejects one worker after the other, and the load of the others grows.
        max_failing: u32 = FailingSettings::default().max_percent, Percent(1..=100), Live;

        /// When at least this part of a service's workers (and two at least) fall silent at the same time while
        /// their packets to clients still arrive, the fault is probably the manager's own, such as a firewall
        /// rule for heartbeat_listen: those workers stay up, with a warning, until their handshakes fail. The
        /// same part of all workers counts, too. A worker that falls silent alone is down after down_after in
        /// any case. "0%": never. Low: agents that were stopped on purpose look like such a fault. High: the
        /// others go down if a few agents still reach the manager.
        panic_threshold: u32 = 60, Percent(0..=100), Live;
    }

    /// Sizes of the tables in the kernel, and times of their entries.
    pub struct Limits {
        /// The maximum number of services. Each needs 65 KiB of kernel memory, for the slots of spreading
        /// policies. Too low: a reload that adds one more is refused. Too high: unused memory.
        services: u32 = DEFAULT_SERVICES, Integer(1..=1_024), Unload;

        /// The maximum number of backends: every worker of every service, a fallback for each service, and one
        /// entry that means "none". A few hundred bytes each.
        backends: u32 = DEFAULT_BACKENDS, Integer(MIN_BACKENDS..=1 << 16), Unload;

        /// The maximum number of connections in the flow table. When all entries are in use, the least recently
        /// used one is evicted; if it was still open, the connection is reset. Too low: that happens. Too high:
        /// about 300 bytes of kernel memory for each, and 400 over IPv6. IPv4 and IPv6 have this capacity each, as
        /// far as services have such addresses. The first service of the other family needs a restart of the
        /// manager, which makes room and loses no connection.
        flows: u32 = DEFAULT_FLOW_ENTRIES / 2, Integer(1..=1 << 24), Unload;

        /// The manager's source ports towards workers, FIRST-LAST. Not below 1024, and outside the kernel's own range
        /// (sysctl net.ipv4.ip_local_port_range, usually 32768-60999), which the manager's own connections use. The
        /// size of the range, times the number of nat_sources, is the maximum number of connections to one worker at a
        /// time: memlb refuses and counts a further one. A new connection gets a port that no connection uses, and
        /// where it can, one that the worker does not keep in TIME_WAIT. Two managers in one network namespace that
        /// share workers need ranges that do not overlap.
        nat_ports: PortRange = PortRange { first: 4096, last: 32_767 }, Ports, Restart;

        /// The idle time after which a connection may be forgotten, and no longer counts as open. Too short: idle
        /// connections that both sides still hold are reset at their next packet; less than 2h 4m (RFC 5382) is shorter
        /// than the keep-alives of common systems. Too long: the ports of vanished clients stay in use.
        established_idle: Duration = Duration::from_secs(2 * 3600 + 4 * 60),
            Time::above_zero(MONTH), Restart;

        /// The same for the datagrams that one port of a client exchanges with a UDP service. As long as no pause
        /// is longer, all of them go to one worker; after it, the next one begins a new flow. Too short: a client that
        /// pauses reaches another worker. Too long: clients that sent one request keep their ports in use.
        datagram_idle: Duration = Duration::from_secs(60), Time::above_zero(MONTH), Restart;

        /// The same for a connection that both sides closed, or one reset, or that the worker closed while its client
        /// is silent; at most established_idle. Too short: a repeated last packet gets a reset, and so does a client
        /// that continues late after its worker's end. Too long: fast clients use up the ports.
        closing_idle: Duration = Duration::from_secs(10), Time::above_zero(MONTH), Restart;

        /// The same for a handshake that was never completed; at most established_idle. Too short: slow
        /// clients cannot connect. Too long: a flood of them makes genuine clients try again.
        half_open_idle: Duration = Duration::from_secs(30), Time::above_zero(MONTH), Restart;

        /// The maximum number of connections, half open or open, of one client address to all services together; of
        /// IPv6, its first 64 bits count. A further one is refused and counted as client_limit. 0: no limit. Low:
        /// proxies and networks behind NAT are refused, and so is a client whose address an attacker forges. High: one
        /// client can use most ports of nat_ports.
        per_client: u32 = 0, Integer(0..=1 << 24), Restart;
    }

    /// A service: one address that clients use. Repeat the table for more of them.
    pub struct Service {
        /// Its name in logs and in `memlb status`. Required; 1 to 64 ASCII letters, digits and . _ -, the
        /// first of them not a dot.
        name: String = String::new(), Name, Live,
            required("\"web\"");

        /// The manager's address and the port that clients use. Required. No two services of one protocol have
        /// the same one, and none has one at which the manager itself listens (heartbeat_listen is UDP,
        /// http_listen TCP); the same is true of its fallback. Workers and fallback have addresses of the same
        /// family. For clients of both families make two services, which may have the same workers. Link-local
        /// addresses cannot be served.
        address: SocketAddr = NO_ADDRESS, HostAddress, Live,
            required("\"192.168.56.101:80\"");

        /// "tcp" or "udp". The datagrams of one port of a client go to one worker, see datagram_idle.
        protocol: Protocol = Protocol::Tcp, Choice::<Protocol>::new(), Live;

        /// How memlb chooses workers for new connections; open ones always stay where they are.
        /// docs/policies.md compares the policies with figures. One of:
        ///   "memory"             all go to the worker with the most available memory, until another one has
        ///                        more by the threshold: simple, but all connections follow the last report.
        ///   "balanced"           of two workers drawn by the memory they can spare, the one with fewer open
        ///                        connections for its weight. The default of a service without this setting.
        ///   "round_robin"        one after the other; memory does not count.
        ///   "least_connections"  the one with the fewest open connections for its weight.
        ///   "source_hash"        clients of one address stay with one worker; when one of n workers comes or
        ///                        goes, only about one n-th of the addresses moves.
        policy: Policy = Policy::default(), Choice::<Policy>::new(), Live,
            example("\"memory\""),
            option("--policy", "POLICY", "Policy of all services: memory, balanced, round_robin, ...");

        /// How much more available memory another worker must have before new connections move to it: a size
        /// ("64MiB"; a bare number counts bytes), a percentage of the selected worker's available memory
        /// ("10%"), or "auto": the difference between the first two workers that report, but at least a hundredth of
        /// the smaller one's total, and 1 MiB, measured again at each start of the manager. Too low: the selection
        /// changes at every small difference. Too high: a worker fills up while another idles. It never delays a
        /// failover. Of policy "memory" only.
        threshold: Threshold = Threshold::Auto, MemoryThreshold, Live,
            option("--threshold", "THRESHOLD",
                "Difference of memory that moves the selection, for all services: auto, 64MiB or 10%");

        /// The least time that the selection stays with a worker after a switch by preference, however much more
        /// memory another one has meanwhile. The manager leaves a worker at once that goes down, drains or has no
        /// memory to spare (see reserve and pressure_limit). Too short: figures that change with each report change
        /// the selection, and fill the log. Too long: all new connections fill one
        /// worker, as with reports of that age. Of policy "memory" only.
        hold: Duration = DEFAULT_HOLD, Time::or_zero(DAY), Live;

        /// How often the manager computes the weights of policy "balanced". A worker that goes down loses its
        /// weight at once in any case, and a worker that comes up gets one within 25ms. Use one heartbeat
        /// interval or longer. Too short: more processor time without an effect. Too long: weights lag behind
        /// memory.
        rebalance_interval: Duration = SpreadSettings::default().rebalance_interval,
            Time::above_zero(DAY), Live;

        /// The part of its total memory that each worker keeps free under policy "balanced": only available
        /// memory above it gives weight, and a worker down to it gets nothing while another has more. If all
        /// workers are down to it, all have equal weight. Too low: the fullest worker comes close to its limit.
        /// Too high: workers with free memory count as full.
        reserve_percent as "reserve": u32 = SpreadSettings::default().reserve_percent, Percent(0..=90), Live;

        /// Under policy "balanced", a worker weighs less the more its tasks wait for memory (memory pressure,
        /// "some avg10" of the kernel's pressure stall information), and gets nothing from this value on.
        /// Too low: a short stall excludes a worker. Too high: workers that already swap continue to get connections.
        pressure_limit: Pressure = SpreadSettings::default().pressure_limit, PressureLimit, Live;

        /// How long a worker that came back gets less than its share, where connections are spread: a quarter
        /// at first, a quarter more after each third of this time. Too short: a worker with cold caches gets
        /// the full load. Too long: the others carry its share meanwhile.
        ramp_up: Duration = SpreadSettings::default().ramp_up, Time::above_zero(DAY), Live;

        /// The largest share of new connections of one worker, so that a worker with wrong figures cannot take
        /// everything: a percentage of all, for every policy that spreads connections, but never less than
        /// an equal share; or "auto": by the memory that they report under policy "balanced", 6 / (n + 5) where n
        /// workers have memory to spare, which is 86% of two, 60% of five and about six equal shares of many.
        /// Too low: large workers idle. "100%": no limit.
        max_share: MaxShare = SpreadSettings::default().max_share, ShareLimit, Live;

        /// How packets reach the workers. "nat": addresses are translated both ways. A worker needs nothing
        /// installed, and sees the manager's address as its client's. "dsr" (direct server return): requests reach
        /// the worker as the client sent them, and the worker answers the client directly. It sees the clients'
        /// addresses, and answers cost the manager nothing. This needs workers on the manager's own link, without a
        /// router between, whose agents run with --dsr for this service. A worker that lacks either gets no
        /// connection; events and `memlb status` say why. Clients on the manager itself are refused. The fallback
        /// serves as under "nat".
        /// "routed": memlb translates only the destination. The worker sees the client's address and needs nothing
        /// installed. Its route to the clients must lead through the manager; a worker whose answers do not pass the
        /// manager gets no connection. A worker's address and port may serve one such service only.
        mode: Mode = Mode::Nat, Choice::<Mode>::new(), Live;

        /// Whether handshakes that a worker refuses or does not answer make it failing, see failing_after. Set it to
        /// false for a server that refuses connections on purpose.
        passive_checks: bool = true, Flag, Live;

        /// Whether a new connection that its worker refuses (RST in answer to the SYN) goes to another worker at once,
        /// up to three times. The client then gets the RST of the last one only. Switch it off where workers refuse
        /// single clients on purpose, by a packet filter that answers with RST: each refused client would try several
        /// workers. A SYN with data (TCP Fast Open) is never sent to a second worker. In mode "dsr", and of datagrams,
        /// the manager does not see or repeat refusals.
        retry_refused: bool = true, Flag, Live;

        /// The manager's own server, used while no worker is up and until the first heartbeat arrives.
        /// Required; the service's own IP address with another port, because memlb translates only the port for
        /// it. "reject": the service has none, and memlb refuses new connections meanwhile (RST, so that
        /// clients fail at once).
        fallback: Option<SocketAddr> = None, Optional(ListenAddress, "reject"), Live,
            required("\"192.168.56.101:8080\"");

        /// The workers: the name in the agent's heartbeats, and the address of the server on that machine. At
        /// least one; names and addresses are unique within a service. The same worker may be in several
        /// services. "manager" and "none" are reserved names: they mean the fallback. Of two workers with equal
        /// memory, the one named first is chosen. A worker may have a weight, as in weight = "50%": its share
        /// compared with equally good workers, from 1% to 1000%, by default "100%". Policy "memory" counts that
        /// percentage of its memory. A worker with backup = true takes connections only while no other worker
        /// can serve. A worker with agent = false needs no agent and counts as up until its handshakes fail. A
        /// worker with both is a fallback on another machine. With max_connections = 500, a worker with as many
        /// open connections gets no new one until some have ended: new connections go to other workers, or to the
        /// fallback while all are full; without a fallback they are refused and counted as workers_full.
        /// Connections that are being established may exceed the number.
        workers: Vec<Worker> = Vec::new(), Workers, Live,
            example(EXAMPLE_WORKERS);

        /// Which agents become workers when they start: those that sign heartbeats with a key that the manager
        /// knows, from one of these networks, under a name that this file does not contain. Their server has
        /// the address that their heartbeats come from, never one that they name, and this port. The networks
        /// are of the family of the service's address. Needs heartbeats.authentication; with some networks,
        /// workers may be left out. The manager remembers a worker that joined over restarts, beside
        /// state_file, until it has been absent for an hour; it needs room in limits.backends, as others do. An
        /// empty list lets no agent join. Too wide a network: an agent on a machine that should not serve gets
        /// connections. Example: ["192.168.56.0/24"].
        auto_join: Option<AutoJoin> = None, Joining, Live;

        /// Which sources outside of this file may give workers to the service: "swarm" for `memlb swarm`, "file"
        /// for `memlb sources apply`, or the name that another one uses. With a source, workers may be left out.
        /// The manager remembers the last list of each source over restarts, beside state_file.
        worker_sources: Vec<String> = Vec::new(), SourceNames, Live;
    }
}
