//! What a name stands for: rendered configurations, kernels and initrds by token, published files. A shell.
//!
//! Invariants: a configuration is rendered behind the boot gate and never read from a file; every file lies beneath
//! one of two folders; a file that the manifest in its folder names is what the manifest says, or is withdrawn.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use super::{
    Library, Refusal, Shared,
    content::{Content, Identity, OpenFile, Pieces},
};
use crate::{
    boot::{
        Answer, Ask,
        going::Going,
        render::PXELINUX_REFUSAL,
        root::{RelativePath, Root},
        sink::{Noted, Notice, Protocol, Seen, Sign, Transfer},
        vouch::{Unfit, Vouch},
    },
    machine::MacAddr,
    tftp::{
        Wanted,
        sessions::{Ended, Outcome},
        transfer::Finish,
    },
};

/// Files that are held open because they were asked for lately.
const OPEN_FILES: usize = 64;

/// The files, rendered and published.
#[derive(Debug)]
pub(super) struct Shelf {
    shared: Shared,
    published: Folder,
    files: Folder,
}

impl Shelf {
    pub(super) fn new(shared: Shared, published: Root, files: Root) -> Self {
        let pieces = Pieces::default();
        Self { shared, published: Folder::new(published, &pieces), files: Folder::new(files, &pieces) }
    }
}

impl Library for Shelf {
    fn open<'a>(&'a self, peer: IpAddr, name: &'a [u8]) -> BoxFuture<'a, Result<Content, Refusal>> {
        Box::pin(async move {
            let wanted = Wanted::parse(name);
            let opened = match wanted.clone() {
                None => Err(Refusal::NotFound),
                Some(Wanted::Configuration(name)) => match self.shared.gate.configured(&name, peer) {
                    Some(mac) => self.configuration(mac, peer),
                    None => Err(Refusal::NotFound),
                },
                Some(Wanted::File { token, path }) => self.file(&token, path, peer).await,
                Some(Wanted::Published(path)) => {
                    let mac = self.shared.gate.who(peer);
                    self.published.open(path.clone()).await.map(|file| {
                        if let Some(mac) = mac {
                            self.tell(mac, Sign::Loader, peer);
                        }
                        self.begin(file, mac, &path, peer)
                    })
                }
            };
            opened.inspect_err(|refusal| {
                // A PXELINUX asks for a dozen names that are not there: nothing that an operator acts on.
                let file = shown(wanted.as_ref(), name);
                debug!(%peer, %file, refusal = refusal.label(), "TFTP file refused");
                if let Some(mac) = self.shared.gate.who(peer) {
                    self.shared.sink.noted(Noted { mac, peer: Some(peer), what: Notice::Missing(file) });
                }
            })
        })
    }

    fn ended(&self, ended: Ended) {
        let Ended { peer, file, bytes, took, outcome } = ended;
        let file = shown(Wanted::parse(&file).as_ref(), &file);
        let mac = self.shared.gate.who(IpAddr::V4(*peer.ip()));
        let (seconds, label) = (took.as_secs_f64(), outcome.label());
        if mac.is_some() {
            self.shared.sink.transferred(Transfer {
                protocol: Protocol::Tftp,
                mac,
                job: None,
                peer: IpAddr::V4(*peer.ip()),
                file: file.clone(),
                bytes,
                took,
                outcome: label,
            });
        }
        let mac = mac.map(|mac| mac.to_string()).unwrap_or_default();
        match &outcome {
            Outcome::Finished(Finish::Complete | Finish::Unconfirmed) => {
                info!(mac, %peer, file, bytes, seconds, outcome = label, "TFTP transfer");
            }
            Outcome::Finished(Finish::Lost) | Outcome::ReadFailed => {
                warn!(mac, %peer, file, bytes, seconds, outcome = label, "TFTP transfer broke off");
            }
            Outcome::Aborted { code, text } if bytes > 0 => {
                info!(mac, %peer, file, bytes, seconds, outcome = label, code, text, "TFTP transfer broke off");
            }
            // A firmware that only wanted the size, a client that never came back.
            Outcome::Aborted { .. }
            | Outcome::Finished(Finish::Unanswered)
            | Outcome::Replaced
            | Outcome::Stopped => {
                debug!(mac, %peer, file, bytes, seconds, outcome = label, "TFTP transfer without content");
            }
        }
    }
}

/// A name for logs: without the token.
fn shown(wanted: Option<&Wanted>, name: &[u8]) -> String {
    match wanted {
        Some(Wanted::Published(path) | Wanted::File { path, .. }) => path.as_str().to_owned(),
        Some(Wanted::Configuration(_)) | None => name.escape_ascii().to_string(),
    }
}

impl Shelf {
    fn tell(&self, mac: MacAddr, sign: Sign, peer: IpAddr) {
        self.shared.gate.met(mac, peer);
        self.shared.sink.seen(Seen { mac, sign, peer: Some(peer) });
    }

    /// Tells of a file that begins to leave for a known machine.
    fn begin(&self, file: Arc<OpenFile>, mac: Option<MacAddr>, path: &RelativePath, peer: IpAddr) -> Content {
        let going = mac.map(|mac| {
            let (name, length) = (path.as_str().to_owned(), file.identity.length);
            let going = Going::new(Protocol::Tftp, (mac, peer), name, length, Instant::now().into_std());
            let going = Arc::new(going);
            self.shared.sink.going(&going);
            going
        });
        Content::File(file, going)
    }

    fn configuration(&self, mac: MacAddr, peer: IpAddr) -> Result<Content, Refusal> {
        let (text, sign) = match self.shared.gate.answer(Ask::Netboot { mac }) {
            Answer::Unknown => return Err(Refusal::NotFound),
            Answer::Refused(_) => (PXELINUX_REFUSAL.to_owned(), Sign::NetbootRefused),
            Answer::Boot(armed) => {
                let rendered = self.shared.templates.pxelinux_config(&armed, &self.shared.urls);
                let text = rendered.map_err(|problem| {
                    error!(job = %armed.job, vm = %armed.vm_name, %problem, "what this machine needs cannot be rendered");
                    Refusal::Failed
                })?;
                (text, Sign::Script)
            }
        };
        self.tell(mac, sign, peer);
        Ok(Content::Text(Bytes::from(text)))
    }

    async fn file(&self, token: &str, path: RelativePath, peer: IpAddr) -> Result<Content, Refusal> {
        let Answer::Boot(armed) = self.shared.gate.answer(Ask::File { token }) else {
            return Err(Refusal::NotFound);
        };
        let sign = armed.file_sign(&path).ok_or(Refusal::NotFound)?;
        let file = self.files.open(path.clone()).await?;
        self.tell(armed.mac, sign, peer);
        Ok(self.begin(file, Some(armed.mac), &path, peer))
    }
}

/// A published folder, with the files of it that are open.
#[derive(Debug, Clone)]
struct Folder {
    vouch: Vouch,
    pieces: Pieces,
    open: Arc<Mutex<OpenFiles>>,
}

#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<RelativePath, Held>,
    looks: u64,
}

#[derive(Debug, Clone)]
struct Held {
    file: Arc<OpenFile>,
    used: u64,
}

impl Folder {
    fn new(root: Root, pieces: &Pieces) -> Self {
        Self { vouch: Vouch::new(root), pieces: pieces.clone(), open: Arc::default() }
    }

    async fn open(&self, path: RelativePath) -> Result<Arc<OpenFile>, Refusal> {
        let folder = self.clone();
        let opened = tokio::task::spawn_blocking(move || folder.open_now(&path)).await;
        opened.unwrap_or(Err(Refusal::Failed))
    }

    /// Opens a file, or finds that it is open already and still the same; none that the manifest disowns.
    fn open_now(&self, path: &RelativePath) -> Result<Arc<OpenFile>, Refusal> {
        let published = self.vouch.open(path).map_err(|unfit| self.refused(path, &unfit))?;
        let identity = Identity::of(&published.file.metadata().map_err(|error| failed(path, &error))?);
        Ok(self.lock().hold(path, identity, || Arc::new(self.pieces.open(published.file, identity))))
    }

    fn refused(&self, path: &RelativePath, unfit: &Unfit) -> Refusal {
        self.lock().files.remove(path);
        match unfit {
            Unfit::Absent(error) => {
                debug!(file = path.as_str(), %error, "TFTP file not opened");
                Refusal::NotFound
            }
            Unfit::Withdrawn => {
                let folder = self.vouch.root().path().display();
                error!(file = path.as_str(), %folder, "{unfit}");
                Refusal::Withdrawn
            }
            Unfit::Unreadable(_) | Unfit::Manifest(_) => failed(path, unfit),
        }
    }

    fn lock(&self) -> MutexGuard<'_, OpenFiles> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failed(path: &RelativePath, problem: &dyn std::error::Error) -> Refusal {
    error!(file = path.as_str(), %problem, "a published file cannot be used");
    Refusal::Failed
}

impl OpenFiles {
    /// The open file, where it is the same; otherwise what `open` gives.
    fn hold(
        &mut self,
        path: &RelativePath,
        identity: Identity,
        open: impl FnOnce() -> Arc<OpenFile>,
    ) -> Arc<OpenFile> {
        self.looks += 1;
        if let Some(held) = self.files.get_mut(path).filter(|held| held.file.identity == identity) {
            held.used = self.looks;
            return Arc::clone(&held.file);
        }
        let file = open();
        self.files.insert(path.clone(), Held { file: Arc::clone(&file), used: self.looks });
        if self.files.len() > OPEN_FILES
            && let Some(oldest) =
                self.files.iter().min_by_key(|(_, held)| held.used).map(|(path, _)| path.clone())
        {
            self.files.remove(&oldest);
        }
        file
    }
}
