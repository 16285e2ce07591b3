//! Root servers that are not Plait's: nginx, and scripted ones that answer whatever a test wants.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    chain::{Ground, text},
    process::{DEADLINE, Process},
};

/// nginx with a configuration of its own, unprivileged, on a socket that it inherits: it cannot say which port the
/// kernel chose. The socket listens already, so that there is nothing to wait for. With `master_process off`, nginx 1.22
/// crashes on such a socket.
pub fn nginx(ground: &Ground) -> (Process, SocketAddr) {
    nginx_with(ground, "")
}

/// The same with `more` directives for its server.
pub fn nginx_with(ground: &Ground, more: &str) -> (Process, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let dir = ground.scratch("nginx");
    fs::create_dir(&dir).unwrap();
    let (dir, files) = (text(&dir).to_owned(), ground.files());
    let files = text(&files);
    // Without it, a worker of root's would be nobody, who cannot read temporary directories.
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let configuration = format!(
        "{user} daemon off; worker_processes 1; pid {dir}/pid; error_log stderr warn;
        events {{ worker_connections 1024; }}
        http {{
            access_log off; sendfile on; default_type application/octet-stream;
            types {{ video/mp4 mp4; video/mp2t ts; application/vnd.apple.mpegurl m3u8; }}
            client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi;
            uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;
            server {{ listen {address}; root {files}; {more} }}
        }}"
    );
    let configuration_file = format!("{dir}/nginx.conf");
    fs::write(&configuration_file, configuration).unwrap();
    let mut command = Command::new("nginx");
    command
        .args(["-p", &dir, "-e", "stderr", "-c", &configuration_file])
        .env("NGINX", "0;")
        .stdin(OwnedFd::from(listener));
    (Process::start("nginx", &mut command).ends_with_sigterm(), address)
}

/// The head of a request that a scripted root got.
#[derive(Clone, Debug)]
pub struct Asked {
    pub line: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// What becomes of a connection behind an answer.
pub enum After {
    /// The next request may come.
    Keep,
    /// It is closed in order.
    Close,
    /// It is reset.
    Reset,
}

/// A root server in the test's own process: `answer` writes what the wire gets.
pub struct ScriptedRoot {
    pub address: SocketAddr,
    stopping: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl ScriptedRoot {
    pub fn start<A>(answer: A) -> Self
    where
        A: Fn(&Asked, &mut TcpStream) -> std::io::Result<After> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stopping, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stops, heard, answer) = (stopping.clone(), asked.clone(), Arc::new(answer));
        thread::spawn(move || {
            for connection in listener.incoming() {
                if stops.load(Ordering::Relaxed) {
                    return;
                }
                let (heard, answer) = (heard.clone(), answer.clone());
                thread::spawn(move || converse(connection.unwrap(), &heard, &*answer));
            }
        });
        Self { address, stopping, asked }
    }

    /// A root of one body, with this head line and headers, written piece by piece.
    pub fn of_pieces(head: &'static str, pieces: Vec<Vec<u8>>, after: fn() -> After) -> Self {
        Self::start(move |_, stream| {
            stream.write_all(head.as_bytes())?;
            for piece in &pieces {
                stream.write_all(piece)?;
            }
            Ok(after())
        })
    }

    /// Waits until it was asked for `target`.
    pub fn wait_for_request(&self, target: &str) {
        let until = Instant::now() + DEADLINE;
        let wanted = format!("GET {target} ");
        while !self.asked.lock().unwrap().iter().any(|asked| asked.line.starts_with(&wanted)) {
            assert!(Instant::now() < until, "the root was not asked");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// What it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for ScriptedRoot {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        // Wakes the acceptor, which then sees that it should stop.
        let _ = TcpStream::connect(self.address);
    }
}

fn converse<A>(mut connection: TcpStream, heard: &Mutex<Vec<Asked>>, answer: &A)
where
    A: Fn(&Asked, &mut TcpStream) -> std::io::Result<After>,
{
    connection.set_read_timeout(Some(DEADLINE)).unwrap();
    connection.set_write_timeout(Some(DEADLINE)).unwrap();
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    while let Some(request) = read_head(&mut reader) {
        heard.lock().unwrap().push(request.clone());
        match answer(&request, &mut connection) {
            Ok(After::Keep) => {}
            Ok(After::Close) | Err(_) => break,
            Ok(After::Reset) => {
                let socket = socket2::SockRef::from(&connection);
                socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
                return;
            }
        }
    }
    let _ = connection.shutdown(Shutdown::Both);
}

fn read_head(reader: &mut impl BufRead) -> Option<Asked> {
    let mut lines = std::iter::from_fn(|| {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|&bytes| bytes > 0)?;
        Some(line.trim_end().to_owned()).filter(|line| !line.is_empty())
    });
    let line = lines.next()?;
    let headers = lines
        .map(|line| {
            let (name, value) = line.split_once(':').unwrap_or((&line, ""));
            (name.to_ascii_lowercase(), value.trim().to_owned())
        })
        .collect();
    Some(Asked { line, headers })
}

/// `bytes` as a chunked body with chunks of these lengths, over and over.
pub fn chunked(bytes: &[u8], lengths: &[usize]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + bytes.len() / 8);
    let (mut rest, mut lengths) = (bytes, lengths.iter().cycle());
    while !rest.is_empty() {
        let (chunk, more) = rest.split_at(rest.len().min(*lengths.next().unwrap()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = more;
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}
