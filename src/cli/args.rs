//! The grammar of the command line.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, Subcommand, value_parser};

pub use super::size::{ByteCount, DiskSize, FillerSize};
use crate::{
    exec::Backend,
    mp::manager::Placement,
    net::NameServer,
    observe::{AdminAddress, logs::LogFormat},
    relay::AllowRule,
    tune::{Profile, Setting, profile},
    wire::path_source::PathSource,
};

/// Carries video and big files over many parallel paths.
///
/// `plait up` shows the whole chain on this machine; the other commands run one role each.
#[derive(Debug, Parser)]
#[command(name = "plait", version, arg_required_else_help = true)]
pub struct Arguments {
    /// What to run.
    #[command(subcommand)]
    pub command: Command,
    /// What every role understands.
    #[command(flatten)]
    pub global: Global,
}

/// Settings of every role.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// CPUs to run on, one pinned thread each: numbers and ranges such as 0-3,8 [default: all]
    #[arg(long, global = true, value_name = "LIST", env = "PLAIT_CORES")]
    pub cores: Option<CpuList>,
    /// Executor of every core
    #[arg(long, global = true, value_enum, default_value_t, env = "PLAIT_EXECUTOR")]
    pub executor: Backend,
    /// Where the lanes of one transfer live: all on the client's core, spread over cores, or by load
    #[arg(long, global = true, value_enum, default_value = "auto", env = "PLAIT_PLACEMENT")]
    pub placement: Placement,
    /// Congestion control of lanes: a kernel name, or auto (bbr; on loopback, where pacing only costs CPU, cubic)
    #[arg(long, global = true, default_value = "auto", value_name = "NAME", env = "PLAIT_LANE_CC")]
    pub lane_cc: String,
    /// Congestion control towards clients: a kernel name, or auto (bbr; cubic on loopback and in private networks)
    #[arg(long, global = true, default_value = "auto", value_name = "NAME", env = "PLAIT_CLIENT_CC")]
    pub client_cc: String,
    /// What is logged to standard error: error, warn, info, debug, trace, or a list of module=level
    #[arg(long, global = true, default_value = "info", value_name = "FILTER", env = "PLAIT_LOG", value_parser = log_filter)]
    pub log: String,
    /// How the log is written
    #[arg(long, global = true, value_enum, default_value_t, env = "PLAIT_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// Where a role answers for metrics and the dashboard: a port of 127.0.0.1, or ADDR:PORT, where everybody who can reach
    /// it sees who asks for what
    #[arg(long, global = true, value_name = "ADDR", env = "PLAIT_ADMIN")]
    pub admin: Option<AdminAddress>,
    /// TOML file with the names of the command's flags; what flags and environment say wins
    #[arg(long, global = true, value_name = "FILE", env = "PLAIT_CONFIG")]
    pub config: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The whole chain on this machine: root, upstream, relays and downstream, with a sample video
    Up(Up),
    /// Serves a directory over HTTP: the root server of the chain, if you have no other
    Root(Root),
    /// Fetches from the root, cuts the answer into frames and stripes them over the lanes
    Upstream(Upstream),
    /// Forwards lanes to their next hop
    Relay(Relay),
    /// Serves clients over HTTP; what they ask for comes over all paths at once
    Downstream(Downstream),
    /// Downloads one file over all paths, without a downstream
    Get(Get),
    /// Shows and changes the cache of a running downstream
    Cache(CacheCommand),
    /// Makes a new pre-shared key, or replaces one in two steps
    Keygen(Keygen),
    /// Emulated long paths on this machine, and the whole chain on them
    #[command(subcommand)]
    Lab(LabCommand),
    /// Shows what a running role does, in this terminal
    Top(Top),
    /// Says what is wrong with the settings of a role, without starting it
    Check(Check),
    /// Kernel settings for long paths, lossy ones and many clients: compared, applied, taken back
    Tune(super::tune::Tune),
    /// Prints the completion script of a shell
    Completions {
        /// Which.
        shell: clap_complete::Shell,
    },
    /// Writes the manual pages, one for each command
    Man {
        /// Directory to write them to
        dir: PathBuf,
    },
}

impl Command {
    /// Whether it ends with what it prints: it carries nothing, and starts nobody who does.
    pub(super) fn only_prints(&self) -> bool {
        matches!(
            self,
            Self::Cache(_)
                | Self::Keygen(_)
                | Self::Lab(LabCommand::List)
                | Self::Top(_)
                | Self::Check(Check { probe: false, .. })
                | Self::Tune(_)
                | Self::Completions { .. }
                | Self::Man { .. }
        )
    }
}

/// `plait top`.
#[derive(Debug, Args)]
pub struct Top {
    /// Its --admin address, or the port of it
    #[arg(default_value = "8081", value_name = "ADDR")]
    pub address: AdminAddress,
    /// Print the figures of one second, a line for each path, and end
    #[arg(long)]
    pub once: bool,
}

/// `plait check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Also dial every path to its upstream, ask the root for something, look up what --allow names
    #[arg(long)]
    pub probe: bool,
    /// The role, with its flags.
    #[command(subcommand)]
    pub role: CheckedRole,
}

/// What `plait check` looks at.
#[derive(Debug, Subcommand)]
pub enum CheckedRole {
    /// The settings of `plait root`
    Root(Root),
    /// The settings of `plait upstream`
    Upstream(Upstream),
    /// The settings of `plait relay`
    Relay(Relay),
    /// The settings of `plait downstream`
    Downstream(Downstream),
}

/// `plait lab`.
#[derive(Debug, Subcommand)]
pub enum LabCommand {
    /// Downloads a file over the chain: a live view, then the result
    Run(LabRun),
    /// Starts the chain and a shell on the client's host, for a browser, a player or curl
    Shell(LabChain),
    /// Checks that the emulator does what it is asked for; fails if it does not
    Calibrate,
    /// Shows the scenarios that have names
    List,
}

/// `plait lab run`.
#[derive(Debug, Args)]
pub struct LabRun {
    /// What runs.
    #[command(flatten)]
    pub chain: LabChain,
    /// Downloads, one after the other; the first one finds cold lanes
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = value_parser!(u16).range(1..=1000))]
    pub runs: u16,
    /// File of --dir to download
    #[arg(long, value_name = "NAME")]
    pub file: Option<String>,
}

/// What `plait lab run` and `plait lab shell` start.
#[derive(Debug, Args)]
pub struct LabChain {
    /// A scenario's file or name; `plait lab list` shows the names
    pub scenario: String,
    /// Length of the generated file, in bytes or as 200M, 1G
    #[arg(long, default_value = "200M", value_name = "SIZE", conflicts_with = "dir")]
    pub size: ByteCount,
    /// Directory to serve instead of a generated file
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Lanes per path and transfer [default: as the scenario says]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=64))]
    pub lanes: Option<u16>,
    /// Directory for the roles' logs, a file each; see --log
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
    /// How lanes go: over relays, straight to the upstream, or there by kernel MPTCP over all paths
    #[arg(long, value_enum, default_value_t)]
    pub via: LabVia,
    /// Kernel settings of all hosts: a profile of `plait tune show`, a FILE.conf like it, or stock for this kernel's own
    /// [default: the lab's]
    #[arg(long, value_name = "PROFILE|FILE")]
    pub tuning: Option<LabTuning>,
    /// One more flag for a role (root, upstream, relay, downstream, all), such as downstream=--cores=0. May be repeated
    #[arg(long = "role-flag", value_name = "ROLE=FLAG")]
    pub flags: Vec<RoleFlag>,
}

/// `plait lab --tuning`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabTuning {
    /// Beside what a new network namespace begins with.
    pub settings: Vec<Setting>,
}

impl FromStr for LabTuning {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let file;
        let settings = match text {
            "stock" => "",
            path if path.ends_with(".conf") => {
                file = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
                &file
            }
            name => name.parse::<Profile>()?.text,
        };
        let settings = profile::parse(settings).map_err(|error| error.to_string())?;
        Ok(Self { settings })
    }
}

/// `plait lab --via`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LabVia {
    /// TCP lanes over the relay of each path.
    #[default]
    Relays,
    /// TCP lanes straight to the upstream, over each path.
    Direct,
    /// MPTCP lanes straight to the upstream.
    Mptcp,
}

/// A flag for one role of a lab's chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleFlag {
    /// root, upstream, relay, downstream or all.
    pub role: String,
    /// As the role takes it.
    pub flag: String,
}

impl FromStr for RoleFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((role @ ("root" | "upstream" | "relay" | "downstream" | "all"), flag))
                if flag.starts_with('-') =>
            {
                Ok(Self { role: role.to_owned(), flag: flag.to_owned() })
            }
            _ => Err("write for example downstream=--cores=0".to_owned()),
        }
    }
}

/// `plait up`.
#[derive(Debug, Args)]
pub struct Up {
    /// Directory to serve [default: a sample library that is made once]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Where the downstream listens for clients
    #[arg(long, default_value = "127.0.0.1:8080", value_name = "ADDR")]
    pub listen: SocketAddr,
    /// Number of relays, each a path of its own; 16 at most
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = value_parser!(u16).range(1..=16))]
    pub paths: u16,
}

/// What clients may take, for the roles that serve HTTP.
#[derive(Clone, Debug, Args)]
pub struct Clients {
    /// Client connections at once; further ones get 503. Half the descriptors that `ulimit -n` allows, if that is less
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// The same for each client address (IPv6: each /64) [default: 4096; root: no other bound than --max-connections]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub max_per_address: Option<u32>,
    /// Time for a request, from the first byte of its head to the last; then 408
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = value_parser!(u32).range(1..=3600))]
    pub request_timeout: u32,
    /// Time between two requests of a connection; then it is closed
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = value_parser!(u32).range(1..=86_400))]
    pub idle_timeout: u32,
    /// Time in which a client takes nothing of an answer, such as a player that is paused; then it is cut off
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = value_parser!(u32).range(1..=86_400))]
    pub stall_timeout: u32,
}

/// Where a role is reached. Sockets that the process is started with (systemd's socket activation) go before.
#[derive(Clone, Debug, Args)]
pub struct Listen {
    /// Where to listen; port 0 lets the kernel choose. Not needed where systemd passes the sockets
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Listen beside a process of the same user that listens there already, and that is to be stopped next
    #[arg(long, requires = "listen")]
    pub take_over: bool,
    /// Time that running transfers have to end after SIGTERM; then they are cut off [default: 80; relay: 10]
    #[arg(long, value_name = "SECONDS", env = "PLAIT_DRAIN_TIMEOUT", value_parser = value_parser!(u32).range(0..=86_400))]
    pub drain_timeout: Option<u32>,
}

impl Listen {
    /// Whether a process may still be there that this one takes the place of. (Sockets that systemd passes to this process
    /// may have been passed to one before it.)
    pub fn comes_beside_another(&self) -> bool {
        self.take_over || std::env::var_os("LISTEN_FDS").is_some()
    }

    /// `--drain-timeout`, or what it is without it.
    pub fn drain(&self, default: Duration) -> Duration {
        self.drain_timeout.map_or(default, |seconds| Duration::from_secs(seconds.into()))
    }
}

/// Below the 90 s after which systemd kills what still runs: segments and most downloads have ended by then, and who is cut
/// off hears of it from the process itself. Films that are sent as one file take longer; whoever replaces a process that
/// sends those has the time to wait, and says so.
pub const DRAIN: Duration = Duration::from_secs(80);
/// Lanes of a relay are in use for as long as there are requests, and cutting them off costs no answer: a transfer goes on
/// over its other lanes, or one that is dialled anew, over the process that comes next.
pub const RELAY_DRAIN: Duration = Duration::from_secs(10);

/// `plait root`.
#[derive(Debug, Args)]
pub struct Root {
    /// Where it is reached.
    #[command(flatten)]
    pub listen: Listen,
    /// Directory to serve; nothing outside it can be reached
    #[arg(long)]
    pub dir: PathBuf,
    /// What clients may take.
    #[command(flatten)]
    pub clients: Clients,
}

/// `plait upstream`.
#[derive(Debug, Args)]
pub struct Upstream {
    /// Where it is reached.
    #[command(flatten)]
    pub listen: Listen,
    /// The root server, http://HOST:PORT, or a directory whose files the upstream reads itself
    #[arg(long, value_name = "URL|DIR")]
    pub root: String,
    /// Memory for frames that downstreams have not acknowledged, of all transfers: a number such as 1G (M, G are powers of
    /// 1000). When it runs short, transfers are less far ahead
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub max_kept: ByteCount,
    /// What strangers may take.
    #[command(flatten)]
    pub strangers: Strangers,
    /// File with the pre-shared key (make one with `plait keygen FILE`)
    #[arg(long, value_name = "FILE", env = "PLAIT_KEY")]
    pub key: PathBuf,
}

/// `plait relay`.
#[derive(Debug, Args)]
pub struct Relay {
    /// Where it is reached.
    #[command(flatten)]
    pub listen: Listen,
    /// File with the pre-shared key (make one with `plait keygen FILE`)
    #[arg(long, value_name = "FILE", env = "PLAIT_KEY")]
    pub key: PathBuf,
    /// Next hop that lanes may name; HOST or PORT may be *. May be repeated [default: any but this host's own
    /// loopback and link-local addresses, which a relay that listens on loopback may reach too]
    #[arg(long, value_name = "HOST:PORT")]
    pub allow: Vec<AllowRule>,
    /// What strangers may take.
    #[command(flatten)]
    pub strangers: Strangers,
}

/// The default of `--max-kept`: sixteen windows of 64 MiB.
pub const KEPT_BYTES_MAX: usize = 1_000_000_000;

/// What peers may take, before and after they have proved that they hold the key, for the roles that accept lanes.
#[derive(Clone, Debug, Args)]
pub struct Strangers {
    /// Hellos of new lanes that are awaited at once, and begin per second; a quarter of them from one address
    #[arg(long, value_name = "N", default_value_t = HELLOS_MAX, value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub max_hellos: u32,
    /// Lanes at once; further ones are refused. A third of the descriptors that `ulimit -n` allows, if that is less
    #[arg(long, value_name = "N", default_value_t = 65_536, value_parser = value_parser!(u32).range(1..))]
    pub max_lanes: u32,
    /// The same for each address (IPv6: each /64); a relay's lanes all come from its own [default: no other bound than
    /// --max-lanes]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(1..))]
    pub max_lanes_per_address: Option<u32>,
}

/// Hellos at once: more lanes than come up at once when a relay restarts, and 16 MiB at most.
pub const HELLOS_MAX: u32 = 4096;

/// Where lanes lead, for `downstream` and `get`.
#[derive(Clone, Debug, Args)]
pub struct Paths {
    /// A path: [tcp:|mptcp:]HOST:PORT[,HOST:PORT]..., hops in order from here, the upstream last. Repeat it for every path.
    /// srv:NAME as the first hop stands for a path over each target of NAME's SRV records in DNS, which a downstream looks
    /// up again and again
    #[arg(long = "path", required_unless_present = "path_file", value_name = "PATH")]
    pub path: Vec<PathSource>,
    /// File with one more path on each line, # before a comment; a downstream reads it again at SIGHUP
    #[arg(long, value_name = "FILE")]
    pub path_file: Option<PathBuf>,
    /// DNS server that is asked about srv:NAME and the first hops, ADDR or ADDR:PORT [default: those of the system]
    #[arg(long, value_name = "ADDR")]
    pub resolver: Option<NameServer>,
    /// File with the pre-shared key (make one with `plait keygen FILE`)
    #[arg(long, value_name = "FILE", env = "PLAIT_KEY")]
    pub key: PathBuf,
    /// Lanes per path and transfer [default: one, and more, up to 32, where they bring more]
    #[arg(long, value_name = "N", value_parser = value_parser!(u16).range(1..=64))]
    pub lanes: Option<u16>,
    /// Lanes of a path that may stand on a core at once; requests beyond that wait in order
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = value_parser!(u16).range(1..=8192))]
    pub lanes_max: u16,
}

/// `plait downstream`.
#[derive(Debug, Args)]
pub struct Downstream {
    /// Where it is reached.
    #[command(flatten)]
    pub listen: Listen,
    /// What clients may take.
    #[command(flatten)]
    pub clients: Clients,
    /// Where lanes lead.
    #[command(flatten)]
    pub paths: Paths,
    /// Memory for frames that wait for an earlier one, of all transfers: a number such as 1G (M, G are powers of 1000). When
    /// it runs short, transfers go on at the pace of their slowest lane
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub max_parked: ByteCount,
    /// Bytes of filler that may be fetched at the start, so that lanes on long paths are past slow start when the first client
    /// comes: a number such as 16M, 64M at most; 0 for none. It ends when the rate stands still, after eight seconds (sixteen on the
    /// longest paths), or when a client comes. With --take-over there is none
    #[arg(long, value_name = "SIZE", default_value = "64M")]
    pub warm_up: FillerSize,
    /// Directory of a cache: answers of the root are kept there as RFC 9111 allows [default: no cache]
    #[arg(long, value_name = "DIR", env = "PLAIT_CACHE")]
    pub cache: Option<PathBuf>,
    /// What the cache may take on the disk, in bytes or as 500MB, 20GiB, 1TiB
    #[arg(long, value_name = "SIZE", default_value = "20GiB", requires = "cache")]
    pub cache_size: DiskSize,
}

/// `plait get`.
#[derive(Clone, Debug, Args)]
pub struct Get {
    /// What to download: a path such as /films/a.mp4, or a URL of which the path is used
    pub target: String,
    /// Where to write it; a partial file is continued
    #[arg(short = 'o', long, value_name = "FILE")]
    pub output: PathBuf,
    /// Where lanes lead.
    #[command(flatten)]
    pub paths: Paths,
}

/// `plait cache`.
#[derive(Debug, Args)]
pub struct CacheCommand {
    /// Directory of the cache, as the downstream has it
    #[arg(long, value_name = "DIR", env = "PLAIT_CACHE")]
    pub cache: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub order: CacheOrder,
}

/// The commands of `plait cache`.
#[derive(Debug, Subcommand)]
pub enum CacheOrder {
    /// Lists the objects: bytes that are there, share of the whole, seconds until stale, URL
    Ls,
    /// Shows totals
    Stat,
    /// Forgets a URL, or a path on every host
    Purge {
        /// Such as http://films.example/a.mp4 or /a.mp4
        url: String,
        /// Forget everything that begins so
        #[arg(long)]
        prefix: bool,
    },
    /// Fetches URLs into the cache, one after the other
    Warm {
        /// Such as http://films.example/a.mp4, by the name that viewers use
        #[arg(required = true, value_name = "URL")]
        urls: Vec<String>,
    },
}

/// `plait keygen`.
#[derive(Debug, Args)]
pub struct Keygen {
    /// File to make; an existing one is never overwritten
    pub file: PathBuf,
    /// Puts a new key before the one in FILE, for a rotation: the new one is used for dialling, both are accepted
    #[arg(long)]
    pub add: bool,
    /// Removes the old key of FILE again, once every host has the new one
    #[arg(long, conflicts_with = "add")]
    pub drop_old: bool,
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; write a level such as info, or module=level,...")),
    }
}

/// CPU numbers, as `--cores` names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// More CPUs than a machine has: a mistyped range must not make a list of millions.
const CPU_NUMBER_MAX: usize = 8191;

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<usize>().ok().filter(|&number| number <= CPU_NUMBER_MAX);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (number(first), number(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err(format!("'{part}' is no CPU or range: write for example 0-3,8")),
            }
        }
        cpus.sort_unstable();
        cpus.dedup();
        Ok(Self(cpus))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn role_flags() {
        let flag: RoleFlag = "downstream=--cores=0".parse().unwrap();
        assert_eq!((flag.role.as_str(), flag.flag.as_str()), ("downstream", "--cores=0"));
        for wrong in ["", "downstream", "client=--cores=0", "relay=cores"] {
            assert!(wrong.parse::<RoleFlag>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn cpu_lists() {
        let list = |text: &str| text.parse::<CpuList>().map(|list| list.0);
        assert_eq!(list("0"), Ok(vec![0]));
        assert_eq!(list("0-2,8,1"), Ok(vec![0, 1, 2, 8]));
        for wrong in ["", "a", "2-1", "0-", "1,,2", "0-99999999"] {
            assert!(list(wrong).is_err(), "{wrong}");
        }
    }
}
