//! The lab's wire: a bridge with taps in a network namespace without a name.
//!
//! Invariant: a [`Network`] exists only on a thread that left the computer's own namespace, so nothing here can
//! reach the computer's interfaces. There is nothing to clean up: the namespace, its bridge and its taps go with
//! the last process in it. To look inside while it runs: `nsenter --net=/proc/PID/ns/net`.

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
};

use nix::sched::{CloneFlags, unshare};

/// The lab's bridge.
pub const BRIDGE: &str = "lab0";
/// The address of the lab's server, on the bridge.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The subnet mask of the bridge.
pub const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);
/// First and last address for guests.
pub const RANGE: (Ipv4Addr, Ipv4Addr) = (Ipv4Addr::new(10, 77, 0, 50), Ipv4Addr::new(10, 77, 0, 199));

/// Proof of being in a namespace of the lab's own, with the bridge up.
#[derive(Debug)]
pub struct Network {
    // Not to be made elsewhere.
    _private: (),
}

/// Why the wire could not be laid.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The kernel refused a namespace.
    #[error("cannot make a network namespace; the lab must run as root")]
    Namespace {
        /// Why.
        source: nix::Error,
    },
    /// A helper program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// `ip` refused.
    #[error("`ip {arguments}` failed: {complaint}")]
    Refused {
        /// Its arguments.
        arguments: String,
        /// What it said.
        complaint: String,
    },
}

/// Runs `body` on a thread of its own in a namespace of its own, with the bridge up. Everything that `body` starts
/// from there (processes, runtimes, their threads) is in that namespace too. Panics are passed on.
pub fn isolated<T: Send>(body: impl FnOnce(&Network) -> T + Send) -> Result<T, NetworkError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).map_err(|source| NetworkError::Namespace { source })?;
            let network = Network { _private: () };
            network.lay()?;
            Ok(body(&network))
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

impl Network {
    fn lay(&self) -> Result<(), NetworkError> {
        let prefix = NETMASK.to_bits().count_ones();
        for arguments in [
            "link set lo up".to_owned(),
            // A port of a bridge that learns or listens first would swallow the firmware's first DISCOVERs.
            format!("link add {BRIDGE} type bridge stp_state 0 forward_delay 0"),
            format!("addr add {SERVER}/{prefix} broadcast + dev {BRIDGE}"),
            format!("addr add fd77::1/64 dev {BRIDGE} nodad"),
            format!("link set {BRIDGE} up"),
        ] {
            self.ip(&arguments)?;
        }
        Ok(())
    }

    /// Plugs a new tap into the bridge. `name` has at most 15 bytes.
    pub fn tap(&self, name: &str) -> Result<(), NetworkError> {
        self.ip(&format!("tuntap add dev {name} mode tap"))?;
        self.ip(&format!("link set {name} master {BRIDGE} up"))
    }

    fn ip(&self, arguments: &str) -> Result<(), NetworkError> {
        let output = Command::new("ip")
            .args(arguments.split(' '))
            .stdin(Stdio::null())
            .output()
            .map_err(|source| NetworkError::Run { program: "ip", source })?;
        if output.status.success() {
            return Ok(());
        }
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(NetworkError::Refused { arguments: arguments.to_owned(), complaint })
    }

    /// Starts dnsmasq on the bridge, with these options besides; it serves no names.
    pub fn dnsmasq(&self, options: &[&str]) -> Result<Helper, NetworkError> {
        // --no-daemon: by dropping privileges it would lose the signal that ends it with the lab.
        let common = ["--no-daemon", "--conf-file=/dev/null", "--port=0"];
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "dnsmasq"])
            .args(common)
            .args(["--bind-interfaces", &format!("--interface={BRIDGE}"), "--log-facility=/dev/null"])
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(|child| Helper { child })
            .map_err(|source| NetworkError::Run { program: "dnsmasq", source })
    }

    /// Starts an IPv6 router advertiser (router lifetime 0): without one, iPXE of 2019 waits 13 s for it after its
    /// DHCP ack.
    pub fn advertise(&self) -> Result<Helper, NetworkError> {
        let every = format!("--ra-param={BRIDGE},5,0");
        self.dnsmasq(&["--enable-ra", "--dhcp-range=fd77::,ra-only", &every, "--leasefile-ro"])
    }

    /// Gives the bridge another address, and serves a folder there by HTTP, as a package mirror does.
    pub fn mirror(&self, address: Ipv4Addr, root: &Path, log: &Path) -> Result<Helper, NetworkError> {
        let prefix = NETMASK.to_bits().count_ones();
        self.ip(&format!("addr add {address}/{prefix} dev {BRIDGE}"))?;
        let failed = |source| NetworkError::Run { program: "python3", source };
        let log = std::fs::File::create(log).map_err(failed)?;
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "python3", "-m", "http.server", "80"])
            .args(["--bind", &address.to_string(), "--directory"])
            .arg(root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map(|child| Helper { child })
            .map_err(failed)
    }
}

/// A process of the lab's own; ended when dropped.
#[derive(Debug)]
pub struct Helper {
    child: Child,
}

impl Drop for Helper {
    fn drop(&mut self) {
        // Both fail only where the process has gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
