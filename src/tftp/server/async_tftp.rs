//! The engine of the crate `async-tftp`, for comparison and as a way back. A shell.

use std::{
    future::Future,
    io,
    net::{SocketAddr, SocketAddrV4, UdpSocket},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use async_tftp::{
    packet,
    server::{Handler, TftpServerBuilder},
};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    Engine, Library, Settings,
    content::{Content, PIECE},
};
use crate::tftp::{
    packet::ErrorCode,
    sessions::{Ended, Outcome},
    transfer::Finish,
};

/// Between two sendings of a block.
const RESEND: Duration = Duration::from_secs(1);
/// Sendings before a client counts as gone: a probe that was broken off is forgotten after six seconds.
const RESENDS: u32 = 5;

/// The engine of the crate `async-tftp`. Of its settings it knows the block size and the window.
#[derive(Debug, Clone)]
pub struct AsyncTftp(pub Settings);

impl Engine for AsyncTftp {
    fn serve(
        &self,
        socket: UdpSocket,
        library: Arc<dyn Library>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, io::Result<()>> {
        let Settings { block_size, window, .. } = self.0;
        Box::pin(async move {
            let built = TftpServerBuilder::with_handler(Adapter(library))
                .timeout(RESEND)
                .max_send_retries(RESENDS)
                .block_size_limit(block_size)
                .window_size_limit(window)
                .std_socket(socket);
            let ended = async { built?.build().await?.serve().await };
            tokio::select! {
                ended = ended => match ended {
                    Ok(()) => Err(io::Error::other("the engine ended by itself")),
                    Err(error) => Err(io::Error::other(error)),
                },
                () = stop.cancelled() => Ok(()),
            }
        })
    }
}

struct Adapter(Arc<dyn Library>);

impl Handler for Adapter {
    type Reader = Reader;
    type Writer = Vec<u8>; // never opened

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Self::Reader, Option<u64>), packet::Error> {
        let name = path.as_os_str().as_encoded_bytes();
        match self.0.open(client.ip(), name).await {
            Ok(content) => {
                let length = content.length();
                let peer = match client {
                    SocketAddr::V4(peer) => *peer,
                    SocketAddr::V6(_) => return Err(packet::Error::IllegalOperation), // we listen on IPv4
                };
                let (file, library) = (name.to_vec(), Arc::clone(&self.0));
                let began = Instant::now();
                let reader = Reader {
                    content,
                    offset: 0,
                    piece: Bytes::new(),
                    loading: None,
                    peer,
                    file,
                    library,
                    began,
                };
                Ok((reader, Some(length)))
            }
            Err(refusal) => {
                let denial = refusal.denial();
                Err(match denial.code {
                    ErrorCode::NotFound => packet::Error::FileNotFound,
                    ErrorCode::Undefined
                    | ErrorCode::Access
                    | ErrorCode::Illegal
                    | ErrorCode::UnknownTransfer => packet::Error::Msg(denial.text.to_owned()),
                })
            }
        }
    }

    async fn write_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
        _size: Option<u64>,
    ) -> Result<Self::Writer, packet::Error> {
        debug!(peer = %client, file = %path.display(), "TFTP write refused");
        Err(packet::Error::PermissionDenied)
    }
}

/// Reads a content piece by piece.
struct Reader {
    content: Content,
    offset: u64,
    /// What is left of the piece at `offset`.
    piece: Bytes,
    loading: Option<JoinHandle<io::Result<Bytes>>>,
    peer: SocketAddrV4,
    file: Vec<u8>,
    library: Arc<dyn Library>,
    began: Instant,
}

impl futures_io::AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.piece.is_empty() && self.offset < self.content.length() {
            let (content, index) = (self.content.clone(), self.offset / PIECE);
            let loading =
                self.loading.get_or_insert_with(|| tokio::task::spawn_blocking(move || content.load(index)));
            let piece = ready!(Pin::new(loading).poll(context));
            self.loading = None;
            let piece = piece.map_err(io::Error::other)??;
            let from = usize::try_from(self.offset % PIECE).unwrap_or_default();
            self.piece = piece.slice(from.min(piece.len())..);
        }
        let length = self.piece.len().min(buffer.len());
        let now = self.piece.split_to(length);
        if let Some(to) = buffer.get_mut(..length) {
            to.copy_from_slice(&now);
        }
        self.offset += u64::try_from(length).unwrap_or_default();
        self.content.reach(self.offset);
        Poll::Ready(Ok(length))
    }
}

impl Drop for Reader {
    /// The crate does not tell how a transfer ended: what was read whole counts as sent.
    fn drop(&mut self) {
        let whole = self.offset >= self.content.length();
        let finish = if whole { Finish::Unconfirmed } else { Finish::Lost };
        self.library.ended(Ended {
            peer: self.peer,
            file: std::mem::take(&mut self.file),
            bytes: self.offset,
            took: self.began.elapsed(),
            outcome: Outcome::Finished(finish),
        });
    }
}
