//! What images there are: which files each has, and where these are. Pure; `config/images.toml` is the list.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

/// The installers' files that are known by name.
const CATALOGUE: &str = include_str!("../../../config/images.toml");
/// Marks a file inside the ISO that the image has.
const INSIDE: &str = "iso:";
/// The section of a `.treeinfo` with checksums.
const CHECKSUMS: &str = "[checksums]";

/// One image: boot files of an installer.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// In a few words.
    pub about: String,
    /// The shipped profile that installs from it; its folder below `http.root` too.
    pub profile: String,
    /// Base of its files' URLs, with a slash at the end.
    pub mirror: String,
    /// The document of checksums, below the mirror.
    pub sums: String,
    /// Debian's package that has it.
    #[serde(default)]
    pub package: Option<String>,
    /// Its files by name, each with where it may be, the likeliest first.
    pub files: BTreeMap<String, Vec<String>>,
}

/// Where an image's file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'a> {
    /// A path below the mirror, or the end of one in an archive; `*` stands for any characters but `/`.
    Path(&'a str),
    /// A path in the image's ISO.
    InIso(&'a str),
}

impl Image {
    /// Where a file may be, the likeliest first; empty: it is no file of this image.
    pub fn sources(&self, file: &str) -> impl Iterator<Item = Source<'_>> {
        let all = self.files.get(file).into_iter().flatten();
        all.map(|text| text.strip_prefix(INSIDE).map_or(Source::Path(text), Source::InIso))
    }

    /// The file that is an ISO, with the pattern of its name on the mirror.
    pub fn iso(&self) -> Option<(&str, &str)> {
        let pattern = |sources: &Vec<String>| sources.iter().any(|source| is_iso(source));
        let (name, sources) = self.files.iter().find(|(_, sources)| pattern(sources))?;
        Some((name.as_str(), sources.iter().find(|source| is_iso(source))?.as_str()))
    }
}

fn is_iso(source: &str) -> bool {
    let (end, iso) = (source.len().saturating_sub(4), ".iso");
    !source.starts_with(INSIDE) && source.get(end..).is_some_and(|end| end.eq_ignore_ascii_case(iso))
}

static IMAGES: LazyLock<BTreeMap<String, Image>> =
    LazyLock::new(|| toml::from_str(CATALOGUE).expect("a test has read it"));

/// All images, by name.
pub fn images() -> &'static BTreeMap<String, Image> {
    &IMAGES
}

/// Checksums of a mirror: SHA-256 in lower-case hexadecimal, by path below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sums(BTreeMap<String, String>);

impl Sums {
    /// Reads a document of checksums: a `.treeinfo` by its name, otherwise as `sha256sum` writes it. Lines that are none
    /// do not count.
    pub fn parse(name: &str, text: &str) -> Self {
        let pairs: Vec<(&str, &str)> = if name.ends_with(".treeinfo") {
            let section = text.lines().skip_while(|line| line.trim() != CHECKSUMS).skip(1);
            let section = section.take_while(|line| !line.trim_start().starts_with('['));
            section.filter_map(treeinfo).collect()
        } else {
            text.lines().filter_map(sha256sum).collect()
        };
        let good = pairs.into_iter().filter(|(_, sum)| is_sha256(sum));
        Self(good.map(|(name, sum)| (name.to_owned(), sum.to_ascii_lowercase())).collect())
    }

    /// The file that a source names, with its sum: the last in order of names where several fit (the newest point release).
    pub fn find(&self, pattern: &str) -> Option<(&str, &str)> {
        let fits = |(name, _): &(&String, &String)| matches(pattern, name);
        self.0.iter().rev().find(fits).map(|(name, sum)| (name.as_str(), sum.as_str()))
    }
}

/// `images/pxeboot/vmlinuz = sha256:0123…`.
fn treeinfo(line: &str) -> Option<(&str, &str)> {
    let (name, sum) = line.split_once('=')?;
    Some((name.trim(), sum.trim().strip_prefix("sha256:")?))
}

/// `0123…  ./netboot/linux`, or with `*` before the name.
fn sha256sum(line: &str) -> Option<(&str, &str)> {
    let (sum, name) = line.split_once(' ')?;
    let name = name.strip_prefix([' ', '*'])?;
    Some((name.strip_prefix("./").unwrap_or(name), sum))
}

/// Whether this is a SHA-256 in hexadecimal.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a name fits a pattern, in which `*` stands for any characters but `/`.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((before, after)) => name.strip_prefix(before).is_some_and(|rest| {
            let end = rest.find('/').unwrap_or(rest.len());
            let ends = (0..=end).filter(|at| rest.is_char_boundary(*at));
            ends.into_iter().any(|at| rest.get(at..).is_some_and(|rest| matches(after, rest)))
        }),
    }
}

/// Which of these paths, in an archive or folder, a file of an image is: of the first source that fits any, the shortest.
pub fn choose<'a>(sources: impl Iterator<Item = Source<'a>>, paths: &[String]) -> Option<usize> {
    let whole = |path: &str| path.trim_start_matches("./").to_owned();
    for source in sources {
        let Source::Path(pattern) = source else { continue };
        let fits = |path: &str| {
            let path = whole(path);
            let starts = std::iter::once(0).chain(path.match_indices('/').map(|(at, _)| at + 1));
            starts.into_iter().any(|at| path.get(at..).is_some_and(|end| matches(pattern, end)))
        };
        let found = paths.iter().enumerate().filter(|(_, path)| fits(path));
        if let Some((at, _)) = found.min_by_key(|(_, path)| (path.len(), (*path).clone())) {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "0A0b0c0d0e0f00000000000000000000000000000000000000000000000000ff";

    #[test]
    fn every_image_has_what_its_profile_boots() {
        for (name, image) in images() {
            assert!(image.mirror.ends_with('/') && image.mirror.starts_with("http"), "{name}");
            assert!(image.files.len() >= 2, "{name}: a kernel and an initrd at least");
            for (file, sources) in &image.files {
                assert!(!sources.is_empty() && !file.contains('/'), "{name}: {file}");
                let inside = image.sources(file).any(|source| matches!(source, Source::InIso(_)));
                assert!(!inside || image.iso().is_some(), "{name}: {file} is in no ISO");
            }
        }
    }

    #[test]
    fn sums_are_read_as_each_distribution_writes_them() {
        let debian =
            format!("{SUM}  ./netboot/debian-installer/amd64/linux\nnonsense\n{SUM} *other\n00  short\n");
        let sums = Sums::parse("SHA256SUMS", &debian);
        let found = sums.find("netboot/debian-installer/amd64/linux").unwrap();
        assert_eq!(found.1, SUM.to_ascii_lowercase());
        assert!(sums.find("other").is_some() && sums.find("short").is_none());
        let alma = format!(
            "[checksums]\nimages/pxeboot/vmlinuz = sha256:{SUM}\na = md5:00\n[general]\nb = sha256:{SUM}\n"
        );
        let sums = Sums::parse(".treeinfo", &alma);
        assert!(sums.find("images/pxeboot/vmlinuz").is_some());
        assert!(sums.find("a").is_none() && sums.find("b").is_none());
    }

    #[test]
    fn of_several_point_releases_the_newest_is_taken() {
        let text =
            ["22.04.4", "22.04.5", "24.04.1"].map(|v| format!("{SUM} *ubuntu-{v}-live-server-amd64.iso\n"));
        let sums = Sums::parse("SHA256SUMS", &text.concat());
        let found = sums.find("ubuntu-22.04*-live-server-amd64.iso").unwrap();
        assert_eq!(found.0, "ubuntu-22.04.5-live-server-amd64.iso");
        assert!(!matches("a*c", "ab/c") && matches("a*c", "abc") && matches("*", "x") && !matches("a", "ab"));
    }

    #[test]
    fn in_an_archive_the_likeliest_place_counts_and_names_are_whole() {
        let image = &images()["debian-12"];
        let paths =
            ["./a/gtk/debian-installer/amd64/linux", "./a/text/debian-installer/amd64/linux", "./xlinux"];
        let paths = paths.map(str::to_owned);
        assert_eq!(choose(image.sources("linux"), &paths), Some(1));
        assert_eq!(choose(image.sources("linux"), &paths[..1]), Some(0));
        assert_eq!(choose(image.sources("linux"), &paths[2..]), None);
        assert_eq!(choose(image.sources("nosuch"), &paths), None);
    }
}
