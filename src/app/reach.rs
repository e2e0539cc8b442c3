//! Looks whether a guest answers on a TCP port. A shell: connects, sends nothing, and closes.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::BoxFuture;
use tokio::{net::TcpStream, time::timeout};

use crate::provision::executor::Reach;

/// Over TCP.
#[derive(Debug)]
pub struct Tcp;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);

impl Reach for Tcp {
    fn answers(&self, at: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(async move { matches!(timeout(PATIENCE, TcpStream::connect(at)).await, Ok(Ok(_))) })
    }
}
