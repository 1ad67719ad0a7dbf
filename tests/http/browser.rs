//! A headless Chromium in a namespace, spoken to by the DevTools protocol over a pair of pipes.

use std::{
    ffi::OsString,
    fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use memlb_tests::{Namespace, wait_for};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

/// One browser with one page.
pub struct Browser {
    child: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    /// What the page complained of.
    pub complaints: Vec<String>,
    session: Option<String>,
    next_id: u64,
}

impl Browser {
    /// Starts a browser in `namespace` that leaves its traces in `directory`.
    pub fn start(namespace: &Namespace, directory: &Path) -> Self {
        // The browser reads commands at 3 and answers at 4.
        let mut command = namespace.command("sh");
        command
            .args([
                "-c",
                "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1",
                "sh",
            ])
            .args(["chromium", "--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-background-networking", "--disable-dev-shm-usage"])
            .args([
                "--disable-component-update",
                "--no-first-run",
                "--hide-scrollbars",
            ])
            .arg("--remote-debugging-pipe")
            .arg(format!("--user-data-dir={}", directory.display()))
            .env("HOME", directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let commands = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let (sender, messages) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while answers
                .read_until(0, &mut message)
                .is_ok_and(|length| length > 0)
            {
                message.pop();
                let Ok(value) = serde_json::from_slice(&message) else {
                    return;
                };
                if sender.send(value).is_err() {
                    return;
                }
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            commands,
            messages,
            complaints: Vec::new(),
            session: None,
            next_id: 0,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", attach);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Sends a command and returns what it answers.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next_id += 1;
        let mut command = json!({ "id": self.next_id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            command["sessionId"] = session.as_str().into();
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rest = deadline.saturating_duration_since(Instant::now());
            let mut message = self
                .messages
                .recv_timeout(rest)
                .unwrap_or_else(|error| panic!("the browser does not answer {method}: {error}"));
            if message["id"] == self.next_id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
            self.note(&message);
        }
    }

    /// Sets the size of the window, in CSS pixels.
    pub fn resize(&mut self, width: u32, height: u32) {
        let metrics = json!({
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics);
    }

    /// Makes the reader one who prefers `value` of the media feature `name`.
    pub fn prefer(&mut self, name: &str, value: &str) {
        let features = json!({ "features": [{ "name": name, "value": value }] });
        self.call("Emulation.setEmulatedMedia", features);
    }

    pub fn open(&mut self, address: &str) {
        let opened = self.call("Page.navigate", json!({ "url": address }));
        assert!(opened["errorText"].is_null(), "{opened}");
    }

    /// Returns the value of a JavaScript expression.
    pub fn value(&mut self, expression: &str) -> Value {
        let evaluate = json!({ "expression": expression, "returnByValue": true });
        let mut result = self.call("Runtime.evaluate", evaluate);
        assert!(
            result["exceptionDetails"].is_null(),
            "{expression}: {result}"
        );
        result["result"]["value"].take()
    }

    /// Waits until a JavaScript expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        let guarded = format!(
            "(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()"
        );
        let came = wait_for(PATIENCE, expression, || {
            (self.value(&guarded) == true).then_some(())
        });
        if came.is_err() {
            let text = self.value("document.body.innerText");
            panic!(
                "waited in vain for {expression}; the page says:\n{}",
                text.as_str().unwrap_or("nothing")
            );
        }
    }

    /// Presses a key, as a person does.
    pub fn press(&mut self, key: &str) {
        let text = if key == "Enter" { "\r" } else { "" };
        let code = match key {
            "Enter" => 13,
            "Tab" => 9,
            "ArrowLeft" => 37,
            "ArrowRight" => 39,
            _ => 0,
        };
        for kind in ["keyDown", "keyUp"] {
            let event = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code,
                "text": if kind == "keyDown" { text } else { "" },
            });
            self.call("Input.dispatchKeyEvent", event);
        }
    }

    /// Keeps a picture of the whole page for people to look at, as PNG and as SVG, where one is wanted.
    pub fn picture(&mut self, name: &str) {
        let Some(directory) = Self::pictures() else {
            return;
        };
        let parameters = json!({ "format": "png", "captureBeyondViewport": true });
        let picture = self.call("Page.captureScreenshot", parameters);
        let encoded = Path::new(&directory).join(format!("{name}.base64"));
        fs::write(&encoded, picture["data"].as_str().unwrap()).unwrap();
        let decoded = Command::new("base64")
            .arg("--decode")
            .arg(&encoded)
            .output()
            .unwrap();
        fs::write(encoded.with_extension("png"), decoded.stdout).unwrap();
        fs::remove_file(&encoded).unwrap();
        let drawing = self.value(include_str!("snapshot.js"));
        fs::write(encoded.with_extension("svg"), drawing.as_str().unwrap()).unwrap();
    }

    /// Returns the folder for pictures, where some are wanted.
    pub fn pictures() -> Option<OsString> {
        std::env::var_os("MEMLB_PICTURES")
    }

    fn note(&mut self, message: &Value) {
        let parameters = &message["params"];
        match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => {
                let thrown = &parameters["exceptionDetails"];
                self.complaints.push(thrown.to_string());
            }
            // Among them every breach of the Content-Security-Policy.
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                self.complaints
                    .push(parameters["entry"]["text"].to_string());
            }
            _ => {}
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its children end with it; the namespace would take them down, too.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
