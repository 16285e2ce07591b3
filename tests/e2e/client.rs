//! Clients: one that speaks HTTP/1.1 over a plain socket and sees everything, and the programs that users run.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use crate::{
    chain::{Chain, text},
    process::{DEADLINE, run},
};

/// One connection.
pub struct Client {
    reader: BufReader<Stream>,
}

/// A socket on which silence is a failure of its own: it must not pass for the end of the connection.
struct Stream(TcpStream);

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(buffer);
        if let Err(error) = &read {
            let silent = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
            assert!(!silent, "the other side neither says anything nor ends the connection");
        }
        read
    }
}

/// The head of an answer.
#[derive(Clone, Debug)]
pub struct Head {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub head: Head,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn status(&self) -> u16 {
        self.head.status
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Client {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).unwrap())
    }

    /// Over a connection that stands.
    pub fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { reader: BufReader::with_capacity(256 << 10, Stream(stream)) }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.reader.get_mut().0.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends a request with these further header lines (each ended by CRLF).
    pub fn request(&mut self, method: &str, target: &str, headers: &str) {
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: films.example\r\n{headers}\r\n"));
    }

    /// Reads a head, and leaves the body where it is.
    pub fn head(&mut self) -> io::Result<Head> {
        let mut line = || {
            let mut line = String::new();
            match self.reader.read_line(&mut line)? {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => Ok(line.trim_end().to_owned()),
            }
        };
        let first = line()?;
        let status = first
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.get(..3)?.parse().ok())
            .unwrap_or_else(|| panic!("no status line: '{first}'"));
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            if line.is_empty() {
                return Ok(Head { status, headers });
            }
            let (name, value) = line.split_once(':').unwrap_or_else(|| panic!("no header: '{line}'"));
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    /// Reads the body that belongs to `head`.
    pub fn body(&mut self, head: &Head) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if head.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            while let 1.. = self.chunk(&mut body)? {}
        } else if let Some(length) = head.header("content-length") {
            body.resize(length.parse().unwrap(), 0);
            self.reader.read_exact(&mut body)?;
        } else {
            self.reader.read_to_end(&mut body)?;
        }
        Ok(body)
    }

    /// Appends one chunk; zero says that it was the last.
    fn chunk(&mut self, body: &mut Vec<u8>) -> io::Result<usize> {
        let mut line = String::new();
        if self.reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let length =
            usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("no chunk: {line:?}"));
        let known = body.len();
        body.resize(known + length, 0);
        self.reader.read_exact(&mut body[known..])?;
        let mut end = [0; 2];
        self.reader.read_exact(&mut end)?;
        assert_eq!(&end, b"\r\n", "a chunk ends with an empty line");
        Ok(length)
    }

    /// Reads some of the body and leaves the rest.
    pub fn some(&mut self, bytes: usize) -> io::Result<Vec<u8>> {
        let mut some = vec![0; bytes];
        self.reader.read_exact(&mut some).map(|()| some)
    }

    /// Reads to the end of the connection, which must be one in order.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.reader.read_to_end(&mut rest).map(|_| rest)
    }

    /// Reads a whole answer to `method`.
    pub fn answer(&mut self, method: &str) -> io::Result<Answer> {
        let head = self.head()?;
        let bodiless = method == "HEAD" || matches!(head.status, 204 | 304);
        let body = if bodiless { Vec::new() } else { self.body(&head)? };
        Ok(Answer { head, body })
    }

    /// Asks and reads the whole answer.
    pub fn ask(&mut self, method: &str, target: &str, headers: &str) -> io::Result<Answer> {
        self.request(method, target, headers);
        self.answer(method)
    }

    /// Sends, unless the other side has closed.
    pub fn sends(&mut self, bytes: &[u8]) -> bool {
        self.reader.get_mut().0.write_all(bytes).is_ok()
    }

    /// Whether an answer has begun to come; does not wait.
    pub fn has_answer(&self) -> bool {
        let stream = &self.reader.get_ref().0;
        stream.set_nonblocking(true).unwrap();
        let there = stream.peek(&mut [0]).is_ok_and(|bytes| bytes > 0);
        stream.set_nonblocking(false).unwrap();
        there
    }

    /// Whether anything more is said before the connection ends, in whatever way.
    pub fn answers_again(&mut self) -> bool {
        self.reader.fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    }

    /// Whether the other side has ended the connection in order and said nothing more.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.fill_buf(), Ok([]))
    }
}

/// One request on a connection of its own.
pub fn ask(address: SocketAddr, method: &str, target: &str, headers: &str) -> Answer {
    try_get(address, method, target, headers)
        .unwrap_or_else(|error| panic!("{method} {target}: the answer is not whole: {error}"))
}

/// The same, where the answer may fail to come.
pub fn try_get(address: SocketAddr, method: &str, target: &str, headers: &str) -> io::Result<Answer> {
    Client::connect(address).ask(method, target, headers)
}

/// `curl`, silent, with these arguments; with all its deadlines.
pub fn curl<'a>(args: impl IntoIterator<Item = &'a str>) -> Output {
    let deadline = DEADLINE.as_secs().to_string();
    let mut command = Command::new("curl");
    let output = run(command.args(["-q", "-sS", "--noproxy", "*", "--max-time", &deadline]).args(args));
    // Its exit code for a deadline that has passed: silence is not a visible end.
    assert_ne!(output.status.code(), Some(28), "{command:?}: {output:?}");
    output
}

/// `curl -o` of one target; whether it was content, and the file.
pub fn curl_to(chain: &Chain, target: &str, file: &str) -> (bool, PathBuf) {
    let path = chain.ground.scratch(file);
    let output = curl([chain.url(target).as_str(), "-f", "-o", text(&path)]);
    (output.status.success(), path)
}

/// aria2c with eight connections to each server and pieces of 1 MiB; panics with what it says if it fails.
pub fn aria2c(url: &str, path: &Path) {
    let (dir, name) = (path.parent().unwrap(), path.file_name().unwrap());
    let output = run(Command::new("aria2c")
        .args(["--no-conf", "-x8", "-s8", "-k1M", "--file-allocation=none", "--allow-overwrite=true"])
        .args(["--max-tries=1", "--quiet", "--dir", text(dir), "--out", name.to_str().unwrap(), url]));
    assert!(output.status.success(), "aria2c {url}: {output:?}");
}

/// `plait get` over the same paths as the downstream's.
pub fn plait_get(chain: &Chain, target: &str, path: &Path) -> Output {
    let key = chain.ground.key();
    let mut command = chain.settings.plait();
    command.args(["get", target, "-o", text(path), "--key", text(&key)]);
    for path in &chain.paths {
        command.args(["--path", path]);
    }
    run(&mut command)
}
