//! The control API of the simulated pool, over real HTTP and a real unix socket, and `bootflip simulate` itself.

use std::{process::Stdio, time::Duration};

use bootflip::{
    sim::{
        faults::FaultPlan,
        pool::{GuestAct, Pool, Release, VmSpec},
        server::{Control, ControlPlace, SimOptions, SimServer},
    },
    xen::{Failure, Value as Xen},
};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    process::{Child, Command},
    time::timeout,
};

use crate::common::{PATIENCE, reference::reference_or_skip};

struct Rig {
    server: SimServer,
    control: Control,
    client: Client,
    uuid: String,
}

impl Rig {
    async fn new() -> Self {
        let mut pool = Pool::new(3, Release::V8_2);
        let spec = |name: &str| VmSpec { name: name.to_owned(), bootable: Some(Ok(())), ..VmSpec::default() };
        let uuid = pool.add_vm(spec("web-01"));
        pool.add_vm(spec("twin"));
        pool.add_vm(spec("twin"));
        let options = SimOptions {
            device: Some("lo".to_owned()),
            faults: FaultPlan::default(),
            ..SimOptions::default()
        };
        let server = SimServer::start(pool, options).unwrap();
        let control = server.control(&ControlPlace::Port(0)).await.unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder().no_proxy().build().unwrap();
        Self { server, control, client, uuid }
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let answer = self.client.get(format!("{}{path}", self.control.url)).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn json(&self, path: &str) -> Value {
        let (status, text) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn post(&self, path: &str, body: &str) -> (StatusCode, String) {
        let request = self.client.post(format!("{}{path}", self.control.url)).body(body.to_owned());
        let answer = request.send().await.unwrap();
        (answer.status(), answer.text().await.unwrap())
    }

    async fn done(&self, path: &str, body: Value) -> Value {
        let (status, text) = self.post(path, &body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{path} {body}: {text}");
        serde_json::from_str(&text).unwrap()
    }

    async fn vm(&self) -> Value {
        let vms = self.json("/vms").await;
        vms.as_array().unwrap().iter().find(|vm| vm["uuid"] == self.uuid.as_str()).unwrap().clone()
    }

    /// One call by a client, with a login of its own.
    fn call(&self, method: &str, params: &[Xen]) -> Result<Xen, Failure> {
        self.server.pool.with(|pool, now| {
            let credentials = ["root", "simulated"].map(Xen::string);
            let session = pool.call(now, "session.login_with_password", &credentials)?;
            let vm = pool.call(now, "VM.get_by_uuid", &[session.clone(), Xen::string(&self.uuid)])?;
            pool.call(now, method, &[&[session, vm], params].concat())
        })
    }
}

#[tokio::test]
async fn calls_are_shown_without_what_is_secret() {
    let rig = Rig::new().await;
    rig.call("VM.set_PV_args", &[Xen::string("quiet")]).unwrap();
    rig.call("VM.set_domain_type", &[Xen::string("nonsense")]).unwrap_err();
    let shown = rig.json("/calls").await;
    assert_eq!(shown["total"], json!(6));
    assert!(!shown.to_string().contains("simulated"), "the password is nowhere: {shown}");
    let only = rig.json("/calls?since=1&vm=web-01&method=VM.set_domain_type").await;
    let [call] = only["calls"].as_array().unwrap().as_slice() else { panic!("{only}") };
    assert_eq!((&call["caller"], &call["vm"]), (&json!("client"), &json!(rig.uuid)));
    assert_eq!(call["outcome"], json!(["INVALID_VALUE", "domain_type", "nonsense"]));
    let quiet = rig.json("/calls?method=VM.set_PV_args").await;
    assert_eq!(
        (&quiet["calls"][0]["outcome"], &quiet["calls"][0]["params"]),
        (&json!("ok"), &json!("quiet"))
    );
}

#[tokio::test]
async fn a_person_does_what_people_do() {
    let rig = Rig::new().await;
    rig.call("VM.add_to_other_config", &[Xen::string("bootflip:claim"), Xen::string("{}")]).unwrap();
    assert_eq!(rig.vm().await["claimed"], json!(true));
    for (act, field, expected) in [
        (json!({ "set-type": "hvm" }), "domain_type", json!("hvm")),
        (json!({ "set-order": "dc" }), "HVM_boot_params", json!({ "order": "dc" })),
        (json!("remove-claim"), "claimed", json!(false)),
        (json!("start"), "power_state", json!("Running")),
        (json!("reboot"), "hvm_starts", json!(1)), // no tools: refused below
        (json!("hard-reboot"), "hvm_starts", json!(2)),
        (json!("hard-shutdown"), "power_state", json!("Halted")),
        (json!({ "rename": "web-02" }), "name", json!("web-02")),
    ] {
        let body = json!({ "vm": rig.uuid, "act": act }).to_string();
        let (status, text) = rig.post("/person", &body).await;
        let refused = act == json!("reboot");
        assert_eq!(status == StatusCode::BAD_REQUEST, refused, "{body}: {text}");
        assert_eq!(text.starts_with("VM_LACKS_FEATURE"), refused, "{text}");
        assert_eq!(rig.vm().await[field], expected, "{body}");
    }
    let clone = rig.done("/person", json!({ "vm": "web-02", "act": { "clone": "web-03" } })).await;
    assert_ne!(clone["vm"], json!(rig.uuid));
    rig.done("/person", json!({ "vm": "web-03", "act": "destroy" })).await;
    assert_eq!(rig.json("/vms").await.as_array().unwrap().len(), 3);
    assert!(rig.json("/calls?method=VM.destroy").await["calls"][0]["caller"] == json!("person"));
}

#[tokio::test]
async fn a_guest_ends_or_installs_itself() {
    let rig = Rig::new().await;
    rig.done("/guest", json!({ "vm": "web-01", "act": { "installed": false } })).await;
    let (status, text) = rig.post("/person", &json!({ "vm": "web-01", "act": "start" }).to_string()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.starts_with("BOOTLOADER_FAILED"), "{text}");
    rig.done("/guest", json!({ "vm": "web-01", "act": { "installed": true } })).await;
    rig.done("/person", json!({ "vm": "web-01", "act": "start" })).await;
    assert_eq!(rig.vm().await["domain"]["mode"], json!("pv"));
    rig.done("/guest", json!({ "vm": "web-01", "act": { "agent": "10.0.0.9" } })).await;
    rig.done("/guest", json!({ "vm": "web-01", "act": "power-off" })).await;
    timeout(PATIENCE, async {
        while rig.vm().await["power_state"] != json!("Halted") {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let (status, text) = rig.post("/guest", &json!({ "vm": "web-01", "act": "crash" }).to_string()).await;
    assert_eq!((status, text.as_str()), (StatusCode::BAD_REQUEST, "web-01 has no guest: it is Halted\n"));
}

#[tokio::test]
async fn faults_are_planned_fired_counted_and_released() {
    let rig = Rig::new().await;
    let method = "VM.get_by_uuid";
    for (name, kind) in [
        ("refused", json!({ "fail": ["HOST_STILL_BOOTING"] })),
        ("late", json!({ "delay-ms": 1 })),
        ("before", json!("lose-before")),
        ("after", json!("lose-after")),
        ("hangs", json!("hang")),
        ("held", json!("hold")),
        ("reply held", json!("hold-reply")),
        ("expired", json!("expire-sessions")),
        ("restart", json!({ "coordinator-restart": { "lose_seconds": 300 } })),
        ("elsewhere", json!({ "not-coordinator": "192.0.2.1" })),
        ("somebody", json!({ "person": "start" })),
    ] {
        // All but the first wait for a call that never comes.
        let nth = if name == "refused" { 1 } else { 99 };
        rig.done("/faults", json!({ "name": name, "method": method, "nth": nth, "kind": kind })).await;
    }
    let body = "<methodCall><methodName>VM.get_by_uuid</methodName><params/></methodCall>";
    let answer = rig.client.post(rig.server.url()).body(body).send().await.unwrap().text().await.unwrap();
    assert!(answer.contains("HOST_STILL_BOOTING"), "{answer}");
    let tally = rig.json("/faults").await;
    let fired: Vec<&Value> =
        tally.as_array().unwrap().iter().filter(|row| row["fired"] == json!(1)).collect();
    assert_eq!(tally.as_array().unwrap().len(), 11);
    assert_eq!((fired.len(), &fired[0]["name"]), (1, &json!("refused")));
    rig.done("/release", json!({ "name": "held" })).await;
}

#[tokio::test]
async fn the_coordinator_forgets_moves_and_ends_sessions() {
    let rig = Rig::new().await;
    rig.call("VM.set_PV_args", &[Xen::string("new")]).unwrap();
    rig.done("/coordinator", json!({ "restart": { "lose_seconds": 300 } })).await;
    assert_eq!(rig.vm().await["PV_args"], json!("console=hvc0"), "the write is forgotten");
    rig.call("VM.set_PV_args", &[Xen::string("new")]).unwrap();
    rig.done("/coordinator", json!({ "restart": {} })).await;
    assert_eq!(rig.vm().await["PV_args"], json!("new"));
    rig.call("VM.get_uuid", &[]).unwrap();
    let sessions = |rig: &Rig| rig.server.pool.with(|pool, _| pool.session_count());
    assert_eq!(sessions(&rig), 1);
    rig.done("/coordinator", json!("expire-sessions")).await;
    assert_eq!(sessions(&rig), 0);
    rig.done("/coordinator", json!("lose-events")).await;
    rig.done("/coordinator", json!({ "move": "127.0.0.2" })).await;
    assert_eq!(rig.server.pool.with(|pool, _| pool.coordinator().to_owned()), "127.0.0.2");
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_in_words() {
    let rig = Rig::new().await;
    let fault = |change: &str| format!(r#"{{"name":"f","method":"VM.start","kind":"hang"{change}}}"#);
    for (path, body, words) in [
        ("/person", "not JSON".to_owned(), "expected ident at line 1"),
        ("/person", r#"{"vm":"nobody","act":"start"}"#.to_owned(), "no VM has the uuid or name nobody"),
        ("/person", r#"{"vm":"twin","act":"start"}"#.to_owned(), "several VMs are called twin; say the uuid"),
        (
            "/person",
            r#"{"vm":"web-01","act":"dance"}"#.to_owned(),
            "unknown variant `dance`, expected one of",
        ),
        ("/person", r#"{"vm":"web-01","act":"start","x":1}"#.to_owned(), "unknown field `x`"),
        ("/person", r#"{"vm":"web-01","act":"hard-shutdown"}"#.to_owned(), "VM_BAD_POWER_STATE ["),
        ("/faults", fault(r#","nth":0"#), "nth and count begin at 1"),
        ("/faults", fault(r#","wrong":0"#), "unknown field `wrong`"),
        (
            "/faults",
            r#"{"name":"f","method":"VM.start","kind":{"fail":[]}}"#.to_owned(),
            "fail needs an error code",
        ),
        (
            "/faults",
            r#"{"name":"f","method":"Async.VM.start","kind":"hang"}"#.to_owned(),
            "leave `Async.` out",
        ),
        ("/faults", r#"{"name":"f","kind":"hang"}"#.to_owned(), "missing field `method`"),
        ("/release", r#"{"name":"f"}"#.to_owned(), "no fault is called f"),
        ("/coordinator", r#"{"move":"10.0.0.1"}"#.to_owned(), "no member has the address 10.0.0.1"),
        ("/coordinator", r#"{"restart":{"lose":1}}"#.to_owned(), "unknown field `lose`"),
        ("/guest", r#"{"vm":"web-01","act":"reboot"}"#.to_owned(), "web-01 has no guest: it is Halted"),
    ] {
        let (status, text) = rig.post(path, &body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path} {body}: {text}");
        assert!(text.starts_with(words) && text.ends_with('\n'), "{path} {body}: {text}");
    }
    let (status, text) = rig.get("/calls?wrong=1").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    let (status, text) = rig.get("/nothing").await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::NOT_FOUND, "there is no /nothing; GET / lists what there is\n")
    );
    let (status, help) = rig.get("/").await;
    assert!(status == StatusCode::OK && help.contains("POST /faults"));
    let guests = rig.server.pool.with(|pool, now| pool.guest(now, &rig.uuid, 1, GuestAct::Reboot));
    assert!(!guests && rig.json("/faults").await == json!([]), "nothing happened");
}

#[tokio::test]
async fn the_control_api_listens_on_a_unix_socket_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let rig = Rig::new().await;
    let control = rig.server.control(&ControlPlace::Socket(path.clone())).await.unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(rig.server.control(&ControlPlace::Socket(path.clone())).await.is_err(), "it is taken");
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /vms HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK") && answer.contains("web-01"), "{answer}");
    drop(control);
    assert!(!path.exists());
    for (text, place) in [
        ("0", Some(ControlPlace::Port(0))),
        ("8080", Some(ControlPlace::Port(8080))),
        ("/run/c.sock", Some(ControlPlace::Socket("/run/c.sock".into()))),
        ("70000", None),
        ("", None),
    ] {
        assert_eq!(text.parse::<ControlPlace>().ok(), place, "{text}");
    }
}

/// `bootflip simulate` with these arguments and a control API: what it told until it told that API's URL.
async fn simulate(arguments: &[&str]) -> (Child, Vec<String>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
    command.args(["simulate", "--control", "0"]).args(arguments);
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    let mut told = Vec::new();
    loop {
        let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().expect("a line");
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        match words.as_slice() {
            [word, url] if word == "control" => return (child, told, url.clone()),
            _ => told.push(words.join(" ")),
        }
    }
}

#[tokio::test]
async fn simulate_serves_a_real_database() {
    let test = "simulate_serves_a_real_database";
    let Some(file) = reference_or_skip(test, "data/xapi/state3.json") else { return };
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    for (release, version) in [(None, "(XenServer 5.6.0)"), (Some("6.2"), "(XenServer 6.2.0)")] {
        let file = file.to_str().unwrap();
        let mut arguments = vec!["--load", file];
        arguments.extend(release.iter().flat_map(|release| ["--release", release]));
        let (_child, told, control) = simulate(&arguments).await;
        assert!(told[0].contains(version) && told[0].contains("VMs and templates of"), "{told:?}");
        let client = Client::builder().no_proxy().build().unwrap();
        let vms = client.get(format!("{control}/vms")).send().await.unwrap().text().await.unwrap();
        let vms: Value = serde_json::from_str(&vms).unwrap();
        let running = vms.as_array().unwrap().iter().filter(|vm| vm["power_state"] == json!("Running"));
        assert!(running.count() > 0, "its running guests run: {vms}");
    }
}

#[tokio::test]
async fn a_database_that_is_none_is_refused_by_file_and_place() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("none.json");
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, "{").unwrap();
    let empty = folder.path().join("empty.json");
    std::fs::write(&empty, "{}").unwrap();
    for (file, words) in
        [(missing, "cannot read"), (broken, "is not JSON: EOF"), (empty, "release: is missing")]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
        let output = command.args(["simulate", "--load"]).arg(&file).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(words) && text.contains(file.to_str().unwrap()), "{text}");
    }
}

#[tokio::test]
async fn simulate_tells_where_it_is_and_its_guests_install_themselves() {
    let (mut child, told, control) = simulate(&["--vms", "2", "--https", "--guests", "install"]).await;
    assert!(told.iter().any(|line| line.starts_with("url https://127.0.0.1:")), "{told:?}");
    let pins: Vec<&String> = told.iter().filter(|line| line.starts_with("sha256 ")).collect();
    assert_eq!(pins.len(), 2, "{told:?}");
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = Client::builder().no_proxy().build().unwrap();
    for act in [json!({ "set-order": "n" }), json!({ "set-type": "hvm" }), json!("start")] {
        let body = json!({ "vm": "vm-001", "act": act }).to_string();
        let answer = client.post(format!("{control}/person")).body(body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    }
    let vm = || async {
        let text = client.get(format!("{control}/vms")).send().await.unwrap().text().await.unwrap();
        serde_json::from_str::<Value>(&text).unwrap()[0].take()
    };
    assert_eq!(vm().await["domain"]["order"], json!("n"));
    timeout(PATIENCE, async {
        let mut poll = tokio::time::interval(Duration::from_millis(50));
        while vm().await["power_state"] != json!("Halted") {
            poll.tick().await;
        }
    })
    .await
    .unwrap();
    for act in [json!({ "set-type": "pv" }), json!("start")] {
        let body = json!({ "vm": "vm-001", "act": act }).to_string();
        let answer = client.post(format!("{control}/person")).body(body).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{}", answer.text().await.unwrap());
    }
    assert_eq!(vm().await["domain"]["mode"], json!("pv"));
    child.start_kill().unwrap();
}
