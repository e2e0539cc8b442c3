//! A XenAPI server of a few lines for the client's tests: it answers from a script and keeps what it was sent.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bootflip::xen::{Failure, Value, codec};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::{Semaphore, watch},
    task::AbortHandle,
};
use tokio_rustls::TlsAcceptor;

/// What the server does about one call.
pub(super) enum Reply {
    Value(Value),
    Failure(Failure),
    /// These bytes, then the connection ends.
    Raw(Vec<u8>),
    /// No answer at all: the connection ends.
    Lost,
    /// The head of an answer, then a byte every ten milliseconds, without end.
    Trickle,
    /// A void answer, once the semaphore lets it.
    Gated(Arc<Semaphore>),
}

/// One call as it came in, with the session's reference or the password among the parameters.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Call {
    pub(super) method: String,
    pub(super) params: Vec<Value>,
}

type Script = dyn Fn(&Call) -> Reply + Send + Sync;

pub(super) struct Server {
    pub(super) address: SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    script: Box<Script>,
    calls: Mutex<Vec<Call>>,
    connections: AtomicUsize,
    /// How many calls are being answered.
    under_way: watch::Sender<usize>,
}

impl Server {
    pub(super) async fn start(script: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::run(listener(Ipv4Addr::LOCALHOST, 0).await.unwrap(), None, script)
    }

    pub(super) fn run(
        listener: TcpListener,
        tls: Option<TlsAcceptor>,
        script: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            script: Box::new(script),
            calls: Mutex::default(),
            connections: AtomicUsize::new(0),
            under_way: watch::Sender::new(0),
        });
        let accepting = tokio::spawn(accept(listener, tls, Arc::clone(&shared))).abort_handle();
        Self { address, shared, accepting }
    }

    pub(super) fn calls(&self) -> Vec<Call> {
        self.shared.calls.lock().unwrap().clone()
    }

    /// The methods called, without the look-ups of pool and members that follow each login.
    pub(super) fn methods(&self) -> Vec<String> {
        let calls = self.calls().into_iter().map(|call| call.method);
        let looks = ["host.get_all_records", "pool.get_all_records"];
        calls.filter(|method| !looks.contains(&method.as_str())).collect()
    }

    pub(super) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    pub(super) fn under_way(&self) -> watch::Receiver<usize> {
        self.shared.under_way.subscribe()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

pub(super) async fn listener(host: Ipv4Addr, port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind((host, port)).await
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        shared.connections.fetch_add(1, Ordering::SeqCst);
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                None => serve(stream, &shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, &shared).await;
                    }
                }
            }
        });
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) {
    while let Some(body) = request(&mut stream).await {
        let (method, params) = codec::decode_call(&body).unwrap();
        let call = Call { method, params };
        shared.calls.lock().unwrap().push(call.clone());
        shared.under_way.send_modify(|count| *count += 1);
        let goes_on = answer(&mut stream, (shared.script)(&call)).await;
        shared.under_way.send_modify(|count| *count -= 1);
        if !goes_on {
            let _ = stream.shutdown().await;
            return;
        }
    }
}

/// Writes the answer; whether the connection goes on.
async fn answer(stream: &mut (impl AsyncWrite + Unpin), reply: Reply) -> bool {
    let body = match reply {
        Reply::Value(value) => codec::encode_success(&value),
        Reply::Failure(failure) => codec::encode_failure(&failure),
        Reply::Gated(gate) => {
            gate.acquire().await.unwrap().forget();
            codec::encode_success(&Value::void())
        }
        Reply::Raw(bytes) => {
            let _ = stream.write_all(&bytes).await;
            return false;
        }
        Reply::Lost => return false,
        Reply::Trickle => {
            let mut bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n".to_vec();
            while stream.write_all(&bytes).await.is_ok() {
                bytes = b" ".to_vec();
                tokio::time::sleep(Duration::from_millis(10)).await; // this is the fault itself
            }
            return false;
        }
    };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/xml\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all((head + &body).as_bytes()).await.is_ok()
}

/// One request's body; `None` when the connection ends.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (head, length) = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap().to_ascii_lowercase();
            assert!(head.starts_with("post / http/1.1") && !head.contains("transfer-encoding"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            break (end + 4, length.parse::<usize>().unwrap());
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    while bytes.len() < head + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some(bytes[head..].to_vec())
}
