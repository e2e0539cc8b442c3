//! The wires: network namespaces without a name, which go with the last thread and process in them. Nothing here
//! can reach the computer's own interfaces.

use std::{io, process::Command, sync::mpsc, thread};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};

/// What an Ethernet frame carries; loopback has 64 KiB otherwise, which no network card has.
const MTU: &str = "1500";

/// Runs `body` on a thread of its own in a namespace with nothing but loopback.
pub(crate) fn alone<T: Send>(body: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter()?;
            // A machine with no other address than loopback's has none to tftpd-hpa (getaddrinfo, AI_ADDRCONFIG).
            ip("addr add 10.8.0.1/32 dev lo")?;
            Ok(body())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs two bodies in two namespaces with a wire between them: `server` at its end `wire0` with the first address,
/// `client` at its end `wire0` with the second one (both with their prefix, `10.9.0.1/16`). The client is told the
/// way to the server's thread by whatever channel the caller lays.
pub(crate) fn wired<S: Send, C: Send>(
    addresses: [&str; 2],
    server: impl FnOnce() -> S + Send,
    client: impl FnOnce() -> C + Send,
) -> io::Result<(S, C)> {
    let [ours, theirs] = addresses;
    let (tell, told) = mpsc::channel();
    let (ready, laid) = mpsc::channel();
    thread::scope(|scope| {
        let client = scope.spawn(move || {
            enter()?;
            tell.send(gettid().as_raw()).map_err(io::Error::other)?;
            laid.recv().map_err(io::Error::other)?;
            ip(&format!("addr add {theirs} broadcast + dev wire0"))?;
            ip("link set wire0 up")?;
            Ok(client())
        });
        let server = scope.spawn(move || {
            enter()?;
            let other = told.recv().map_err(io::Error::other)?;
            ip(&format!("link add wire0 type veth peer name wire0 netns {other}"))?;
            ip(&format!("addr add {ours} broadcast + dev wire0"))?;
            ip("link set wire0 up")?;
            ready.send(()).map_err(io::Error::other)?;
            Ok(server())
        });
        let server: io::Result<S> = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let client: io::Result<C> = client.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((server?, client?))
    })
}

fn enter() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    // As Debian has it: others pace what they send by what they guess of the network, which here is none.
    std::fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "cubic")?;
    ip(&format!("link set lo mtu {MTU} up"))
}

fn ip(arguments: &str) -> io::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output()?;
    if output.status.success() {
        return Ok(());
    }
    let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("ip {arguments}: {complaint}")))
}
