//! The socket half of the simulated pool: XenAPI over HTTP/1.1 as xapi serves it, for every member of the pool.
//!
//! Members listen on one port at different loopback addresses, because HOST_IS_SLAVE names an address and no port.
//! The pool lives in [`SharedPool`]; a driver lets due things happen by the real clock and hands domains that began
//! to run to the body that plays guests. Invariant: nobody holds the pool's lock while waiting for anything.
//!
//! Where things are: `listen` sockets, `wire` HTTP and its bodies, `jsonrpc` one of the two, `member` one call with its fault, `tls` the
//! members' certificates, `control` the control API, `shared` the pool and the fault plan behind their locks.

mod control;
mod jsonrpc;
mod listen;
mod member;
mod shared;
mod tls;
mod wire;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    control::Desk,
    listen::{Door, accept, listen},
    member::Member,
    shared::{SharedFaults, drive},
};
pub use self::{
    control::{Control, ControlPlace},
    shared::SharedPool,
    tls::Certificate,
};
use super::{
    faults::{Fault, FaultPlan, Tally},
    pool::{DomainOrder, DomainStart, Pool},
};

/// How many starts may wait for the body that plays guests; more are dropped.
const STARTS_LIMIT: usize = 8192;

/// How the simulated pool is served.
#[derive(Debug)]
pub struct SimOptions {
    /// One listener each; as in the host records.
    pub addresses: Vec<Ipv4Addr>,
    /// The port; 0: any that is free.
    pub port: u16,
    /// Bind to this device, such as `lo`, so that nothing leaves it.
    pub device: Option<String>,
    /// HTTPS alone, each member with a certificate of its own, made now.
    pub tls: bool,
    /// How long a wrong password is answered late; xapi takes five seconds.
    pub login_delay: Duration,
    /// What goes wrong.
    pub faults: FaultPlan,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            addresses: vec![Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)],
            port: 0,
            device: None,
            tls: false,
            login_delay: Duration::from_secs(5),
            faults: FaultPlan::default(),
        }
    }
}

/// The simulated pool cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A listener cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// The TLS library does not take the certificate.
    #[error("cannot serve HTTPS")]
    Tls(#[source] rustls::Error),
    /// The control API's unix socket cannot be opened.
    #[error("cannot listen on {path}; is another simulator there, or a file left behind?")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No address was given.
    #[error("the simulated pool has no address to listen on")]
    NoAddress,
}
/// A served pool. Dropping it closes the listeners.
#[derive(Debug)]
pub struct SimServer {
    /// Where the first member listens, at first the coordinator.
    pub address: SocketAddr,
    /// Where every member listens.
    pub members: Vec<SocketAddr>,
    /// The members' certificates in the same order; none where it is served in clear text.
    pub certificates: Vec<Certificate>,
    /// The pool.
    pub pool: SharedPool,
    /// Domains that began to run; the body that plays guests takes them.
    pub starts: mpsc::Receiver<DomainStart>,
    /// What is asked of a body that runs domains outside; none where the model runs them.
    pub orders: mpsc::Receiver<DomainOrder>,
    faults: SharedFaults,
    stop: CancellationToken,
}

impl SimServer {
    /// Opens the listeners and starts the driver. Needs a tokio runtime.
    pub fn start(pool: Pool, options: SimOptions) -> Result<Self, SimError> {
        let listeners = listen(&options)?;
        let members: Vec<SocketAddr> = listeners.iter().map(|(address, _)| *address).collect();
        let address = *members.first().ok_or(SimError::NoAddress)?;
        let mut pool = pool;
        let mut certificates = Vec::new();
        let mut doors = Vec::new();
        for (address, listener) in listeners {
            let acceptor = if options.tls { Some(tls::acceptor(address.ip())?) } else { None };
            let (acceptor, certificate) = acceptor.unzip();
            certificates.extend(certificate);
            doors.push((address, Door { listener, acceptor }));
        }
        if let Some(certificate) = certificates.first() {
            pool.set_certificate(&certificate.pem);
        }
        let pool = SharedPool::new(pool);
        let faults = SharedFaults::new(options.faults);
        let stop = CancellationToken::new();
        for (address, door) in doors {
            let member = Member {
                address: address.ip(),
                pool: pool.clone(),
                faults: faults.clone(),
                login_delay: options.login_delay,
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(accept(door, member, stop.clone())));
        }
        let (to_guests, starts) = mpsc::channel(STARTS_LIMIT);
        let (to_domains, orders) = mpsc::channel(STARTS_LIMIT);
        tokio::spawn(stop.clone().run_until_cancelled_owned(drive(pool.clone(), to_guests, to_domains)));
        Ok(Self { address, members, certificates, pool, starts, orders, faults, stop })
    }

    /// Such as `http://127.0.0.1:40123`, or `https://…`.
    pub fn url(&self) -> String {
        let scheme = if self.certificates.is_empty() { "http" } else { "https" };
        format!("{scheme}://{}", self.address)
    }

    /// Opens the control API there; it ends with this server.
    pub async fn control(&self, place: &ControlPlace) -> Result<Control, SimError> {
        let desk = Desk { pool: self.pool.clone(), faults: self.faults.clone() };
        control::open(place, desk, self.stop.clone()).await
    }

    /// Plans another fault; calls count for it from now on.
    pub fn add_fault(&self, fault: Fault) {
        self.faults.with(|plan| plan.add(fault));
    }

    /// Lets the calls go on that are held under this name.
    pub fn release(&self, name: &str) {
        self.faults.release(name);
    }

    /// Planned and fired faults by name.
    pub fn tally(&self) -> Vec<Tally> {
        self.faults.with(|plan| plan.tally())
    }

    /// Waits until the fault of this name has fired that often.
    pub async fn fired(&self, name: &str, times: u32) {
        let reached =
            |plan: &FaultPlan| plan.tally().iter().any(|tally| tally.name == name && tally.fired >= times);
        self.faults.wait_for(reached).await;
    }
}

impl Drop for SimServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
