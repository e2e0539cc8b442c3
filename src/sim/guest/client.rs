//! The socket half of the guests: one shared DHCP client socket, and HTTP and TFTP from each guest's own lease.
//!
//! Every socket is bound to the configured device (the demo: `lo`), so nothing can leave it; this works without
//! privileges. Broadcasts go to 255.255.255.255, which a device-bound socket sends through its device whatever the
//! routes say. The shared socket hands each datagram to the guest whose MAC is in it.

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    pin::Pin,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, UdpSocket},
    sync::mpsc,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    BODY_KEPT, Event, FetchError, Fetched, Guest, Input, InstalledSystem, Output,
    tftp::{self, Transfer},
    url::{Scheme, Url},
};
use crate::{
    clock::{Clock, Timestamp},
    machine::MacAddr,
};

/// Where the guests' wire is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireConfig {
    /// Every socket is bound to it.
    pub device: String,
    /// The DHCP client port; 0: any.
    pub client_port: u16,
    /// The DHCP server port.
    pub server_port: u16,
    /// The TFTP port of URLs and leases that name none.
    pub tftp_port: u16,
}

/// The wire could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The DHCP client socket.
    #[error("cannot bind the DHCP client port {port} on {device}")]
    BindDhcp {
        /// The port.
        port: u16,
        /// The device.
        device: String,
        /// Why.
        source: io::Error,
    },
}

/// The shared side of the guests' sockets.
#[derive(Debug)]
pub struct Wire {
    config: WireConfig,
    dhcp: UdpSocket,
    guests: Mutex<HashMap<MacAddr, mpsc::Sender<Vec<u8>>>>,
}

/// How a guest's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It switched itself off.
    PowerOff,
    /// It rebooted itself.
    Reboot,
    /// It was stopped from outside.
    Stopped,
}

/// What a run tells while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// Whether it asks for something now that it does not ask for twice ([`Guest::asks_once`]).
    AsksOnce(bool),
    /// The disk's old content is gone.
    Erased,
    /// The disk has new content.
    Installed(InstalledSystem),
    /// Something worth a line.
    Event(Event),
}

impl Wire {
    /// Binds the DHCP client socket.
    pub fn bind(config: WireConfig) -> Result<Self, WireError> {
        let port = config.client_port;
        let failed = |source| WireError::BindDhcp { port, device: config.device.clone(), source };
        let dhcp = udp(&config.device, SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port)).map_err(failed)?;
        Ok(Self { config, dhcp, guests: Mutex::default() })
    }

    /// The DHCP client port that was bound.
    pub fn client_port(&self) -> io::Result<u16> {
        self.dhcp.local_addr().map(|address| address.port())
    }

    /// Hands datagrams to the guests until it is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => return,
                received = self.dhcp.recv(&mut buffer) => received,
            };
            let Ok(datagram) = received.map(|length| buffer.get(..length).unwrap_or_default()) else {
                continue;
            };
            let Some(mac) = datagram.get(28..34).and_then(|bytes| bytes.try_into().ok()).map(MacAddr::new)
            else {
                continue;
            };
            let guest = self.guests.lock().unwrap_or_else(PoisonError::into_inner).get(&mac).cloned();
            if let Some(guest) = guest {
                // A guest that does not keep up loses datagrams, as on any wire.
                let _ = guest.try_send(datagram.to_vec());
            }
        }
    }

    /// Runs a guest until it ends or is stopped. [`Wire::run`] must run beside it. One guest a MAC at a time.
    pub async fn run_guest(
        &self,
        mac: MacAddr,
        mut guest: Guest,
        clock: &dyn Clock,
        stop: CancellationToken,
        mut tell: impl FnMut(Told),
    ) -> Ended {
        let (sender, mut datagrams) = mpsc::channel(GUEST_QUEUE);
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).insert(mac, sender);
        let mut runs =
            Runs { lease: Ipv4Addr::UNSPECIFIED, timer: None, fetch: Box::pin(std::future::pending()) };
        let mut outputs = guest.handle(Input::PowerOn, clock.now());
        let mut asks_once = false;
        let ended = loop {
            if guest.asks_once() != asks_once {
                asks_once = !asks_once;
                tell(Told::AsksOnce(asks_once));
            }
            if let Some(ended) = self.carry_out(outputs, &mut runs, &mut tell).await {
                break ended;
            }
            let wait = runs.timer.map_or(FOR_EVER, |due| due.since(clock.now()));
            outputs = tokio::select! {
                () = stop.cancelled() => break Ended::Stopped,
                Some(datagram) = datagrams.recv() => guest.handle(Input::Dhcp(&datagram), clock.now()),
                fetched = &mut runs.fetch => {
                    runs.fetch = Box::pin(std::future::pending());
                    guest.handle(Input::Fetched(fetched), clock.now())
                }
                () = tokio::time::sleep(wait) => {
                    let due = runs.timer.take().unwrap_or_default();
                    guest.handle(Input::Timer, clock.now().max(due))
                }
            };
        };
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).remove(&mac);
        tell(Told::AsksOnce(false));
        ended
    }

    async fn carry_out<'w>(
        &'w self,
        outputs: Vec<Output>,
        runs: &mut Runs<'w>,
        tell: &mut impl FnMut(Told),
    ) -> Option<Ended> {
        for output in outputs {
            match output {
                Output::Broadcast(packet) => {
                    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, self.config.server_port);
                    if let Err(error) = self.dhcp.send_to(&packet, to).await {
                        tracing::debug!(%error, "a guest's broadcast was not sent");
                    }
                }
                Output::Bind(address) => runs.lease = address,
                Output::Get(url) => runs.fetch = Box::pin(self.get(runs.lease, url)),
                Output::Post { url, body } => runs.fetch = Box::pin(self.post(runs.lease, url, body)),
                Output::Timer(due) => runs.timer = Some(due),
                Output::Erased => tell(Told::Erased),
                Output::Installed(system) => tell(Told::Installed(system)),
                Output::Event(event) => tell(Told::Event(event)),
                Output::PowerOff => return Some(Ended::PowerOff),
                Output::Reboot => return Some(Ended::Reboot),
            }
        }
        None
    }

    async fn get(&self, lease: Ipv4Addr, text: String) -> Result<Fetched, FetchError> {
        let url = Url::parse(&text).ok_or(FetchError::BadUrl(text))?;
        match url.scheme {
            // The ROM of 2012 speaks HTTP/1.0 style: no chunks, and a length that must be there (pxe.md 31).
            Scheme::Http => {
                let head = format!(
                    "GET {} HTTP/1.0\r\nUser-Agent: iPXE/1.0.0+\r\nHost: {}\r\n\r\n",
                    url.path,
                    authority(&url)
                );
                self.http(lease, &url, head.into_bytes()).await
            }
            Scheme::Tftp => self.tftp(lease, &url).await,
        }
    }

    async fn post(&self, lease: Ipv4Addr, text: String, body: String) -> Result<Fetched, FetchError> {
        let url =
            Url::parse(&text).filter(|url| url.scheme == Scheme::Http).ok_or(FetchError::BadUrl(text))?;
        let request = format!(
            "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: Wget\r\nConnection: close\r\n\
             Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
            url.path,
            authority(&url),
            body.len()
        );
        self.http(lease, &url, request.into_bytes()).await
    }

    async fn http(&self, lease: Ipv4Addr, url: &Url, request: Vec<u8>) -> Result<Fetched, FetchError> {
        let to = SocketAddrV4::new(url.host, url.port.unwrap_or(HTTP_PORT));
        let connect = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind_device(Some(self.config.device.as_bytes()))?;
            socket.bind(SocketAddrV4::new(lease, 0).into())?;
            socket.connect(to.into()).await
        };
        let unreachable = |_| FetchError::Unreachable(to.to_string());
        let mut stream = within(connect).await?.map_err(unreachable)?;
        within(stream.write_all(&request)).await?.map_err(|_| FetchError::Cut)?;
        let mut reply = Reply::default();
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let length = within(stream.read(&mut buffer)).await?.map_err(|_| FetchError::Cut)?;
            if length == 0 || reply.take(buffer.get(..length).unwrap_or_default())? {
                return reply.finish();
            }
        }
    }

    async fn tftp(&self, lease: Ipv4Addr, url: &Url) -> Result<Fetched, FetchError> {
        let to = SocketAddrV4::new(url.host, url.port.unwrap_or(self.config.tftp_port));
        let unreachable = |_| FetchError::Unreachable(to.to_string());
        let socket = udp(&self.config.device, SocketAddrV4::new(lease, 0)).map_err(unreachable)?;
        let mut transfer = Transfer::new(url.path.trim_start_matches('/'));
        let mut peer = SocketAddr::from(to);
        let mut buffer = vec![0; MAX_DATAGRAM];
        socket.send_to(transfer.last_sent(), peer).await.map_err(unreachable)?;
        let mut tries = 0;
        while tries < TFTP_TRIES {
            let Ok(received) = timeout(TFTP_WAIT, socket.recv_from(&mut buffer)).await else {
                tries += 1;
                socket.send_to(transfer.last_sent(), peer).await.map_err(unreachable)?;
                continue;
            };
            let (length, from) = received.map_err(unreachable)?;
            let is_ours = from.ip() == peer.ip() && (transfer.is_fresh() || from == peer);
            if !is_ours {
                continue;
            }
            peer = from; // the server answers from a port of its own (RFC 1350 §4)
            match transfer.handle(buffer.get(..length).unwrap_or_default()) {
                tftp::Step::Wait => {}
                tftp::Step::Send => {
                    tries = 0;
                    socket.send_to(transfer.last_sent(), peer).await.map_err(unreachable)?;
                }
                tftp::Step::Done(fetched) => {
                    let _ = socket.send_to(transfer.last_sent(), peer).await; // the last ACK may be lost
                    return Ok(fetched);
                }
                tftp::Step::Failed(reason) => return Err(FetchError::BadReply(reason)),
            }
        }
        Err(FetchError::TimedOut)
    }
}

/// What one guest has under way.
struct Runs<'w> {
    lease: Ipv4Addr,
    timer: Option<Timestamp>,
    fetch: Pin<Box<dyn Future<Output = Result<Fetched, FetchError>> + Send + 'w>>,
}

/// An HTTP reply as it comes in.
#[derive(Debug, Default)]
struct Reply {
    head: Vec<u8>,
    status: Option<u16>,
    announced: Option<u64>,
    body: Vec<u8>,
    length: u64,
}

impl Reply {
    /// Takes the next bytes; true when the body is whole.
    fn take(&mut self, bytes: &[u8]) -> Result<bool, FetchError> {
        if self.status.is_some() {
            self.body(bytes);
        } else {
            self.head.extend(bytes);
            match self.head.windows(4).position(|four| four == b"\r\n\r\n") {
                Some(end) => {
                    let (head, rest) = self.head.split_at(end + 4);
                    let rest = rest.to_vec();
                    let head = String::from_utf8_lossy(head).into_owned();
                    self.parse(&head)?;
                    self.body(&rest);
                }
                None if self.head.len() > MAX_HEAD => {
                    return Err(FetchError::BadReply("endless header".to_owned()));
                }
                None => {}
            }
        }
        Ok(self.announced.is_some_and(|announced| self.length >= announced))
    }

    fn parse(&mut self, head: &str) -> Result<(), FetchError> {
        let bad = |what: &str| FetchError::BadReply(what.to_owned());
        let mut lines = head.lines();
        let status =
            lines.next().and_then(|line| line.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok());
        self.status = Some(status.ok_or_else(|| bad("no status line"))?);
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    self.announced = Some(value.trim().parse().map_err(|_| bad("Content-Length"))?)
                }
                "transfer-encoding" => return Err(bad("this client knows no transfer encodings")),
                _ => {}
            }
        }
        Ok(())
    }

    fn body(&mut self, bytes: &[u8]) {
        self.length += u64::try_from(bytes.len()).unwrap_or_default();
        let room = BODY_KEPT.saturating_sub(self.body.len());
        self.body.extend(bytes.iter().take(room));
    }

    /// The connection ended, or the body is whole.
    fn finish(self) -> Result<Fetched, FetchError> {
        let status = self.status.ok_or(FetchError::Cut)?;
        match self.announced {
            Some(announced) if announced != self.length => Err(FetchError::Cut),
            Some(_) => Ok(Fetched { status, body: self.body, length: self.length }),
            None if status == 204 => Ok(Fetched { status, body: vec![], length: 0 }),
            None => Err(FetchError::BadReply("no Content-Length".to_owned())),
        }
    }
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T, FetchError> {
    timeout(HTTP_WAIT, work).await.map_err(|_| FetchError::TimedOut)
}

fn authority(url: &Url) -> String {
    url.port.map_or_else(|| url.host.to_string(), |port| format!("{}:{port}", url.host))
}

fn udp(device: &str, address: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.bind_device(Some(device.as_bytes()))?;
    socket.set_broadcast(true)?;
    socket.set_nonblocking(true)?;
    // A thousand guests share the DHCP socket: the default buffer holds some hundred packets.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

const HTTP_PORT: u16 = 80;
const MAX_DATAGRAM: usize = 65_536;
const MAX_HEAD: usize = 16 * 1024;
const READ_SIZE: usize = 64 * 1024;
const RECEIVE_BUFFER: usize = 1 << 20;
/// Datagrams that wait for one guest.
const GUEST_QUEUE: usize = 16;
const HTTP_WAIT: Duration = Duration::from_secs(20);
const TFTP_WAIT: Duration = Duration::from_secs(1);
const TFTP_TRIES: u32 = 6;
const FOR_EVER: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_reply_counts() {
        for (bytes, expected) in [
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".as_slice(), Ok((200, 2))),
            (b"HTTP/1.0 404 Not Found\r\ncontent-length: 0\r\n\r\n", Ok((404, 0))),
            (b"HTTP/1.1 204 No Content\r\n\r\n", Ok((204, 0))),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", Err(FetchError::Cut)),
            (b"HTTP/1.1 200", Err(FetchError::Cut)),
            (b"HTTP/1.1 200 OK\r\n\r\nhi", Err(FetchError::BadReply("no Content-Length".to_owned()))),
            (
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                Err(FetchError::BadReply("this client knows no transfer encodings".to_owned())),
            ),
            (b"SSH-2.0-x\r\n\r\n", Err(FetchError::BadReply("no status line".to_owned()))),
        ] {
            for pieces in [bytes.len(), 1] {
                let mut reply = Reply::default();
                let whole: Result<(), FetchError> =
                    bytes.chunks(pieces.max(1)).try_for_each(|piece| reply.take(piece).map(drop));
                let came =
                    whole.and_then(|()| reply.finish()).map(|fetched| (fetched.status, fetched.length));
                assert_eq!(came, expected, "{}", String::from_utf8_lossy(bytes));
            }
        }
    }
}
