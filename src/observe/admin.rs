//! The admin endpoint: metrics for Prometheus, the dashboard for people, JSON for both the dashboard and `plait top`.
//!
//! In: requests to `--admin`. Out: text made of a fresh snapshot, and the dashboard's files, which are part of the program.
//! Called by the command line, on the first core. Invariants: it changes nothing; a few connections, each with short
//! deadlines, are all that it takes.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use http::{
    HeaderValue, Method, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, X_CONTENT_TYPE_OPTIONS,
    },
};
use tokio::sync::watch;

use super::{Sources, prometheus};
use crate::{
    http::{
        accept::{self, Limits},
        problem::{Problem, Side},
        request::RequestHead,
        response::ResponseHead,
        server::{Deadlines, HttpConnection},
    },
    net::{Legs, Listener},
};

/// Browsers open six connections to a host; this is a few people and a few scrapers.
const CONNECTIONS_MAX: usize = 64;

const DEADLINES: Deadlines = Deadlines {
    request: Duration::from_secs(5),
    // Longer than the minute between two scrapes would hold connections for nothing.
    idle: Duration::from_secs(75),
    stall: Duration::from_secs(10),
    finish: Duration::from_secs(1),
};

/// What `--admin` takes: an address, or a port of the loopback address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdminAddress(pub SocketAddr);

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let loopback = || text.parse().ok().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let address = text.parse().ok().or_else(loopback);
        address
            .map(Self)
            .ok_or_else(|| "write a port such as 9100, which is 127.0.0.1:9100, or ADDR:PORT".into())
    }
}

/// Answers on this core until `stopping`.
pub async fn serve(
    sources: Sources,
    listener: Listener,
    address: SocketAddr,
    stopping: watch::Receiver<bool>,
) {
    super::process::started();
    let limits = Limits::new(CONNECTIONS_MAX, CONNECTIONS_MAX, DEADLINES).without_log();
    let is_local = address.ip().is_loopback();
    let answer = async move |connection: &mut HttpConnection, request: RequestHead| {
        answer(&sources, is_local, connection, &request).await
    };
    accept::serve(listener, Legs::default(), limits, Side::Client, stopping, answer).await;
}

async fn answer(
    sources: &Sources,
    is_local: bool,
    connection: &mut HttpConnection,
    request: &RequestHead,
) -> io::Result<()> {
    if let Err(error) = request.method_allowed() {
        return connection.respond_problem(&error.problem()).await;
    }
    if is_local && !names_this_host(request) {
        let text = "this endpoint is for this host only: ask for it by its address, or as localhost";
        return connection.respond_problem(&Problem::new(StatusCode::FORBIDDEN, Side::Client, text)).await;
    }
    let path = request.target().split('?').next().unwrap_or_default();
    let (kind, body) = match path {
        "/metrics" => {
            let text = prometheus::text(&sources.gather().await);
            ("text/plain; version=0.0.4; charset=utf-8", text.into_bytes())
        }
        "/state.json" => {
            // Numbers, strings and lists are always JSON.
            ("application/json", serde_json::to_vec(&sources.gather().await).unwrap_or_default())
        }
        // For balancers and orchestrators, many times a minute.
        "/ready" if sources.has_no_way() => {
            let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, Side::Relay, "no path is up");
            return connection.respond_problem(&problem).await;
        }
        "/ready" => ("text/plain; charset=utf-8", b"ready\n".into()),
        "/" => ("text/html; charset=utf-8", include_bytes!("dashboard/index.html").into()),
        "/dashboard.css" => ("text/css; charset=utf-8", include_bytes!("dashboard/dashboard.css").into()),
        "/dashboard.js" => {
            ("text/javascript; charset=utf-8", include_bytes!("dashboard/dashboard.js").into())
        }
        // As npm has it; its licence stands beside it.
        "/hls.js" => {
            ("text/javascript; charset=utf-8", include_bytes!("../../assets/hls.js/hls.light.min.js").into())
        }
        _ => {
            let text = "there is /, /metrics, /state.json and /ready";
            return connection
                .respond_problem(&Problem::new(StatusCode::NOT_FOUND, Side::Client, text))
                .await;
        }
    };
    send(connection, request, kind, &body).await
}

/// Whether the request names an address or `localhost`. A page of some other site can make a browser ask for any name
/// that its DNS leads here, and read the answer.
fn names_this_host(request: &RequestHead) -> bool {
    let Some(host) = request.headers.get(HOST).and_then(|host| host.to_str().ok()) else { return true };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok()
}

async fn send(
    connection: &mut HttpConnection,
    request: &RequestHead,
    kind: &'static str,
    body: &[u8],
) -> io::Result<()> {
    let mut head = ResponseHead::new(StatusCode::OK);
    head.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    head.headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    head.headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // The player fetches from the downstream, which is another origin.
    let policy = "default-src 'self'; connect-src 'self' http:; media-src http: blob:; img-src 'self' data:; \
                  object-src 'none'; frame-ancestors 'none'";
    head.headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    let body = if request.method == Method::HEAD { &[] } else { body };
    connection.send_head(head, true, !body.is_empty()).await?;
    connection.send(body, false).await?;
    connection.finish_response();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_one_of_the_loopback_address() {
        let parse = |text: &str| text.parse::<AdminAddress>().map(|address| address.to_string());
        assert_eq!(parse("9100").unwrap(), "127.0.0.1:9100");
        assert_eq!(parse("[::]:9100").unwrap(), "[::]:9100");
        assert!(parse("everywhere").is_err() && parse("70000").is_err());
    }

    #[test]
    fn only_addresses_and_localhost_name_this_host() {
        for (host, names) in [
            ("127.0.0.1:9100", true),
            ("localhost", true),
            ("LOCALHOST:1", true),
            ("[::1]:9100", true),
            ("evil.example", false),
            ("evil.example:9100", false),
        ] {
            let request = RequestHead::new(Method::GET, "/metrics", host).unwrap();
            assert_eq!(names_this_host(&request), names, "{host}");
        }
    }
}
