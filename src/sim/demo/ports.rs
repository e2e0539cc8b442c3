//! Ports of device `lo` that are free just now. A shell.
//!
//! The server binds them a moment later, and again after each kill; meanwhile nothing may take them. So they lie below
//! the range from which the kernel gives ports to sockets that ask for any.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
};

use socket2::{Domain, Protocol, Socket, Type};

/// Ports for UDP, taken at every address, and for TCP, taken at 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free<const U: usize, const T: usize> {
    /// UDP.
    pub udp: [u16; U],
    /// TCP.
    pub tcp: [u16; T],
}

/// Finds ports that are free on `device`, all of them different.
pub fn free<const U: usize, const T: usize>(device: &str) -> io::Result<Free<U, T>> {
    let range = std::fs::read_to_string(EPHEMERAL).ok();
    let end = range.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(USUAL_END);
    let mut held = vec![];
    let mut found = Free { udp: [0; U], tcp: [0; T] };
    for port in &mut found.udp {
        *port = hold(device, Type::DGRAM, Protocol::UDP, Ipv4Addr::UNSPECIFIED, end, &mut held)?;
    }
    for port in &mut found.tcp {
        *port = hold(device, Type::STREAM, Protocol::TCP, Ipv4Addr::LOCALHOST, end, &mut held)?;
    }
    Ok(found)
}

/// Binds a port from [`LOWEST`] to below `end`, any port when there is none, and keeps its socket.
fn hold(
    device: &str,
    kind: Type,
    protocol: Protocol,
    address: Ipv4Addr,
    end: u16,
    held: &mut Vec<Socket>,
) -> io::Result<u16> {
    let bound = |port: u16| {
        let socket = Socket::new(Domain::IPV4, kind, Some(protocol))?;
        socket.bind_device(Some(device.as_bytes()))?;
        socket.bind(&SocketAddrV4::new(address, port).into())?;
        Ok::<_, io::Error>(socket)
    };
    let guesses = (0..TRIES).filter_map(|_| {
        let guess = u64::from(end.checked_sub(LOWEST).filter(|span| *span > 0)?);
        u16::try_from(u64::from(LOWEST) + uuid::Uuid::new_v4().as_u64_pair().1 % guess).ok()
    });
    let guessed = guesses.map(bound).find_map(Result::ok);
    let socket = guessed.map_or_else(|| bound(0), Ok)?;
    let port = socket.local_addr()?.as_socket_ipv4().map(|address| address.port());
    held.push(socket);
    port.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Where Linux says which ports it gives away (ip-sysctl).
const EPHEMERAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Where that range begins when nobody changed it.
const USUAL_END: u16 = 32_768;
/// Below it are ports of well-known services.
const LOWEST: u16 = 10_000;
const TRIES: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_different_and_can_be_bound() {
        let found: Free<3, 1> = free("lo").unwrap();
        let [a, b, c] = found.udp;
        assert!(a != b && b != c && a != c && found.udp.iter().chain(&found.tcp).all(|port| *port != 0));
        std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, a)).unwrap();
    }
}
