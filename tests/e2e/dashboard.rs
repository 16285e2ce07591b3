//! The dashboard in a real browser: headless Chromium, driven through its debugging pipe.
//!
//! With `PLAIT_SCREENSHOTS=DIR` the pictures of docs/ are made anew.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    chain::{Chain, Plan},
    client::Client,
    content::content,
    missing::installed,
    observe::eventually,
    process::Settings,
};

/// A browser with one page. <https://chromedevtools.github.io/devtools-protocol/>: messages are JSON, each with a NUL behind.
struct Browser {
    process: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
    /// What the page has complained of.
    complaints: VecDeque<String>,
}

impl Browser {
    fn start(profile: &Path) -> Self {
        // The pipe is on descriptors 3 and 4.
        let mut process = Command::new("sh")
            .args(["-c", r#"exec chromium "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#, "sh"])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"])
            .args(["--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (say, hear) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let hear = BufReader::new(hear);
        let mut browser = Self { process, say, hear, session: None, number: 0, complaints: VecDeque::new() };
        let target = browser.ask("Target.createTarget", json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.ask("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.ask(domain, json!({}));
        }
        browser
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.number += 1;
        let mut message = json!({"id": self.number, "method": method, "params": params});
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.say.write_all(format!("{message}\0").as_bytes()).unwrap();
        loop {
            let mut heard = Vec::new();
            assert!(self.hear.read_until(0, &mut heard).unwrap() > 0, "the browser is gone");
            heard.pop();
            let heard: Value = serde_json::from_slice(&heard).unwrap();
            if heard["id"] == self.number {
                assert!(heard["error"].is_null(), "{method}: {heard}");
                return heard["result"].clone();
            }
            let params = &heard["params"];
            let is_complaint = match heard["method"].as_str() {
                Some("Runtime.exceptionThrown") => true,
                Some("Runtime.consoleAPICalled") => params["type"] == "error",
                Some("Log.entryAdded") => params["entry"]["level"] == "error",
                _ => false,
            };
            if is_complaint {
                self.complaints.push_back(params.to_string());
            }
        }
    }

    fn size(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.ask("Emulation.setDeviceMetricsOverride", size);
    }

    fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true});
        let answer = self.ask("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    fn wait(&mut self, expression: &str) {
        eventually(expression, || (self.evaluate(expression) == true).then_some(()));
    }

    fn screenshot(&mut self, name: &str) {
        let Some(dir) = std::env::var_os("PLAIT_SCREENSHOTS") else { return };
        let shot = self.ask("Page.captureScreenshot", json!({"captureBeyondViewport": true}));
        let file = fs::File::create(Path::new(&dir).join(name)).unwrap();
        let mut decode = Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(file).spawn().unwrap();
        decode.stdin.take().unwrap().write_all(shot["data"].as_str().unwrap().as_bytes()).unwrap();
        assert!(decode.wait().unwrap().success());
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn chain() -> Chain {
    let settings = Settings { admin: true, ..Settings::default() };
    Plan { paths: 3, settings, ..Plan::default() }.start(|ground| {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/sample");
        fs::create_dir(ground.files().join("hls")).unwrap();
        for file in fs::read_dir(sample.join("hls")).unwrap().flatten() {
            let name = format!("hls/{}", file.file_name().to_str().unwrap());
            ground.store(&name, &fs::read(file.path()).unwrap());
        }
        ground.store("film.mp4", &content(60_000_000));
    })
}

#[test]
fn the_dashboard_shows_rates_plays_a_video_and_sees_a_relay_die() {
    if !installed("chromium") {
        return;
    }
    let mut chain = chain();
    let mut browser = Browser::start(&chain.ground.scratch("profile"));
    browser.size(1280, 1500);
    browser.ask("Page.navigate", json!({"url": format!("http://{}/", chain.downstream.admin())}));
    browser.wait("document.querySelector('#status')?.textContent === 'all well'");
    browser.wait("document.querySelectorAll('.path .state').length === 3");

    // Somebody downloads slowly, so that the charts have something to show; the player plays HLS by hls.js beside that.
    let address = chain.address;
    let film = thread::spawn(move || {
        let mut client = Client::connect(address);
        client.request("GET", "/film.mp4", "");
        client.head().unwrap();
        for _ in 0..60 {
            client.some(1_000_000).unwrap();
            thread::sleep(Duration::from_millis(120));
        }
    });
    browser.evaluate("$('file').value = '/hls/index.m3u8'; document.querySelector('button').click()");
    browser.wait("Math.max(...[...rates.values()].flat()) > 1e6");
    browser.wait("$('video').currentTime > 0.5");
    browser.wait("$('recent').children.length >= 3");
    film.join().unwrap();
    browser.screenshot("dashboard-wide.png");
    assert_eq!(browser.evaluate("document.documentElement.scrollWidth <= innerWidth"), true);

    chain.relays[1][0].kill();
    let killed = Instant::now();
    browser.wait("document.querySelectorAll('.path.down').length === 1");
    eprintln!("a killed relay is red after {} ms", killed.elapsed().as_millis());
    browser.wait("document.querySelectorAll('.strand.down').length === 1");
    browser.wait("$('status').textContent === '1 of 3 paths down'");
    browser.size(390, 844);
    browser.wait("document.documentElement.scrollWidth <= innerWidth");
    browser.screenshot("dashboard-phone.png");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
}
