//! A TFTP client as the RFCs want it (1350, 2347, 2348, 2349, 7440): asks again when nothing comes, says where a hole
//! is, and turns second answers to one request down.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{net::UdpSocket, time::timeout};

/// What the server sent in its OACK.
pub(crate) type Granted = BTreeMap<String, String>;

/// Before the last packet is sent again.
const PAUSE: Duration = Duration::from_secs(1);
/// How often in a row.
const PAUSES: u32 = 25;

/// One transfer of a client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: UdpSocket,
    pub(crate) server: SocketAddr,
    /// What follows block 65,535.
    pub(crate) rollover: u16,
    /// The transfer's port, once the server has told.
    pub(crate) peer: Option<SocketAddr>,
    pub(crate) granted: Granted,
    last: Vec<u8>,
}

/// Requests in bytes.
pub(crate) fn request(name: &[u8], mode: &str, options: &[(&str, &str)]) -> Vec<u8> {
    let mut request = [&[0, 1], name, b"\0", mode.as_bytes(), b"\0"].concat();
    for (key, value) in options {
        request.extend([key.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    request
}

pub(crate) fn ack(block: u16) -> [u8; 4] {
    let [high, low] = block.to_be_bytes();
    [0, 4, high, low]
}

impl Client {
    pub(crate) async fn new(server: SocketAddr) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, server).await
    }

    pub(crate) async fn at(address: Ipv4Addr, server: SocketAddr) -> Self {
        let socket = UdpSocket::bind((address, 0)).await.unwrap();
        Self { socket, server, rollover: 0, peer: None, granted: Granted::new(), last: Vec::new() }
    }

    pub(crate) async fn ask(&mut self, name: &[u8], options: &[(&str, &str)]) {
        self.send(&request(name, "octet", options), self.server).await;
    }

    pub(crate) async fn send(&mut self, packet: &[u8], to: SocketAddr) {
        self.last = packet.to_vec();
        self.socket.send_to(packet, to).await.unwrap();
    }

    /// To the transfer's port.
    pub(crate) async fn reply(&mut self, packet: &[u8]) {
        let peer = self.peer.unwrap();
        self.send(packet, peer).await;
    }

    /// The next packet of the transfer, or nothing for so long.
    pub(crate) async fn next(&mut self, patience: Duration) -> Option<Vec<u8>> {
        let mut packet = vec![0; 70_000];
        loop {
            let (length, peer) = timeout(patience, self.socket.recv_from(&mut packet)).await.ok()?.unwrap();
            assert_eq!(peer.ip(), self.server.ip(), "the reply leaves from the address that was asked");
            if *self.peer.get_or_insert(peer) == peer {
                packet.truncate(length);
                return Some(packet);
            }
            self.socket.send_to(b"\0\x05\0\x05unknown transfer\0", peer).await.unwrap();
        }
    }

    fn option(&self, key: &str, otherwise: usize) -> usize {
        self.granted.get(key).map_or(otherwise, |value| value.parse().unwrap())
    }

    /// Reads a file to its end. `Err`: the ERROR packet's code and text, or "timeout".
    pub(crate) async fn get(&mut self, name: &[u8], options: &[(&str, &str)]) -> Result<Vec<u8>, String> {
        self.ask(name, options).await;
        let (mut content, mut expected, mut in_window, mut told) = (Vec::new(), 1_u16, 0, false);
        let mut pauses = 0;
        loop {
            let Some(packet) = self.next(PAUSE).await else {
                pauses += 1;
                if pauses > PAUSES {
                    return Err("timeout".to_owned());
                }
                let (to, last) = (self.peer.unwrap_or(self.server), self.last.clone());
                (in_window, told) = (0, false);
                self.send(&last, to).await;
                continue;
            };
            let number = u16::from_be_bytes([packet[2], packet[3]]);
            let previous = self.before(expected);
            match packet[1] {
                6 if content.is_empty() && expected == 1 => {
                    self.granted = granted(&packet);
                    self.reply(&ack(0)).await;
                    (in_window, told) = (0, false);
                }
                6 => {}
                3 if number == expected => {
                    pauses = 0;
                    told = false;
                    content.extend_from_slice(&packet[4..]);
                    in_window += 1;
                    expected = if expected == 65_535 { self.rollover } else { expected + 1 };
                    let last = packet.len() - 4 < self.option("blksize", 512);
                    if last || in_window >= self.option("windowsize", 1) {
                        in_window = 0;
                        self.reply(&ack(number)).await;
                    }
                    if last {
                        return Ok(content);
                    }
                }
                // The window's end came again, or a hole shows: say once how far we are.
                3 if self.option("windowsize", 1) == 1 && number == previous => {
                    self.reply(&ack(number)).await
                }
                3 if !told && self.option("windowsize", 1) > 1 => {
                    (told, in_window) = (true, 0);
                    self.reply(&ack(previous)).await;
                }
                3 => {}
                5 => {
                    return Err(format!(
                        "error {number}: {}",
                        String::from_utf8_lossy(&packet[4..packet.len() - 1])
                    ));
                }
                other => panic!("packet of kind {other}"),
            }
        }
    }

    fn before(&self, block: u16) -> u16 {
        if block == self.rollover && block < 2 && self.rollover_happened(block) {
            65_535
        } else {
            block.wrapping_sub(1)
        }
    }

    /// Block 1 is the first one or, where 1 follows 65,535, one of many: told by the last ACK.
    fn rollover_happened(&self, block: u16) -> bool {
        block == 0 || self.last == ack(65_535)
    }
}

/// The options in an OACK.
pub(crate) fn granted(packet: &[u8]) -> Granted {
    let text = String::from_utf8(packet[2..].to_vec()).unwrap();
    let words: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
    words.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect()
}

/// Reads a file with a client of its own.
pub(crate) async fn fetch(
    server: SocketAddr,
    name: &[u8],
    options: &[(&str, &str)],
) -> Result<(Vec<u8>, Granted), String> {
    let mut client = Client::new(server).await;
    let content = client.get(name, options).await?;
    Ok((content, client.granted))
}
