//! Fetches an image from its mirror: checksums first, then each file, going on where an earlier download broke off.
//! A shell.
//!
//! Invariant: a download is kept under the checksum that it is to have, and counts once it has it.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt;
use reqwest::{Client, StatusCode, header};

use super::{
    ImageError, Images, PARTS, Pins, Published,
    catalogue::{Image, Source, Sums},
    same, sum_of,
    unpack::Container,
    unpacked,
};
use crate::app::publish::{Stage, Staged, Written, failed};

/// Until a mirror takes the connection, and between two pieces of what it sends.
const PATIENCE: Duration = Duration::from_secs(30);
/// The largest document of checksums, in bytes.
const SUMS_LIMIT: usize = 4 << 20;
/// How often a download that broke off is gone on with.
const TRIES: u32 = 5;

/// Who watches a download.
pub trait Watch: Send + Sync {
    /// So many bytes of a file are here, of so many where the mirror says.
    fn progress(&self, file: &str, here: u64, whole: Option<u64>);
}

/// What is to be fetched.
#[derive(Debug)]
pub struct Fetch<'a> {
    /// The image.
    pub image: &'a Image,
    /// Its folder below `http.root`.
    pub folder: &'a str,
    /// The URL of the mirror, where it is not the image's own.
    pub mirror: Option<&'a str>,
    /// What a person vouches for.
    pub pins: &'a Pins,
}

/// A client for mirrors.
#[derive(Debug, Clone)]
pub struct Download(Client);

/// One file on the mirror.
struct Wanted {
    file: String,
    path: String,
    sha256: String,
    said: String,
}

impl Download {
    /// With the system's certificates and its proxy variables.
    ///
    /// # Errors
    /// TLS cannot be had.
    pub fn new() -> Result<Self, ImageError> {
        // An error: another one is installed already, which will do.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = Client::builder().connect_timeout(PATIENCE).read_timeout(PATIENCE);
        let client = client.user_agent(concat!("bootflip/", env!("CARGO_PKG_VERSION"))).build();
        client.map(Self).map_err(|error| ImageError::Fetch { url: "TLS".to_owned(), problem: words(&error) })
    }

    /// Fetches an image, and puts it into the folder once all of it is right.
    ///
    /// # Errors
    /// What failed; downloads that are not whole are gone on with the next time.
    pub async fn fetch(
        &self,
        images: &Images,
        what: &Fetch<'_>,
        watch: &dyn Watch,
    ) -> Result<Vec<Published>, ImageError> {
        what.pins.belong_to(what.image)?;
        let mirror = what.mirror.unwrap_or(&what.image.mirror);
        let mirror = format!("{}/", mirror.trim_end_matches('/'));
        let wanted = self.wanted(what, &mirror).await?;
        let manifest = Written::read(images.root())?;
        let stage = Stage::beneath(images.root())?;
        let (mut staged, mut unchanged) = (Vec::new(), Vec::new());
        for Wanted { file, path, sha256, said } in wanted {
            let name = format!("{}/{file}", what.folder);
            if manifest.standing(images.root(), &name)?.sha256.as_ref() == Some(&sha256) {
                unchanged.push((file, name, sha256));
                continue;
            }
            let part = part(images.root(), &sha256)?;
            self.download(&format!("{mirror}{path}"), &file, &part, watch).await?;
            if let Err(error) = same(&file, &sum_of(&part)?, &sha256, &said) {
                fs::remove_file(&part).map_err(failed("remove", &part))?;
                return Err(error);
            }
            staged.push(Staged { name, path: part, sha256 });
        }
        staged.extend(inside(images, what, &stage, &staged, &unchanged)?);
        let mut published = images.publish(&stage, &staged)?;
        published.extend(unchanged.into_iter().map(|(_, name, sha256)| Published {
            name,
            sha256,
            new: false,
        }));
        published.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(published)
    }

    /// The files that are on the mirror themselves, with the checksums that they must have.
    async fn wanted(&self, what: &Fetch<'_>, mirror: &str) -> Result<Vec<Wanted>, ImageError> {
        let document = format!("{mirror}{}", what.image.sums);
        let sums = match self.text(&document).await {
            Ok(text) => Sums::parse(&what.image.sums, &text),
            // Pins alone will do for files whose names are known.
            Err(_) if what.pins.files.len() == what.image.files.len() => Sums::default(),
            Err(error) => return Err(error),
        };
        let mut wanted = Vec::new();
        for file in what.image.files.keys() {
            let paths = || {
                what.image.sources(file).filter_map(|source| match source {
                    Source::Path(path) => Some(path),
                    Source::InIso(_) => None,
                })
            };
            let Some(usual) = paths().next() else { continue };
            let on_mirror = paths().find_map(|path| sums.find(path));
            let pin = what.pins.files.get(file);
            let (path, sha256, said) = match (on_mirror, pin) {
                (Some((path, sum)), None) => (path, sum, document.clone()),
                (Some((path, _)), Some(pin)) => (path, pin.as_str(), "--sha256".to_owned()),
                (None, Some(pin)) if !usual.contains('*') => (usual, pin.as_str(), "--sha256".to_owned()),
                (None, Some(_) | None) => {
                    return Err(ImageError::NoSum { file: file.clone(), sums: document });
                }
            };
            let (path, sha256) = (path.to_owned(), sha256.to_owned());
            wanted.push(Wanted { file: file.clone(), path, sha256, said });
        }
        Ok(wanted)
    }

    /// A small document.
    async fn text(&self, url: &str) -> Result<String, ImageError> {
        let fail = |problem: String| ImageError::Fetch { url: url.to_owned(), problem };
        let response = self.0.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut pieces = response.map_err(|error| fail(words(&error)))?.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.next().await {
            bytes.extend(piece.map_err(|error| fail(words(&error)))?);
            if bytes.len() > SUMS_LIMIT {
                return Err(fail("more than 4 MiB; that is no document of checksums".to_owned()));
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Downloads into a part, from where that ends on.
    async fn download(
        &self,
        url: &str,
        file: &str,
        part: &Path,
        watch: &dyn Watch,
    ) -> Result<(), ImageError> {
        let mut tries = 1;
        loop {
            let here = fs::metadata(part).map_or(0, |about| about.len());
            match self.go_on(url, file, part, watch).await {
                Ok(()) => return Ok(()),
                Err(Stop::Disk(error)) => return Err(failed("write", part)(error).into()),
                Err(Stop::Refused(problem)) => {
                    return Err(ImageError::Fetch { url: url.to_owned(), problem });
                }
                Err(Stop::Broken(problem)) => {
                    let more = fs::metadata(part).is_ok_and(|about| about.len() > here);
                    tries = if more { 1 } else { tries + 1 };
                    if tries > TRIES {
                        let problem =
                            format!("{problem}; what came is kept, and the next fetch goes on from there");
                        return Err(ImageError::Fetch { url: url.to_owned(), problem });
                    }
                    tokio::time::sleep(Duration::from_millis(250 << tries)).await;
                }
            }
        }
    }

    async fn go_on(&self, url: &str, file: &str, part: &Path, watch: &dyn Watch) -> Result<(), Stop> {
        let mut here = fs::metadata(part).map_or(0, |about| about.len());
        let mut request = self.0.get(url);
        if here > 0 {
            request = request.header(header::RANGE, format!("bytes={here}-"));
        }
        let response = request.send().await.map_err(|error| Stop::Broken(words(&error)))?;
        let mut out = OpenOptions::new().create(true).append(true).open(part).map_err(Stop::Disk)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT if starts_at(&response, here) => {}
            // All of it is here, or more than there is: the checksum tells.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(()),
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                out.set_len(0).map_err(Stop::Disk)?;
                if response.status() == StatusCode::PARTIAL_CONTENT {
                    return Err(Stop::Broken("the mirror sent another part than was asked for".to_owned()));
                }
                here = 0;
            }
            status if status.is_server_error() => return Err(Stop::Broken(status.to_string())),
            status => return Err(Stop::Refused(status.to_string())),
        }
        let whole = response.content_length().map(|rest| here + rest);
        let mut pieces = response.bytes_stream();
        watch.progress(file, here, whole);
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(|error| Stop::Broken(words(&error)))?;
            out.write_all(&piece).map_err(Stop::Disk)?;
            here += u64::try_from(piece.len()).unwrap_or_default();
            watch.progress(file, here, whole);
        }
        if whole.is_some_and(|whole| here < whole) {
            return Err(Stop::Broken("the connection ended early".to_owned()));
        }
        out.sync_all().map_err(Stop::Disk)
    }
}

/// Why a download stopped.
enum Stop {
    /// To be tried again.
    Broken(String),
    /// For good.
    Refused(String),
    Disk(io::Error),
}

/// Whether a part of a file begins where ours ends.
fn starts_at(response: &reqwest::Response, here: u64) -> bool {
    let range = response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    range
        .and_then(|range| range.strip_prefix("bytes "))
        .is_some_and(|range| range.starts_with(&format!("{here}-")))
}

/// Where a download lies until it is whole: known by what it is to be, so that no other one goes on from it.
fn part(root: &Path, sha256: &str) -> Result<PathBuf, ImageError> {
    let parts = root.join(PARTS);
    fs::create_dir_all(&parts).map_err(failed("make", &parts))?;
    Ok(parts.join(sha256))
}

/// Takes what is in the image's ISO out of it, whether that came just now or was there.
fn inside(
    images: &Images,
    what: &Fetch<'_>,
    stage: &Stage,
    staged: &[Staged],
    unchanged: &[(String, String, String)],
) -> Result<Vec<Staged>, ImageError> {
    let Some((iso, _)) = what.image.iso() else { return Ok(Vec::new()) };
    let name = format!("{}/{iso}", what.folder);
    let fresh = staged.iter().find(|staged| staged.name == name).map(|staged| staged.path.clone());
    let there = unchanged.iter().any(|(file, ..)| file == iso).then(|| images.root().join(&name));
    let Some(path) = fresh.or(there) else { return Ok(Vec::new()) };
    let mut inside = what.image.clone();
    inside.files.retain(|file, _| what.image.sources(file).all(|source| matches!(source, Source::InIso(_))));
    unpacked(&inside, what.folder, &Container::at(&path)?, what.pins, stage)
}

/// An error with what is behind it, without the URL that is told beside it.
fn words(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut next: Option<&dyn std::error::Error> = std::error::Error::source(error);
    if let Some(status) = error.status() {
        return status.to_string();
    }
    while let Some(error) = next {
        text = error.to_string();
        next = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}
