//! A real browser: headless Chromium with one page, driven through its debugging pipe.
//!
//! With `PLAIT_SCREENSHOTS=DIR` the pictures of docs/ are made anew.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::{Value, json};

use crate::observe::eventually;

/// Where pictures go, if any are wanted.
pub fn screenshots() -> Option<OsString> {
    std::env::var_os("PLAIT_SCREENSHOTS")
}

/// A browser with one page. <https://chromedevtools.github.io/devtools-protocol/>: messages are JSON, each with a NUL behind.
pub struct Browser {
    process: Child,
    say: ChildStdin,
    hear: BufReader<ChildStdout>,
    session: Option<String>,
    number: u64,
    /// What the page has complained of.
    complaints: Vec<String>,
}

impl Browser {
    /// Starts it with a profile of its own.
    pub fn start(profile: &Path) -> Self {
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
        let mut browser = Self { process, say, hear, session: None, number: 0, complaints: Vec::new() };
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
                self.complaints.push(params.to_string());
            }
        }
    }

    /// Shows the page at `url`.
    pub fn open(&mut self, url: &str) {
        self.ask("Page.navigate", json!({"url": url}));
    }

    /// Dark or light, as the user's system is.
    pub fn scheme(&mut self, scheme: &str) {
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.ask("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    /// Presses a key that has this name and writes this text, if any.
    pub fn press(&mut self, key: &str, text: &str, code: u32) {
        let event = |kind| json!({"type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code});
        self.ask("Input.dispatchKeyEvent", event(if text.is_empty() { "rawKeyDown" } else { "keyDown" }));
        self.ask("Input.dispatchKeyEvent", event("keyUp"));
    }

    /// Goes on with Tab until the element that `expression` names has the focus.
    pub fn tab_to(&mut self, expression: &str) {
        // A page has far fewer places to go to.
        for _ in 0..60 {
            self.press("Tab", "", 9);
            if self.evaluate(&format!("document.activeElement === {expression}")) == true {
                return;
            }
        }
        panic!("Tab does not lead to {expression}");
    }

    /// Enter, where the focus is.
    pub fn enter(&mut self) {
        self.press("Enter", "\r", 13);
    }

    /// Writes over what is in the field that has the focus.
    pub fn write(&mut self, text: &str) {
        self.evaluate("document.activeElement.select()");
        self.ask("Input.insertText", json!({"text": text}));
    }

    /// What the page has complained of.
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// The size of its window.
    pub fn size(&mut self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500});
        self.ask("Emulation.setDeviceMetricsOverride", size);
    }

    /// The value of `expression` in the page.
    pub fn evaluate(&mut self, expression: &str) -> Value {
        let asked = json!({"expression": expression, "returnByValue": true});
        let answer = self.ask("Runtime.evaluate", asked);
        assert!(answer["exceptionDetails"].is_null(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until `expression` is true.
    pub fn wait(&mut self, expression: &str) {
        eventually(expression, || (self.evaluate(expression) == true).then_some(()));
    }

    /// Makes a picture of docs/ anew, if that is wanted.
    pub fn screenshot(&mut self, name: &str) {
        let Some(dir) = screenshots() else { return };
        let (width, height) = (self.evaluate("innerWidth"), self.evaluate("document.body.scrollHeight"));
        let clip = json!({"x": 0, "y": 0, "width": width, "height": height, "scale": 1});
        let whole = json!({"captureBeyondViewport": true, "clip": clip});
        let shot = self.ask("Page.captureScreenshot", whole);
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
