//! In: a root. Out: a running nginx that caches it.
//!
//! Called by `main`. Invariant: one process, its defaults except for what makes it a cache that sends by sendfile.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Outcome;
use crate::processes::Process;

/// See the module's description.
pub struct NginxCache {
    /// The process whose CPU time counts.
    pub process: Process,
    /// Where it takes requests.
    pub address: SocketAddr,
    /// What it stores.
    pub dir: PathBuf,
}

impl NginxCache {
    /// Starts one before `root`; its files go to `dir`.
    pub fn start(dir: &Path, root: SocketAddr) -> Outcome<Self> {
        let prefix = dir.join("nginx-cache");
        fs::create_dir(&prefix)?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let config = prefix.join("nginx.conf");
        fs::write(
            &config,
            format!(
                "daemon off; master_process off; pid {prefix}/pid; error_log stderr;
events {{ worker_connections 1024; }}
http {{
    access_log off; sendfile on; keepalive_requests 1000000;
    open_file_cache max=1000;
    client_body_temp_path {prefix}; proxy_temp_path {prefix}; fastcgi_temp_path {prefix};
    uwsgi_temp_path {prefix}; scgi_temp_path {prefix};
    proxy_cache_path {prefix}/cache keys_zone=films:10m max_size=12g use_temp_path=off;
    upstream root {{ server {root}; keepalive 16; }}
    server {{
        listen {address};
        location / {{
            proxy_pass http://root; proxy_http_version 1.1; proxy_set_header Connection \"\";
            proxy_cache films; proxy_cache_valid 200 1d; proxy_cache_lock on;
        }}
    }}
}}
",
                prefix = prefix.display()
            ),
        )?;
        let mut command = Command::new("nginx");
        command.arg("-e").arg("stderr").arg("-p").arg(&prefix).arg("-c").arg(&config);
        let mut process = Process::start("nginx cache", &mut command, dir)?;
        process.wait_until(|| TcpStream::connect(address).is_ok())?;
        process.pin_to_first_cpu()?;
        Ok(Self { process, address, dir: prefix.join("cache") })
    }
}
