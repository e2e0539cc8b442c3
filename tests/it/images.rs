//! `bootflip image`, as an operator uses it: a package, a tar, an ISO, a mirror that breaks off, and bytes that differ.

use std::{
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Output},
    sync::{Arc, Mutex},
};

use sha2::{Digest, Sha256};

use crate::common::{
    programs::missing,
    site::{Plan, Site, vm},
};

fn image(arguments: &[&str], root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
    // A machine's own proxy must not come between a test and its mirror.
    command.env("no_proxy", "127.0.0.1").env("NO_PROXY", "127.0.0.1");
    command.arg("image").args(arguments).arg("--root").arg(root).output().unwrap()
}

#[track_caller]
fn ended(output: &Output, code: i32) -> String {
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// What a folder holds, without stages; a name a line.
fn names(root: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                names.push(path.strip_prefix(root).unwrap().display().to_string());
            }
        }
    }
    names.sort();
    names
}

#[test]
fn a_debian_package_is_taken_apart_and_one_flipped_byte_is_told() {
    if missing("dpkg-deb") {
        return;
    }
    let (work, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (tree, package) = (work.path().join("tree"), work.path().join("netboot.deb"));
    for kind in ["gtk", "text"] {
        let place =
            tree.join(format!("usr/lib/debian-installer/images/12/amd64/{kind}/debian-installer/amd64"));
        write(&place.join("linux"), b"kernel");
        write(&place.join("initrd.gz"), kind.as_bytes());
    }
    let control = "Package: netboot\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example.org>\nDescription: x\n";
    write(&tree.join("DEBIAN/control"), control.as_bytes());
    let built = Command::new("dpkg-deb").arg("--build").arg(&tree).arg(&package).output().unwrap();
    assert!(built.status.success(), "{built:?}");
    let from = package.to_str().unwrap();

    let added = ended(&image(&["add", "debian-12", "--from", from], root.path()), 0);
    assert!(
        added.contains(&format!("installed  {}/debian/initrd.gz  {}", root.path().display(), sum(b"text"))),
        "{added}"
    );
    assert_eq!(names(root.path()), ["SHA256SUMS", "debian/initrd.gz", "debian/linux"]);
    ended(&image(&["verify"], root.path()), 0);
    let again = ended(&image(&["add", "debian-12", "--from", from], root.path()), 0);
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");
    let listed = ended(&image(&["list"], root.path()), 0);
    assert!(
        listed.lines().any(|line| line.starts_with("debian-12 ") && line.contains("debian/")),
        "{listed}"
    );

    std::fs::write(root.path().join("debian/linux"), b"kernek").unwrap();
    let told = ended(&image(&["verify", "debian"], root.path()), 1);
    assert!(told.contains("debian/linux      differs") && told.contains("given out to nobody"), "{told}");
    assert!(ended(&image(&["list"], root.path()), 0).contains("debian/linux differs"));
    // Another machine's folder, a pin that does not fit: nothing is taken.
    let pin = format!("linux={}", sum(b"another"));
    let refused = ended(&image(&["add", "debian-12", "--from", from, "--sha256", &pin], root.path()), 1);
    assert!(refused.contains("linux has SHA-256") && refused.contains("it was not taken"), "{refused}");
    assert_eq!(std::fs::read(root.path().join("debian/linux")).unwrap(), b"kernek", "as it was");
}

#[test]
fn a_folder_or_a_tar_of_ones_own_is_an_image_too_and_what_is_no_name_is_refused() {
    let (work, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(&work.path().join("tree/boot/vmlinuz-6.1"), b"kernel");
    write(&work.path().join("tree/boot/initrd-6.1.img"), b"initrd");
    let tree = work.path().join("tree");
    let archive = work.path().join("tree.tar.gz");
    let packed =
        Command::new("tar").args(["-czf"]).arg(&archive).arg("-C").arg(&tree).arg(".").output().unwrap();
    assert!(packed.status.success());
    for from in [tree.to_str().unwrap(), archive.to_str().unwrap()] {
        let own =
            ["add", "own", "--from", from, "--file", "linux=boot/vmlinuz-*", "--file", "initrd=initrd-*.img"];
        ended(&image(&own, root.path()), 0);
        assert_eq!(std::fs::read(root.path().join("own/linux")).unwrap(), b"kernel", "{from}");
        assert_eq!(names(root.path()), ["SHA256SUMS", "own/initrd", "own/linux"], "{from}");
    }
    let from = tree.to_str().unwrap();
    let bad = work.path().join("bad");
    std::fs::write(&bad, b"neither").unwrap();
    let bad = bad.to_str().unwrap();
    for (arguments, code, complaint) in [
        (&["add", "nosuch", "--from", from][..], 2, "there is no image `nosuch`"),
        (&["add", "debian-12", "--from", from], 1, "has no initrd.gz, linux; say where they are with --file"),
        (&["add", "debian-12", "--from", bad], 2, "is no folder, ISO, tar, tar.gz or Debian package"),
        (&["add", "own", "--from", from, "--file", "../x=boot/vmlinuz-*"], 2, "`../x` is no name"),
        (
            &["add", "own", "--from", from, "--file", "x=boot/vmlinuz-*", "--into", "a/b"],
            2,
            "`a/b` is no name",
        ),
        (
            &["add", "own", "--from", from, "--file", "x=boot/vmlinuz-*", "--sha256", "y=00"],
            2,
            "write HEX or FILE=HEX",
        ),
        (&["fetch", "own", "--file", "x=y"], 2, "an image of your own has no mirror"),
    ] {
        let said = ended(&image(arguments, root.path()), code);
        assert!(said.contains(complaint), "{arguments:?}: {said}");
    }
    assert_eq!(names(root.path()), ["SHA256SUMS", "own/initrd", "own/linux"], "nothing is left over");
}

#[test]
fn an_iso_gives_its_kernel_and_initrd_and_is_served_itself() {
    if missing("xorriso") {
        return;
    }
    let (work, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tree = work.path().join("tree");
    write(&tree.join("casper/vmlinuz"), b"kernel");
    write(&tree.join("casper/initrd"), &vec![7; 100_000]);
    write(&tree.join("casper/a-rather-long-name-for-an-iso-image.squashfs"), b"x");
    let iso = work.path().join("ubuntu-22.04.5-live-server-amd64.iso");
    let made = Command::new("xorriso")
        .args(["-as", "mkisofs", "-quiet", "-R", "-J", "-o"])
        .arg(&iso)
        .arg(&tree)
        .output();
    assert!(made.unwrap().status.success());
    let bytes = std::fs::read(&iso).unwrap();
    let from = iso.to_str().unwrap();
    let wrong =
        ended(&image(&["add", "ubuntu-22.04", "--from", from, "--sha256", &sum(b"x")], root.path()), 1);
    assert!(wrong.contains("it was not taken"), "{wrong}");
    ended(&image(&["add", "ubuntu-22.04", "--from", from, "--sha256", &sum(&bytes)], root.path()), 0);
    let there = [
        "SHA256SUMS",
        "ubuntu-autoinstall/initrd",
        "ubuntu-autoinstall/live-server.iso",
        "ubuntu-autoinstall/vmlinuz",
    ];
    assert_eq!(names(root.path()), there);
    assert_eq!(std::fs::read(root.path().join("ubuntu-autoinstall/initrd")).unwrap(), vec![7; 100_000]);
    assert!(std::fs::read(root.path().join("ubuntu-autoinstall/live-server.iso")).unwrap() == bytes);

    // The same from a mirror, which is asked for the ISO alone.
    let mirror = Mirror::start(&[
        ("SHA256SUMS", format!("{} *ubuntu-22.04.5-live-server-amd64.iso\n", sum(&bytes)).into_bytes()),
        ("ubuntu-22.04.5-live-server-amd64.iso", bytes),
    ]);
    let fresh = tempfile::tempdir().unwrap();
    ended(&image(&["fetch", "ubuntu-22.04", "--mirror", &mirror.url], fresh.path()), 0);
    let without_parts: Vec<String> = names(fresh.path());
    assert_eq!(without_parts, there);
    assert_eq!(std::fs::read(fresh.path().join("ubuntu-autoinstall/vmlinuz")).unwrap(), b"kernel");
}

/// A web server with these files, which breaks each first answer for a large one off in the middle.
struct Mirror {
    url: String,
    /// Path, and the range that was asked for.
    asked: Arc<Mutex<Vec<String>>>,
}

impl Mirror {
    fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let url = format!("http://{}/images", listener.local_addr().unwrap());
        let files: Vec<(String, Vec<u8>)> =
            files.iter().map(|(name, bytes)| (format!("/images/{name}"), bytes.clone())).collect();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = Arc::clone(&asked);
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                answer(stream, &files, &told);
            }
        });
        Self { url, asked }
    }
}

fn answer(mut stream: TcpStream, files: &[(String, Vec<u8>)], told: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(line) = lines.next() else { return };
    let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let from = head.iter().find_map(|line| {
        line.to_ascii_lowercase().strip_prefix("range: bytes=")?.strip_suffix('-')?.parse::<usize>().ok()
    });
    told.lock().unwrap().push(format!("{path} {from:?}"));
    let Some((_, bytes)) = files.iter().find(|(name, _)| *name == path) else {
        let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return;
    };
    let (status, begin) = match from {
        Some(from) => (
            format!("206 Partial Content\r\nContent-Range: bytes {from}-{}/{}", bytes.len() - 1, bytes.len()),
            from,
        ),
        None => ("200 OK".to_owned(), 0),
    };
    let rest = &bytes[begin..];
    let sent = if from.is_none() && rest.len() > 10_000 { rest.len() / 2 } else { rest.len() };
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", rest.len());
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&rest[..sent]));
}

#[test]
fn a_download_that_breaks_off_goes_on_from_there_and_what_is_not_right_is_not_taken() {
    let kernel: Vec<u8> = (0..200_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let initrd = b"initrd".to_vec();
    let path = |file: &str| format!("netboot/debian-installer/amd64/{file}");
    let sums = format!("{}  ./{}\n{}  ./{}\n", sum(&kernel), path("linux"), sum(&initrd), path("initrd.gz"));
    let (linux, ram) = (path("linux"), path("initrd.gz"));
    let mirror =
        Mirror::start(&[("SHA256SUMS", sums.clone().into_bytes()), (&linux, kernel.clone()), (&ram, initrd)]);
    let root = tempfile::tempdir().unwrap();
    ended(&image(&["fetch", "debian-12", "--mirror", &mirror.url], root.path()), 0);
    assert!(std::fs::read(root.path().join("debian/linux")).unwrap() == kernel);
    assert_eq!(names(root.path()), ["SHA256SUMS", "debian/initrd.gz", "debian/linux"]);
    let asked = std::mem::take(&mut *mirror.asked.lock().unwrap());
    let whole = format!("/images/{linux} ");
    let ranges: Vec<&str> = asked.iter().filter_map(|line| line.strip_prefix(&whole)).collect();
    assert_eq!(ranges, ["None", "Some(100000)"], "{asked:?}");
    // Again: only the checksums are asked for.
    let again = ended(&image(&["fetch", "debian-12", "--mirror", &mirror.url], root.path()), 0);
    assert_eq!(again.matches("unchanged").count(), 2, "{again}");
    assert_eq!(*mirror.asked.lock().unwrap(), ["/images/SHA256SUMS None"]);

    // The mirror's initrd is not what its own checksums say; and one without checksums is not believed.
    let evil = Mirror::start(&[
        ("SHA256SUMS", sums.into_bytes()),
        (&linux, kernel.clone()),
        (&ram, b"evil".to_vec()),
    ]);
    let fresh = tempfile::tempdir().unwrap();
    let said = ended(&image(&["fetch", "debian-12", "--mirror", &evil.url], fresh.path()), 1);
    assert!(said.contains("initrd.gz has SHA-256") && said.contains("/images/SHA256SUMS says"), "{said}");
    assert!(!fresh.path().join("debian").exists() && !fresh.path().join("SHA256SUMS").exists());
    let silent = Mirror::start(&[(&linux, kernel)]);
    let said = ended(&image(&["fetch", "debian-12", "--mirror", &silent.url], fresh.path()), 1);
    assert!(said.contains("/images/SHA256SUMS: 404 Not Found"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_named_and_goes_on_request_and_what_profiles_boot_stays() {
    let site = Site::new(Plan::of(vec![vm("web", 1)]));
    let root = site.path("root");
    write(&root.join("old/linux"), b"old kernel");
    write(&root.join(".bootflip-4194999/files/x"), b"stage of a process that is gone");
    write(&root.join(".bootflip-parts/0a"), b"half");
    let kernel = std::fs::read(root.join("mini/vmlinuz")).unwrap();
    let sums =
        [("mini/vmlinuz", sum(&kernel)), ("old/linux", sum(b"old kernel")), ("gone/linux", sum(b"gone"))];
    let sums: String = sums.iter().map(|(name, sum)| format!("{sum}  {name}\n")).collect();
    std::fs::write(root.join("SHA256SUMS"), sums).unwrap();
    let named = site.run(&["image", "gc"]).await.ended(0).out;
    for word in [".bootflip-4194999", ".bootflip-parts/0a", "gone/linux"] {
        assert!(named.contains(word), "{word}: {named}");
    }
    assert!(!named.contains("old/linux") && root.join(".bootflip-4194999").exists(), "only named: {named}");
    let gone = site.run(&["image", "gc", "--unused", "--yes"]).await.ended(0).out;
    assert!(gone.contains("old/linux") && !gone.contains("mini/vmlinuz"), "{gone}");
    assert!(root.join("mini/vmlinuz").exists() && !root.join("old").exists());
    assert!(!root.join(".bootflip-4194999").exists() && !root.join(".bootflip-parts/0a").exists());
    assert_eq!(
        std::fs::read_to_string(root.join("SHA256SUMS")).unwrap(),
        format!("{}  mini/vmlinuz\n", sum(&kernel))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_file_that_is_not_what_sha256sums_says_stops_a_deployment_before_anything_changes() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1)]));
    let kernel = site.path("root/mini/vmlinuz");
    let right = std::fs::read(&kernel).unwrap();
    std::fs::write(site.path("root/SHA256SUMS"), format!("{}  mini/vmlinuz\n", sum(&right))).unwrap();
    let mut wrong = right.clone();
    *wrong.last_mut().unwrap() ^= 1;
    std::fs::write(&kernel, &wrong).unwrap();
    let words = format!("boot file {}: withdrawn: it is not what SHA256SUMS says", kernel.display());
    site.run(&["check"]).await.ended(1).says(&words);
    let before = site.truth("web");
    site.serve().await;
    site.run(&["deploy", "web", "-p", "mini"]).await.ended(3).says(&words);
    assert_eq!(site.truth("web"), before);
    // Put right, it is taken without a restart.
    std::fs::write(&kernel, &right).unwrap();
    let id = site.deploy("web").await;
    site.until_installed(&id, &before).await;
}
