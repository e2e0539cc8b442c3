//! A bad network between client and server: each way loses, doubles and delays datagrams, as a seed says.
//!
//! Every port of the server that a client hears from has a port of the proxy of its own, so that a client still tells
//! transfers apart.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{net::UdpSocket, sync::mpsc, task::JoinSet};

/// What happens to how many of a hundred datagrams.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Chaos {
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    /// Delayed by up to 20 ms, so that later ones overtake.
    pub(crate) delayed: u64,
}

/// SplitMix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// Decides over datagrams.
#[derive(Debug, Clone)]
struct Fate(Arc<Mutex<Dice>>, Chaos);

impl Fate {
    /// After how long each copy arrives.
    fn copies(&self) -> Vec<Duration> {
        let mut dice = self.0.lock().unwrap();
        if dice.roll(100) < self.1.lost {
            return Vec::new();
        }
        let copies = 1 + u64::from(dice.roll(100) < self.1.doubled);
        let mut delay = || {
            if dice.roll(100) < self.1.delayed {
                Duration::from_millis(1 + dice.roll(20))
            } else {
                Duration::ZERO
            }
        };
        (0..copies).map(|_| delay()).collect()
    }

    async fn forward(&self, socket: &Arc<UdpSocket>, packet: &[u8], to: SocketAddr) {
        for delay in self.copies() {
            if delay.is_zero() {
                let _ = socket.send_to(packet, to).await; // a network tells nobody
            } else {
                let (socket, packet) = (Arc::clone(socket), packet.to_vec());
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    let _ = socket.send_to(&packet, to).await;
                });
            }
        }
    }
}

/// The proxy; it ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    /// Where clients ask.
    pub(crate) address: SocketAddr,
    _work: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn before(server: SocketAddr, seed: u64, chaos: Chaos) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let address = socket.local_addr().unwrap();
        let fate = Fate(Arc::new(Mutex::new(Dice(seed))), chaos);
        let mut work = JoinSet::new();
        work.spawn(async move {
            let mut clients: HashMap<SocketAddr, mpsc::UnboundedSender<Vec<u8>>> = HashMap::new();
            let mut lines = JoinSet::new();
            let mut packet = vec![0; 2048];
            loop {
                let Ok((length, client)) = socket.recv_from(&mut packet).await else { continue };
                let line = clients.entry(client).or_insert_with(|| {
                    let (line, requests) = mpsc::unbounded_channel();
                    lines.spawn(serve(client, server, requests, fate.clone()));
                    line
                });
                let _ = line.send(packet[..length].to_vec());
            }
        });
        Self { address, _work: work }
    }
}

/// One client: its requests to the server, and a port for each port that the server answers from.
async fn serve(
    client: SocketAddr,
    server: SocketAddr,
    mut requests: mpsc::UnboundedReceiver<Vec<u8>>,
    fate: Fate,
) {
    let upstream = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let mut ports: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut packet = vec![0; 70_000];
    loop {
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => fate.forward(&upstream, &request, server).await,
                None => return,
            },
            received = upstream.recv_from(&mut packet) => {
                let Ok((length, from)) = received else { continue };
                let port = match ports.entry(from) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let port = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
                        back.spawn(answers(Arc::clone(&port), Arc::clone(&upstream), from, fate.clone()));
                        new.insert(port)
                    }
                };
                fate.forward(port, &packet[..length], client).await;
            }
        }
    }
}

/// What the client sends to a transfer's port.
async fn answers(port: Arc<UdpSocket>, upstream: Arc<UdpSocket>, server: SocketAddr, fate: Fate) {
    let mut packet = vec![0; 2048];
    loop {
        let Ok((length, _)) = port.recv_from(&mut packet).await else { continue };
        fate.forward(&upstream, &packet[..length], server).await;
    }
}
